package sysfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// A sysfs that was read-only for its first mount can be written to afterwards, but not by a mount that is read-only itself, whether it
// was there before or comes later; and nothing is left mounted that others see.
func TestOnlyMountsThatAreNotReadOnlyCanBeWrittenTo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and its namespaces with it
		done <- mountAndWrite(dir)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func mountAndWrite(dir string) error {
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")); err != nil {
		return err
	}
	mount := func(name string, more uintptr) error {
		path := filepath.Join(dir, name)
		return errors.Join(os.Mkdir(path, 0o700), unix.Mount("sysfs", path, "sysfs", flags|more, ""))
	}
	write := func(name string) error { // what it says already
		file := filepath.Join(dir, name, "class/net/lo/tx_queue_len")
		old, err := os.ReadFile(file)
		return errors.Join(err, os.WriteFile(file, old, 0))
	}
	if err := errors.Join(mount("first", unix.MS_RDONLY), mount("second", 0)); err != nil {
		return err
	}
	if err := write("second"); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("the file system can be written to already, or: %w", err)
	}
	mounts := func() int {
		data, _ := os.ReadFile("/proc/thread-self/mountinfo")
		return strings.Count(string(data), "\n")
	}
	before := mounts()
	if err := AllowWrites(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())); err != nil {
		return err
	}
	if now := mounts(); now != before {
		return fmt.Errorf("there are %d mounts, %d before", now, before)
	}
	if err := mount("later", unix.MS_RDONLY); err != nil {
		return err
	}
	for name, want := range map[string]error{"first": unix.EROFS, "second": nil, "later": unix.EROFS} {
		if err := write(name); !errors.Is(err, want) {
			return fmt.Errorf("the %s mount: %w", name, err)
		}
	}
	return nil
}
