#!/bin/sh
# test-kubelet.sh [ENGINE [REGEXP]]: all tests that run a real kubelet or a control plane, on an engine as test-engine.sh names
# them (docker is 20.10); the table in docs/compatibility.md then shows how they ended. REGEXP picks tests. Builds kubelets and
# a control plane at the first time, for a quarter of an hour.
#
# CORE=1 is a part of a few minutes, by kubelet 1.37 alone, on docker and on native unless ENGINE says where; the table stays.
# MATRIX=1 has kubelet 1.23 too, whose build takes minutes; a REGEXP may name it.
set -eu
cd "$(dirname "$0")/.."
engines=${1:-docker} run=${2:-} kubelets=all report=$PWD/internal/reliability/kubelets.json
if [ -n "${CORE:-}" ]; then
	[ -z "$run" ] || { echo "CORE=1 and RUN exclude each other" >&2; exit 1; }
	engines=${1:-docker native} run='^(TestKubeletScenarios|TestKubeletReboot)$' kubelets=core report=
elif [ -n "${MATRIX:-}$run" ]; then
	kubelets=matrix
fi
status=0
for engine in $engines; do
	[ "$engine" != docker ] || engine=20.10
	hack/packages.sh test "$engine"
	echo "tests by kubelets on engine $engine" >&2
	E2E_KUBELET=$kubelets E2E_KUBELET_REPORT=$report E2E_ENGINE=$engine \
		go test -count=1 -timeout 90m -v -run "${run:-^Test(Kubelet|Cluster)}" ./e2e || status=$?
done
[ -z "$report" ] || go test -count=1 -run Table ./internal/reliability -update
exit $status
