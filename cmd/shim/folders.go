package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// passable lets everybody through a folder to what is open to them there, without listing it.
	passable = 0o011
	// others is what would let others put their files in the place of ours.
	others = 0o022
)

// makeFolders makes the daemon's two folders where they are absent, and closes them to the writes of others. Root of a pod's
// user namespace is nobody on the host and goes through the run folder to its root file system, whatever the umask was when the
// folder was made.
func makeFolders(run, root string) error {
	for _, dir := range []string{run, root} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := setMode(run, passable); err != nil {
		return fmt.Errorf("open the way through the run folder, and close it to the writes of others: %w", err)
	}
	// On a disk that became read-only nobody writes, and what runs is served all the same.
	if err := setMode(root, 0); err != nil && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("close the root folder to the writes of others: %w", err)
	}
	return nil
}

// setMode adds to a folder's mode, and takes away what lets others write.
func setMode(dir string, more os.FileMode) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	was := info.Mode()
	mode := (was | more) &^ others
	if mode == was {
		return nil
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	if was&others != 0 {
		klog.InfoS("A folder was open to the writes of others, and is not any more; look at what is in it", "folder", dir, "mode", was, "now", mode)
	}
	return nil
}
