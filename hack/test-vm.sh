#!/bin/sh
# test-vm.sh [REGEXP]: the tests of the native engine and of the service in a virtual machine (hack/vm.sh), which has what this
# machine may lack: systemd, cgroup v2, AppArmor and every capability. Everything is built here; the machine has no compiler.
# CORE=1 runs the part that tells whether pods work there at all, in a machine with less in it: the service and the engine's
# contract with systemd's cgroups. REGEXP picks steps by name. TESTS=REGEXP picks their tests. How the tests of a step ended,
# if it was run in whole, is in .cache/vm-STEP.json for `make record`.
set -eu
cd "$(dirname "$0")/.."
skip() {
	echo "SKIP: $*" >&2
	exit 0
}
[ "$(go env GOHOSTARCH)" = amd64 ] || skip "the virtual machine is for amd64"
[ -e engine/native/helper/embedded/amd64/crishim-monitor ] || skip "the native engine, which the virtual machine is for, is not in this build"
PATH=$PATH:/usr/sbin:/sbin
hack/packages.sh vm || : # said below
for program in qemu-system-x86_64 mmdebstrap mke2fs; do
	command -v $program >/dev/null || skip "the virtual machine needs $program"
done
image=whole
[ -z "${CORE:-}" ] || image=core
dir=${VM_DIR:-.cache/vm}/$image
hack/vm.sh image $image || {
	status=$?
	[ $status = 75 ] || exit $status
	skip "the virtual machine cannot be had here, as was said"
}
share=$dir/share
steps=${1:-.}
rm -rf "$share"
mkdir -p "$share/tests"

# test_of STEPS PACKAGE [FLAG...]: its tests as a static program, beside its test data, where one of these steps is wanted.
test_of() {
	of=$1 package=$2
	shift 2
	echo "$of" | grep -Eq "$steps" || return 0
	name=$(echo "$package" | tr / -)
	mkdir -p "$share/tests/$name"
	go test -c -trimpath -ldflags '-s -w -extldflags -static' "$@" -o "$share/tests/$name/test" "./$package"
	[ ! -d "$package/testdata" ] || cp -r "$package/testdata" "$share/tests/$name/"
}
export CGO_ENABLED=0
test_of 'service
adopt' e2e/vm
test_of 'contract-cgroupfs
contract-systemd
contract-oci' engine/native
if [ -z "${CORE:-}" ]; then
	for package in cgroup ns rootfs host; do test_of $package engine/native/$package; done
	test_of stats stats
	CGO_ENABLED=1 test_of monitor cmd/monitor -tags 'netgo osusergo seccomp'
fi
cp "engine/native/helper/embedded/amd64/crishim-monitor" "$share/crishim-monitor"
cp "$(ls -t dist/crishim_*_amd64.deb | head -n 1)" "$share/crishim.deb" # the newest: `make deb` has just made it
cp packaging/10-crishim.conflist "$share/"
cp e2e/vm/run.sh "$share/run"
cat >"$share/settings" <<SETTINGS
core='${CORE:-}' steps='$steps' tests='${TESTS:-.}'
SETTINGS
# The whole takes long where other work has the cores too.
[ -n "${CORE:-}" ] || export VM_TIMEOUT="${VM_TIMEOUT:-3600}"
# What an earlier run said of these steps is no longer so, also where this one breaks.
[ -n "${CORE:-}${TESTS:-}" ] || for file in .cache/vm-*.json; do
	step=${file#.cache/vm-}
	! echo "${step%.json}" | grep -Eq "$steps" || rm -f "$file"
done
status=0
hack/vm.sh run $image "$share" || status=$?
[ -n "${CORE:-}${TESTS:-}" ] || for step in $(cut -d ' ' -f 1 "$dir/files" | sort -u); do
	awk -v step="$step" -v date="$(date -u +%F)" '
		BEGIN { printf "{\"date\": \"%s\", \"tests\": {", date }
		$1 == step { printf "%s\n \"%s\": \"%s\"", n++ ? "," : "", $2, tolower($3) }
		END { print "\n}}" }' "$dir/files" >".cache/vm-$step.json"
done
exit $status
