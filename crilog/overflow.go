package crilog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OverflowSuffix is added to the name of a log that outgrew its bound, of which there is one at a time. The kubelet removes
// NAME* when the container goes, and compresses, counts and removes only NAME.* when it rotates: a name that comes again would
// be taken for one that is compressed already. To agents that read *.log it is none.
const OverflowSuffix = "-overflow"

// SetAside gives the log at the path, where that is still file, its overflow's name, in place of the one before: a new log
// can then be begun at the path. OK where the kubelet has renamed it already.
func SetAside(root, path string, file *os.File) error {
	dir, name, err := MakeParent(root, path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	var named, open unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &open); err != nil {
		return classify("look at log", path, err)
	}
	err = unix.Fstatat(int(dir.Fd()), name, &named, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && (named.Ino != open.Ino || named.Dev != open.Dev) {
		return nil
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), name, int(dir.Fd()), name+OverflowSuffix)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return classify(fmt.Sprintf("move to %s%s the full log", name, OverflowSuffix), path, err)
	}
	return nil
}

// TakenBack says that the file has no name any more and another file has the log's: the kubelet, which ReopenContainerLog's
// answer did not reach, has taken its rename back.
func TakenBack(root, path string, file *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil || st.Nlink > 0 {
		return false
	}
	dir, name, err := OpenParent(root, path)
	if err != nil {
		return false
	}
	defer func() { _ = dir.Close() }()
	return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// Left is a log that was left for a new one: which file it is, and the name that it had then. The zero value is none.
type Left struct {
	ino  uint64
	name string
}

// Leave is the file as what is left.
func Leave(file *os.File) Left {
	var st unix.Stat_t
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil || unix.Fstat(int(file.Fd()), &st) != nil {
		return Left{}
	}
	return Left{ino: st.Ino, name: filepath.Base(name)}
}

// TakenBack is TakenBack for who is told to reopen the log: the kubelet may have renamed what was left once more, and nothing be
// at the path. That tells it from a log that somebody has removed, and wants gone.
func (l *Left) TakenBack(root, path string, file *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil || st.Nlink > 0 {
		return false
	}
	if TakenBack(root, path, file) {
		return true
	}
	dir, name, err := OpenParent(root, path)
	if err != nil {
		return false
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false
	}
	for _, other := range names {
		if !strings.HasPrefix(other, name+".") || other == l.name {
			continue
		}
		if unix.Fstatat(int(dir.Fd()), other, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == l.ino {
			l.name = other // this may be taken back, too
			return true
		}
	}
	return false
}
