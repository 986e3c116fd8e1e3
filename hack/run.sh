#!/bin/sh
# run.sh [docker|native]: `make run`. Makes this machine a node: installs what is missing, makes a pod network if there is
# none, starts bin/crishim and shows `crishim check` passing against it. At a terminal crishim then serves until Ctrl-C;
# without one everything that was started here is ended again. See node.sh for the engine.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "make run needs root: containers, namespaces and pod networks are made" >&2; exit 1; }
. hack/node.sh

finish() {
	status=$?
	trap - EXIT INT TERM
	end_node
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

if [ -t 0 ] && [ -t 1 ]; then pods_stay=1; fi
start_node "${1:-}"
if [ -t 0 ] && [ -t 1 ]; then
	echo
	echo "crishim serves on $socket; its log is $state/crishim.log. Try: crictl -r $socket info. Ctrl-C ends it."
	wait $shim_pid || {
		status=$?
		echo "crishim ended by itself, with status $status; the end of its log, $state/crishim.log:" >&2
		tail -n 20 "$state/crishim.log" >&2
		exit $status
	}
fi
