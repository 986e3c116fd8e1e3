package main

import (
	"fmt"
	"os"
)

// passable lets everybody through a folder to what is open to them there, without listing it.
const passable = 0o011

// makeFolders makes the daemon's two folders where they are absent. Root of a pod's user namespace is nobody on the host and
// goes through the run folder to its root file system, whatever the umask was when the folder was made.
func makeFolders(run, root string) error {
	for _, dir := range []string{run, root} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	info, err := os.Stat(run)
	if err == nil && info.Mode()&passable != passable {
		err = os.Chmod(run, info.Mode()|passable)
	}
	if err != nil {
		return fmt.Errorf("open the way through the run folder: %w", err)
	}
	return nil
}
