#!/bin/sh
# matrix.sh ENGINE...: the whole end-to-end suite, all tests by kubelets and, on native and 20.10, `make demo-cluster`, as
# test-engine.sh names the engines; on both, kubelets alone. It goes on after a failure, for it takes hours, and ends with what each part came to.
set -u
cd "$(dirname "$0")/.."
status=0 summary=
part() { # NAME COMMAND...
	name=$1
	shift
	from=$(date +%s)
	if "$@"; then
		result=passed
	else
		result=FAILED status=1
	fi
	summary="$summary$(printf '%-20s %s in %d min' "$name" $result $((($(date +%s) - from + 30) / 60)))
"
}
for engine; do
	[ "$engine" = both ] || part "suite on $engine" hack/test-engine.sh "$engine"
	part "kubelets on $engine" env MATRIX=1 hack/test-kubelet.sh "$engine"
	case $engine in
	native) part "demo cluster on native" make demo-cluster ENGINE=native ;;
	20.10) part "demo cluster on docker" make demo-cluster ENGINE=docker ;;
	esac
done
printf '%s' "$summary" >&2
exit $status
