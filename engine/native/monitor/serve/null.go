package serve

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// null opens a /dev/null that is not the host's: root of a container owns what it has as its stdio, and by
// /proc/self/fd/0 would change the mode of the node's own device. libcontainer opens the container's own for the first
// process, but neither for an exec nor where a volume is mounted at /dev.
func null() (*os.File, error) {
	dir, err := nullDir()
	if errors.Is(err, unix.EPERM) {
		// In a user namespace nobody makes devices, and no container's root owns the host's.
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(dir, nullName, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), os.DevNull), nil
}

// nullName is what a process sees as the name of its stdio, in /proc/self/fd.
const nullName = "dev/null"

var nulls struct {
	sync.Mutex
	dir int // 0 until it is made
}

// nullDir is a file system with the device and nothing else, mounted nowhere, and made once: to let go of one makes all
// processors wait for each other.
func nullDir() (int, error) {
	nulls.Lock()
	defer nulls.Unlock()
	if nulls.dir != 0 {
		return nulls.dir, nil
	}
	dir, err := makeNullDir()
	if err != nil {
		return -1, fmt.Errorf("make a null device: %w", err)
	}
	nulls.dir = dir
	return dir, nil
}

func makeNullDir() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }()
	// A page, and inodes for two folders, the device and their labels: since Linux 6.6 those of SELinux take from the inodes, 1 KiB each.
	for key, value := range map[string]string{"mode": "0700", "size": "4k", "nr_inodes": "16"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, err
	}
	err = unix.Mkdirat(dir, "dev", 0o700)
	if err == nil {
		err = unix.Mknodat(dir, nullName, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	}
	if err == nil {
		err = unix.Fchmodat(dir, nullName, 0o666, 0) // whatever the umask
	}
	if err != nil {
		_ = unix.Close(dir)
		return -1, err
	}
	return dir, nil
}
