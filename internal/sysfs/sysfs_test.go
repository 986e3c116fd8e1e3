package sysfs

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What is done to a thread must not be left on the main one, by whose mounts the whole process is known in /proc.
func TestTheMainThreadKeepsItsMounts(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		var all sync.WaitGroup
		for range 8 {
			all.Add(1)
			go onItsOwnThread(func() {
				defer all.Done()
				if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if after, err := os.Readlink("/proc/self/ns/mnt"); err != nil || after != before {
			t.Fatalf("%s, before %s: %v", after, before, err)
		}
	}
}
