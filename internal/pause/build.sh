#!/bin/sh
# Builds the pause binaries: build.sh ARCH COMPILER OUTPUT. The compiler that made the committed ones is in pause.compiler.
set -eu
dir=$(dirname "$0")
case $1 in
amd64) arch_flags="-fcf-protection=none" ;;
arm64) arch_flags="-mbranch-protection=none" ;;
*) echo "build.sh: amd64 or arm64, not $1" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086
exec "$2" -std=c11 -Wall -Wextra -Werror -Os -static -nostdlib -ffreestanding -fno-pie -no-pie -fno-ident \
	-fno-stack-protector -fno-asynchronous-unwind-tables $arch_flags \
	-Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noexecstack -Wl,-s -o "$3" "$dir/pause.c"
