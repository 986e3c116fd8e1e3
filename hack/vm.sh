#!/bin/sh
# vm.sh image NAME | run NAME DIR: a throw-away Debian machine (systemd, cgroup v2, AppArmor, all capabilities), emulated, for
# the tests that want a whole host. `image` makes its disk where that is absent or made by another version of this script:
# `core` has what pods of the native engine need, `whole` Docker, OCI runtimes and CRIU too. `run` boots it with a copy of DIR
# at /mnt, runs /mnt/run there, shows what that prints, and exits with its status. What the guest writes to /dev/ttyS3 comes
# back as $VM_DIR/NAME/files. Status 75: this machine cannot have it, as is said; 125: it broke.
#
# VM_DIR (.cache/vm) keeps the disks, VM_MEM is in MiB, VM_CPUS, VM_TIMEOUT in seconds for all of a run, VM_APPEND more of the
# kernel's command line. VM_ACCEL=kvm where that works; else nothing in there is to be timed.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

die() {
	echo "vm.sh: $*" >&2
	exit 125
}

cannot() {
	echo "vm.sh: $*" >&2
	exit 75
}

case "${1:-} ${2:-}" in
'image core' | 'image whole' | 'run core' | 'run whole') ;;
*) sed -n '2,10s/^# //p' hack/vm.sh >&2 && exit 2 ;;
esac
dir=${VM_DIR:-.cache/vm}/$2
{ mkdir -p "$dir" && [ -w "$dir" ]; } 2>/dev/null || cannot "$dir cannot be written by uid $(id -u)"
dir=$(realpath "$dir")
memory=${VM_MEM:-2048} # MiB

# The disk is of this script's part for it, and of the release that made it.
key() { { sed -n '/^image() {/,/^run() {/p' hack/vm.sh; cat /etc/os-release; } | sha256sum | cut -c 1-16; }

# fits tells whether this machine has the memory, and the room for what is made and written in a run, in MiB.
fits() {
	room=2500
	[ "$1" = core ] || room=5000
	free=$(df -Pk "$dir" | awk 'END { print int($4 / 1024) }')
	[ "$free" -ge $room ] || cannot "$dir has $free MiB free, of $room that the machine may need"
	# A container's limit counts too.
	free=$({
		awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo
		cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | awk '$1 != "max" { printf "%d\n", $1 / 1048576 }'
	} | sort -n | head -n 1)
	[ "$free" -ge $((memory + 512)) ] || cannot "$free MiB of memory are free, and the machine with its emulator needs $((memory + 512))"
}

image() {
	packages=systemd,systemd-sysv,dbus,kmod,iproute2,iptables,mount,procps,apparmor,busybox-static,containernetworking-plugins,linux-image-cloud-amd64
	[ "$1" = core ] || packages=$packages,docker.io,runc,crun,criu
	[ "$(cat "$dir/key" 2>/dev/null)" != "$(key)" ] || return 0
	[ "$(id -u)" = 0 ] || cannot "only root can make the image, which is absent or of another version"
	echo "making the image of the virtual machine in $dir (minutes, once)" >&2
	rm -rf "$dir/key" "$dir/root" "$dir/disk"
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
	root=$dir/root
	# No initrd: the kernel itself has drivers for the disk and its file system.
	mmdebstrap --mode=root --variant=minbase --include="$packages" --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/etc/kernel/postinst.d/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' "$suite" "$root" >"$dir/image.log" 2>&1 || {
		tail -20 "$dir/image.log" >&2
		echo "vm.sh: mmdebstrap failed: all it said is in $dir/image.log" >&2
		! grep -Eq '^E: (Failed to fetch|Unable to fetch|Some index files failed)' "$dir/image.log" || cannot "Debian's packages cannot be fetched"
		exit 125
	}
	echo vm >"$root/etc/hostname"
	echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
	echo 4be5f1a70d1c4b1bb1e9f1f2a6f0c3d7 >"$root/etc/machine-id" # this is no first boot
	: >"$root/etc/fstab"
	printf 'overlay\nbridge\nveth\nbr_netfilter\n' >"$root/etc/modules-load.d/vm.conf"
	cat >"$root/usr/local/sbin/vm-run" <<'RUN'
