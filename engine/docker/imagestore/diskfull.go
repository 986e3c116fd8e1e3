package imagestore

import (
	"strings"

	"golang.org/x/sys/unix"
)

// DiskFull says that an error of dockerd's is about a disk without space. It has no class for that, only the kernel's words.
func DiskFull(err error) bool {
	return err != nil && (strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error()))
}
