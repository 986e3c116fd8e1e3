#!/bin/sh
# Runs in the virtual machine of hack/test-vm.sh: step by step, with the time that each took.
cd /mnt || exit 1
. ./settings
export CRISHIM_VM=1 CRISHIM_TEST_MONITOR=/mnt/crishim-monitor
# A swap file, for limits of swap.
dd if=/dev/zero of=/swap bs=1M count=64 2>/dev/null && chmod 600 /swap && mkswap -q /swap && swapon /swap
failed=
: >/tmp/ended
step() { # NAME PACKAGE [FLAG...]
	name=$1 package=$2
	shift 2
	echo "$name" | grep -Eq "$steps" || return 0
	start=$(cut -d . -f 1 /proc/uptime)
	{ (cd "tests/$package" && ./test -test.v -test.timeout 20m "$@" 2>&1) || : >/tmp/failed; } | tee /tmp/out | grep --line-buffered -v '^=== '
	# How each test ended, for the host; one for which the time was over is in a list of its own.
	of="$name $(echo "$package" | tr - /)"
	sed -n -e "s,^--- \([A-Z]*\): \([^ ]*\) .*,$of.\2 \1,p" -e "s,^\t\t\(Test[^ /]*\) ([0-9hms.]*)$,$of.\1 FAIL,p" /tmp/out >>/tmp/ended
	result=ok
	if [ -e /tmp/failed ]; then
		rm /tmp/failed
		result=FAIL failed="$failed $name"
	fi
	echo "$result $name: $(grep -c '^ *--- PASS' /tmp/out) passed, $(grep -c '^ *--- FAIL' /tmp/out) failed, $(grep -c '^ *--- SKIP' /tmp/out) skipped, $(($(cut -d . -f 1 /proc/uptime) - start)) s"
}
echo "booted in $(cut -d . -f 1 /proc/uptime) s: $(uname -r), $(stat -f -c %T /sys/fs/cgroup), $(systemctl is-system-running)"
[ "$tests" = . ] || only="-test.run=$tests"
later=TestAdopt
[ -z "$core" ] || later='TestAdopt|Checkpoint|OCIRuntimes'
step service e2e-vm ${only:--test.skip=$later}
[ -n "$core" ] || step contract-cgroupfs engine-native ${only:--test.run=^TestNativeContract$}
export CRISHIM_TEST_CGROUP_DRIVER=systemd
step contract-systemd engine-native ${only:--test.run=^TestNativeContract$}
oci='^Test(NativeContractWithAnOCIRuntime|StdioInAUserNamespaceByAnOCIRuntime)$'
[ -n "$core" ] || step contract-oci engine-native ${only:--test.run=$oci}
unset CRISHIM_TEST_CGROUP_DRIVER
if [ -z "$core" ]; then
	for package in cgroup ns rootfs host; do step $package engine-native-$package $only; done
	step stats stats ${only:--test.run=Live}
	step monitor cmd-monitor $only
	step adopt e2e-vm ${only:--test.run=TestAdopt} # the last: it makes another node of the machine
fi
cat /tmp/ended >/dev/ttyS3
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
