#!/bin/sh
# vm.sh image | run DIR: a throw-away Debian machine (systemd, cgroup v2, AppArmor, all capabilities), emulated, for the tests
# that want a whole host. `image` makes its disk in $VM_DIR where that is absent or made by another version of this script;
# `run` boots it with a copy of DIR at /mnt, runs /mnt/run there, shows what that prints, and exits with its status. What the
# guest writes to /dev/ttyS3 comes back as $VM_DIR/files.
#
# VM_DIR (.cache/vm) keeps the disk, VM_MEM is in MiB, VM_CPUS, VM_TIMEOUT in seconds for all of a run. VM_ACCEL=kvm where that
# works; else nothing in there is to be timed.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
dir=${VM_DIR:-.cache/vm}
mkdir -p "$dir"
dir=$(realpath "$dir")

die() {
	echo "vm.sh: $*" >&2
	exit 125
}

# The disk is of this script's part for it and of the release that made it.
key() { { sed -n '/^image() {/,/^}/p' hack/vm.sh; cat /etc/os-release; } | sha256sum | cut -c 1-16; }

image() {
	packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,iptables,mount,procps,apparmor,busybox-static,containernetworking-plugins,docker.io,runc,crun,criu
	packages=$packages,initramfs-tools,linux-image-cloud-amd64
	[ "$(cat "$dir/key" 2>/dev/null)" != "$(key)" ] || return 0
	[ "$(id -u)" = 0 ] || die "making the image needs root"
	echo "making the image of the virtual machine in $dir (minutes, once)" >&2
	rm -rf "$dir/key" "$dir/root" "$dir/disk"
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
	# Before the kernel's package makes it: an initrd of what mounts the disk and no more; a full one takes long to unpack.
	cat >"$dir/before" <<'HOOK'
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/modules-load.d"
printf 'MODULES=list\nCOMPRESS=lz4\n' >"$1/etc/initramfs-tools/conf.d/vm"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$1/etc/initramfs-tools/modules"
HOOK
	chmod 755 "$dir/before"
	mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" --dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--extract-hook="$dir/before \"\$1\"" --aptopt='Apt::Install-Recommends "false"' "$suite" "$dir/root" >"$dir/image.log" 2>&1 || {
		tail -20 "$dir/image.log" >&2
		die "mmdebstrap failed: all it said is in $dir/image.log"
	}
	root=$dir/root
	echo vm >"$root/etc/hostname"
	echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
	echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
	printf 'overlay\nbridge\nveth\nbr_netfilter\n' >"$root/etc/modules-load.d/vm.conf"
	cat >"$root/usr/local/sbin/vm-run" <<'RUN'
#!/bin/sh
mount /dev/vdb /mnt
cd /mnt
for port in 1 2 3; do stty raw -F /dev/ttyS$port; done
./run >/dev/ttyS1 2>&1 </dev/null
echo $? >/dev/ttyS2
sync
systemctl poweroff -ff
RUN
	chmod 755 "$root/usr/local/sbin/vm-run"
	cat >"$root/etc/systemd/system/vm-run.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/vm-run
Delegate=yes
TasksMax=infinity
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[Install]
WantedBy=multi-user.target
UNIT
	systemctl --root="$root" --quiet enable vm-run.service 2>/dev/null || ln -s ../vm-run.service "$root/etc/systemd/system/multi-user.target.wants/vm-run.service"
	# What costs time at the boot, and daemons that a test starts itself.
	for unit in e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer getty@tty1.service \
		serial-getty@ttyS0.service systemd-timesyncd.service systemd-random-seed.service systemd-pcrphase.service systemd-pcrphase-sysinit.service; do
		ln -sf /dev/null "$root/etc/systemd/system/$unit"
	done
	rm -f "$root"/etc/systemd/system/*.wants/docker.service "$root"/etc/systemd/system/*.wants/containerd.service "$root"/etc/systemd/system/*.wants/docker.socket
	cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
	cp "$root"/boot/initrd.img-* "$dir/initrd"
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/boot/*
	mke2fs -q -F -t ext4 -E lazy_itable_init=1 -d "$root" "$dir/disk" 6G >/dev/null
	rm -rf "$root" "$dir/before"
	key >"$dir/key"
}

run() {
	[ -x "$1/run" ] || die "$1/run is no program"
	[ -e "$dir/key" ] || die "there is no image: run vm.sh image first"
	work=$(mktemp -d "$dir/run.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT TERM
	mke2fs -q -F -t ext4 -E lazy_itable_init=1 -d "$1" "$work/share" "$(($(du -sm "$1" | cut -f 1) * 5 / 4 + 512))M" >/dev/null
	: >"$work/status"
	accel='-accel tcg,thread=multi,tb-size=512 -cpu max'
	[ "${VM_ACCEL:-}" != kvm ] || accel='-accel kvm -cpu host'
	# no_timer_check: a busy host delivers the first ticks too late for the kernel, which would stop there.
	# shellcheck disable=SC2086 # flags are words
	{ timeout -k 5 "${VM_TIMEOUT:-900}" qemu-system-x86_64 -M q35 $accel -m "${VM_MEM:-2048}" -smp "${VM_CPUS:-2}" \
		-nodefaults -no-user-config -display none -no-reboot -kernel "$dir/vmlinuz" -initrd "$dir/initrd" \
		-append "console=ttyS0 root=/dev/vda rw panic=-1 mitigations=off no_timer_check tsc=reliable nowatchdog cryptomgr.notests quiet systemd.show_status=0 audit=0 net.ifnames=0 ${VM_APPEND:-}" \
		-drive file="$dir/disk",if=none,id=disk,format=raw,cache=unsafe,snapshot=on -device virtio-blk-pci,drive=disk \
		-drive file="$work/share",if=none,id=share,format=raw,cache=unsafe -device virtio-blk-pci,drive=share \
		-device virtio-rng-pci -chardev file,id=out,path=/dev/stdout \
		-serial file:"$dir/console.log" -serial chardev:out -serial file:"$work/status" -serial file:"$dir/files" </dev/null ||
		echo "vm.sh: the virtual machine ended with status $? (124: the time of ${VM_TIMEOUT:-900} s was over)"; } 2>&1 | cat # a pipe: what is in it is in order
	status=$(cat "$work/status")
	[ -n "$status" ] || {
		tail -5 "$dir/console.log" >&2
		die "the guest told no status; its console is in $dir/console.log"
	}
	exit "$status"
}

case ${1:-} in
image) image ;;
run) run "$2" ;;
*) sed -n '2,9s/^# //p' "$0" >&2 && exit 2 ;;
esac
