package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A container's first process that has gone to an overlay of its own does not say what folder of the host is measured as its writable
// layer.
func TestAContainerDoesNotChooseItsWritableLayer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox (apt-get install busybox-static)")
	}
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	// Two overlays: what Docker mounted, and what the process made.
	roots := map[string]string{}
	for _, name := range []string{"docker", "own"} {
		dir := filepath.Join(base, name)
		for _, sub := range []string{"lower/bin", "upper", "work", "root"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "lower/bin/sleep"), program, 0o755); err != nil {
			t.Fatal(err)
		}
		roots[name] = filepath.Join(dir, "root")
		options := "lowerdir=" + filepath.Join(dir, "lower") + ",upperdir=" + filepath.Join(dir, "upper") + ",workdir=" + filepath.Join(dir, "work")
		if err := unix.Mount("overlay", roots[name], "overlay", 0, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(roots[name], unix.MNT_DETACH) })
	}
	for name, want := range map[string]string{"docker": filepath.Join(base, "docker/upper"), "own": ""} {
		cmd := exec.Command("/bin/sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: roots[name]}
		cmd.Dir = "/"
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if got := upperDirOf(cmd.Process.Pid, roots["docker"]); got != want {
			t.Errorf("a process in the root %s: its container's writable layer is %q, not %q", name, got, want)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