#!/bin/sh
mount /dev/nvme0n2 /mnt
cd /mnt
for port in 1 2 3; do stty raw -F /dev/ttyS$port; done
./run >/dev/ttyS1 2>&1 </dev/null
echo $? >/dev/ttyS2
sync
systemctl poweroff -ff
RUN
	chmod 755 "$root/usr/local/sbin/vm-run"
	units=$root/etc/systemd/system
	cat >"$units/vm-run.service" <<'UNIT'
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
	mkdir -p "$units/multi-user.target.wants"
	ln -s ../vm-run.service "$units/multi-user.target.wants/vm-run.service"
	# What nobody needs here and costs seconds of an emulated boot or, of the generators, of each reload of systemd; and daemons
	# that a test starts itself.
	for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-hwdb-update.service \
		systemd-logind.service systemd-user-sessions.service systemd-timesyncd.service systemd-random-seed.service systemd-journal-flush.service \
		systemd-machine-id-commit.service systemd-sysusers.service systemd-firstboot.service systemd-repart.service systemd-binfmt.service \
		systemd-pstore.service systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
		systemd-ask-password-console.path systemd-ask-password-wall.path proc-sys-fs-binfmt_misc.automount getty.target remote-fs.target apparmor.service \
		e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer fstrim.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer; do
		ln -sf /dev/null "$units/$unit"
	done
	mkdir -p "$root/etc/systemd/system-generators"
	for generator in "$root"/usr/lib/systemd/system-generators/*; do ln -s /dev/null "$root/etc/systemd/system-generators/${generator##*/}"; done
	rm -f "$units"/*.wants/docker.service "$units"/*.wants/containerd.service "$units"/*.wants/docker.socket
	kernel "$root"/boot/vmlinuz-*
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/boot/*
	mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$root" "$dir/disk" 6G >/dev/null
	rm -rf "$root"
	key >"$dir/key"
}

# kernel unpacks a kernel, as the machine would do with some hundred times the instructions.
kernel() {
	number() { od -An -tu"$2" -j "$1" -N "$2" "$file" | tr -d ' '; }
	file=$1
	# setup_sects, payload_offset, payload_length of Linux' x86 boot protocol.
	offset=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
	# LZ4's old format, and 4 bytes of its length; one in another format is left to the machine.
	tail -c +$((offset + 1)) "$file" | head -c $(($(number 588 4) - 4)) | lz4 -dc >"$dir/vmlinux" 2>/dev/null || cp "$file" "$dir/vmlinux"
}

run() {
	[ -x "$1/run" ] || die "$1/run is no program"
	[ -e "$dir/key" ] || die "there is no image: run vm.sh image first"
	work=$(mktemp -d "$dir/run.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT TERM
	mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$1" "$work/share" "$(($(du -sm "$1" | cut -f 1) * 5 / 4 + 512))M" >/dev/null
	: >"$work/status"
	rm -f "$dir/files"
	accel='-accel tcg,thread=multi,tb-size=512 -cpu max'
	[ "${VM_ACCEL:-}" != kvm ] || accel='-accel kvm -cpu host'
	# no_timer_check: a busy host delivers the first ticks too late for the kernel, which would stop there.
	# shellcheck disable=SC2086 # flags are words
	{ TMPDIR=$work timeout --foreground -k 5 "${VM_TIMEOUT:-1800}" qemu-system-x86_64 -M q35 $accel -m "$memory" -smp "${VM_CPUS:-2}" \
		-nodefaults -no-user-config -display none -no-reboot -kernel "$dir/vmlinux" \
		-append "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rootflags=noinit_itable rootwait rw panic=-1 mitigations=off no_timer_check tsc=reliable nowatchdog cryptomgr.notests quiet systemd.show_status=0 audit=0 net.ifnames=0 ${VM_APPEND:-}" \
		-device nvme,id=nvme0,serial=vm -drive file="$dir/disk",if=none,id=disk,format=raw,cache=unsafe,snapshot=on -device nvme-ns,drive=disk,bus=nvme0 \
		-drive file="$work/share",if=none,id=share,format=raw,cache=unsafe -device nvme-ns,drive=share,bus=nvme0 \
		-chardev file,id=out,path=/dev/stdout \
		-serial file:"$dir/console.log" -serial chardev:out -serial file:"$work/status" -serial file:"$dir/files" </dev/null ||
		echo "vm.sh: the virtual machine ended with status $? (124 or 137: the time of ${VM_TIMEOUT:-1800} s was over)"; } 2>&1 | cat # a pipe: what is in it is in order
	status=$(cat "$work/status")
	[ -n "$status" ] || {
		tail -5 "$dir/console.log" >&2
		die "the guest told no status; its console is in $dir/console.log"
	}
	exit "$status"
}

case $1 in
image) fits "$2"; image "$2" ;;
run) run "$3" ;;
esac
