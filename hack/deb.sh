#!/bin/sh
# deb.sh VERSION ARCH: packs bin/crishim, the units and the sample files into dist/crishim_VERSION_ARCH.deb, compressed by
# DEB_COMPRESSION (xz).
set -eu
cd "$(dirname "$0")/.."
command -v dpkg-deb >/dev/null || { echo "make deb needs dpkg-deb: run it on Debian" >&2; exit 1; }
arch=$2
# A Debian version starts with a digit: a bare commit id gets 0~ before it.
version=$(echo "${1#v}" | tr '-' '+' | sed 's/^\([^0-9]\)/0~\1/; s/^\([0-9a-f]\{7,\}\)\(+dirty\)\{0,1\}$/0~\1\2/')
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
install -D -m 755 bin/crishim "$tree/usr/bin/crishim"
install -D -m 644 packaging/crishim.service "$tree/usr/lib/systemd/system/crishim.service"
install -D -m 644 packaging/crishim.socket "$tree/usr/lib/systemd/system/crishim.socket"
install -D -m 644 packaging/config.toml "$tree/etc/crishim/config.toml"
install -D -m 644 packaging/10-crishim.conflist "$tree/usr/share/doc/crishim/examples/10-crishim.conflist"
install -D -m 644 packaging/crictl.yaml "$tree/usr/share/doc/crishim/examples/crictl.yaml"
mkdir -p "$tree/DEBIAN" dist
echo /etc/crishim/config.toml >"$tree/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 755 "packaging/deb/$script" "$tree/DEBIAN/$script"; done
size=$(du -sk "$tree" | cut -f 1)
sed "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" packaging/deb/control >"$tree/DEBIAN/control"
dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$tree" "dist/crishim_${version}_$arch.deb"
