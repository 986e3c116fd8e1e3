#!/bin/sh
# test-engine.sh ENGINE [REGEXP]: the end-to-end tests, or those that the expression names, on an engine: native, or a Docker
# Engine: 20.10 is the one of Debian's docker.io; 28 and 29 are built from Go modules, which takes minutes at the first time; else
# the path of a dockerd; both is 20.10 with the native engine on beside it. CORE=1 runs the part that tells whether crishim works
# there at all, in a few minutes. How the tests ended, if all were run on an engine that has a name, is in .cache/e2e-ENGINE.json,
# of `make counts` in .cache/counts-ENGINE.json, for `make record`.
set -eu
cd "$(dirname "$0")/.."
run=${2:-}
# What differs between engines: create bodies, image ids, layers, logs, events, exec, limits, and the engine coming back.
core='^(TestPodLivesFromRunToRemove|TestContainersOfAPodShareNetworkAndIPCAndCanShareProcesses|TestExitCodesAndReasons)$|
^(TestStartOfAMissingProgramFailsAndIsRecorded|TestMountsAreWhatTheConfigurationSays|TestEntrypointAndCommandRules)$|
^(TestExecSyncReturnsOutputAndExitCode|TestExecStreams|TestAttachJoinsTheMainProcess|TestPortForwardReachesThePod)$|
^(TestImage|TestThreeTags|TestContainerStatusNamesTheImage|TestPauseImage|TestPullFailures)|
^(TestLogHasBothStreamsWithTimesAndEveryByte|TestHostPortReachesThePodAndIsFreeAfterwards|TestContainerEventsTellALife)$|
^(TestResources|TestContainerHasTheRightsItWasGiven|TestPathsAreMasked|TestContainerStatsGrow|TestCheckPasses)|
^(TestStopsSignalWithoutDocker|TestPodsLiveThroughTheEndOfTheDaemon|TestDaemonIsUpgradedAndDowngradedUnderRunningPods|TestDockerdDiesWithLiveRestore|TestDockerdRestartsWithoutLiveRestore|TestEngineIsUpgradedUnderRunningPods)$'
if [ -n "${CORE:-}" ]; then
	[ -z "$run" ] || { echo "CORE=1 and RUN exclude each other" >&2; exit 1; }
	run=$(echo "$core" | tr -d '\n')
	if [ "$1" = native ]; then # whose steps are its own: a few of each walk
		run="$run|^TestKubelet\$|^TestNative|^Test(DaemonDiesAtEveryStep|DaemonDiesAndNobodyComesBack|MonitorDiesAtEveryStep|Soak)\$"
		export E2E_CRASH="${E2E_CRASH:-few}"
	fi
fi
hack/packages.sh test "$1"
suite=e2e timeout=60m results=
[ "${E2E_COUNTS:-}" != full ] || suite=counts timeout=0
case $1 in
'' | */*) ;;
*) [ -n "$run" ] || results=.cache/$suite-$1.json ;;
esac
echo "end-to-end tests on engine $1" >&2
export E2E_ENGINE="$1"
set -- go test -count=1 -timeout "$timeout" -p 1 -run "$run"
[ -n "$results" ] || exec "$@" ./e2e
[ ! -e "$results" ] || rm "$results" # what an earlier run said is no longer so, also where this one breaks
go build -o .cache/results ./hack/results
exec .cache/results "$results" "$@" -json ./e2e
