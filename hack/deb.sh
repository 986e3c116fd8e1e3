#!/bin/sh
# deb.sh VERSION ARCH: packs bin/crishim, the units and the sample files into dist/crishim_VERSION_ARCH.deb, in the place of an
# older one for ARCH, compressed by DEB_COMPRESSION (xz).
#
# The package's version rises with every commit. Before the first release it is 0~TIME.N.ID: the commit's time, how many commits
# there are, and the commit's id. v1.3.0-rc.1 is 1.3.0~rc.1, v1.3.0 is 1.3.0, the fourth commit after that 1.3.0+4.ID. A build with
# changes that are not committed has its own time at the end, so that apt installs each over the one before.
set -eu
cd "$(dirname "$0")/.."
command -v dpkg-deb >/dev/null || { echo "make deb needs dpkg-deb: run it on Debian" >&2; exit 1; }
arch=$2
commit=${1%-dirty}
case $commit in
v[0-9]* | [0-9]*.[0-9]*)
	version=$(echo "${commit#v}" | sed -E 's/-([0-9]+)-g([0-9a-f]+)$/+\1.\2/; s/-([A-Za-z])/~\1/g; s/-/+/g')
	;;
*)
	version=$(
		n=$(git rev-list --count "$commit" -- 2>/dev/null) &&
			TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format="0~%cd.$n.%h" "$commit" --
	) || version="0~$(echo "$commit" | tr -c '[:alnum:].\n' +)"
	;;
esac
if [ "$commit" != "$1" ]; then
	case $version in
	*+* | 0~*) ;;
	*) version=$version+0 ;; # less than the next commit's
	esac
	version=$version.dirty$(date -u +%Y%m%d%H%M%S)
fi
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
rm -f dist/crishim_*_"$arch".deb
dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$tree" "dist/crishim_${version}_$arch.deb"
