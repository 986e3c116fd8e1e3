#!/bin/sh
# test-kubelet.sh [ENGINE [REGEXP]]: all tests that run a real kubelet or a control plane, on an engine as test-engine.sh names
# them (docker is 20.10); the table in docs/compatibility.md then shows it. REGEXP picks tests. Builds kubelets and a control
# plane at the first time, for a quarter of an hour.
set -eu
cd "$(dirname "$0")/.."
engine=${1:-docker} run=${2:-^Test(Kubelet|Cluster)}
[ "$engine" != docker ] || engine=20.10
hack/packages.sh test "$engine"
echo "tests by kubelets on engine $engine" >&2
status=0
E2E_KUBELET=all E2E_KUBELET_REPORT="$PWD/internal/reliability/kubelets.json" E2E_ENGINE="$engine" \
	go test -count=1 -timeout 90m -v -run "$run" ./e2e || status=$?
go test -count=1 -run Table ./internal/reliability -update
exit $status
