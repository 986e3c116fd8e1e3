package serve

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// SELinux and its like give each file a label, which tmpfs counts among the inodes since Linux 6.6: where there is room for the files
// alone, the device cannot be made, and with it no container and no exec.
func TestTheNullDeviceHasRoomForLabels(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	dir, err := makeNullDir()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(dir) }()
	for _, name := range []string{".", "dev", nullName} {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Fsetxattr(fd, "trusted.label", []byte("system_u:object_r:container_runtime_tmpfs_t:s0:c1,c2"), 0)
		_ = unix.Close(fd)
		if err != nil {
			t.Errorf("no room for the label of %s: %v", name, err)
		}
	}
}
