#!/bin/sh
# helper.sh ARCH VERSION: builds the native engine's static helper (cmd/monitor) for ARCH to where the daemon's build embeds
# it. Where this machine cannot (no C compiler or libseccomp for ARCH), it says so and removes an old one: the daemon then
# has no native engine, and says so too.
set -eu
cd "$(dirname "$0")/.."
arch=$1 version=$2
out=engine/native/helper/embedded/$arch/crishim-monitor
without() {
	rm -f "$out"
	echo "crishim for $arch is built without the native engine: $1" >&2
	exit 0
}
if [ "$arch" = "$(go env GOHOSTARCH)" ]; then
	hack/packages.sh build || without "its helper needs gcc, pkg-config and libseccomp-dev"
	compiler=${CC:-gcc}
else
	case $arch in
	amd64) tuple=x86_64-linux-gnu ;;
	arm64) tuple=aarch64-linux-gnu ;;
	*) without "its helper is for amd64 and arm64" ;;
	esac
	compiler=$tuple-gcc
	command -v "$compiler" >/dev/null || without "there is no $compiler (apt-get install gcc-$(echo $tuple | tr _ -))"
	export PKG_CONFIG_PATH="/usr/lib/$tuple/pkgconfig" PKG_CONFIG_LIBDIR="/usr/lib/$tuple/pkgconfig"
	pkg-config --exists libseccomp || without "there is no libseccomp for $arch (apt-get install libseccomp-dev:$arch)"
fi
# netgo and osusergo: nothing of glibc that would want its shared libraries at run time.
CGO_ENABLED=1 GOOS=linux GOARCH=$arch CC=$compiler go build -trimpath -buildvcs=false -tags 'netgo osusergo seccomp' \
	-ldflags "-s -w -X main.version=$version -linkmode external -extldflags -static" -o "$out" ./cmd/monitor
