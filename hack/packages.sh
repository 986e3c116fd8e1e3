#!/bin/sh
# packages.sh build|run|test|vm [ENGINE]: installs from Debian what is missing of the programs that `make` needs, or `make run` with ENGINE docker
# or native, or `make test` on a Docker Engine as test-engine.sh names them, or `make test-vm`.
set -eu
purpose=$1 engine=${2:-}
missing=
want() { # PROGRAM PACKAGE
	command -v "$1" >/dev/null || missing="$missing $2"
}
PATH=$PATH:/usr/sbin:/sbin
if [ "$purpose" != run ]; then # the native engine's helper is C in part; for tests, the race detector too
	want gcc gcc
	[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
	want pkg-config pkg-config
	[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"
fi
if [ "$purpose" = vm ]; then
	want qemu-system-x86_64 qemu-system-x86
	want mmdebstrap mmdebstrap
	want mke2fs e2fsprogs
	want lz4 lz4
elif [ "$purpose" != build ]; then
	want iptables iptables
	want ip iproute2
	want mount mount
fi
# A Docker Engine that answers will do for `make run`; the tests start their own.
if [ "$purpose$engine" != testnative ] && { [ "$purpose" = test ] || [ "$engine" = docker ] && ! [ -S /var/run/docker.sock ]; }; then
	want dockerd docker.io
	want containerd containerd
	want runc runc
fi
if [ "$purpose" = test ]; then
	want ps procps
	want nft nftables
	want mke2fs e2fsprogs # disks that are full or hang
	{ [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; } || missing="$missing busybox-static" # the image of the engine's own tests
	[ -x /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins" # the old version is tested too
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	[ "$purpose" = vm ] && exit 0 # whoever asked says what is left out
	[ "$purpose" = test ] && { echo "not root: the end-to-end tests are left out; they need$missing" >&2; exit 0; }
	[ "$purpose" = build ] && { echo "not root: please install$missing" >&2; exit 1; }
	echo "make run needs root" >&2
	exit 1
fi
command -v apt-get >/dev/null || { echo "please install$missing" >&2; exit 1; }
echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -20 "$log" >&2
	rm -f "$log"
	echo "could not install$missing" >&2
	exit 1
fi
rm -f "$log"
