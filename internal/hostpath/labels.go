package hostpath

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	labelAttribute = "security.selinux"
	// labelDepth bounds the descriptors that are open at once: a pod may have made the tree.
	labelDepth = 256
	// labelBatch is how many names of a folder are read at a time.
	labelBatch = 1024
)

// SetLabel is label.Relabel of go-selinux, for Relabel: it gives a file its label, or a tree with all that is in it. It goes by
// descriptors: a pod that writes to the volume may put a link in a folder's place meanwhile, and by way of paths the files of the host
// would get the pod's label. name has no links in it.
func SetLabel(name, label string, _ bool) error {
	at, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for _, part := range strings.Split(path.Clean(name), "/") {
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		if part == "" {
			continue
		}
		var next int
		next, err = unix.Openat(at, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) // of a link it has nothing below
		_ = unix.Close(at)
		at = next
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	return setLabels(at, name, label, 0)
}

// setLabels labels what at is, closes that, and goes on below.
func setLabels(at int, name, label string, depth int) error {
	dir, err := setLabel(at, label)
	if err != nil {
		return &os.PathError{Op: "set the label of", Path: name, Err: err}
	}
	if dir == nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	if depth == labelDepth {
		return fmt.Errorf("%.300s is more than %d folders deep", name, labelDepth)
	}
	for {
		names, err := dir.Readdirnames(labelBatch)
		for _, entry := range names {
			below, err := unix.Openat(int(dir.Fd()), entry, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == nil {
				err = setLabels(below, path.Join(name, entry), label, depth+1)
			}
			// It went meanwhile, or is on another file system, without labels.
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTSUP) {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// setLabel returns at as a folder to read, where it is one. A link is labelled itself.
func setLabel(at int, label string) (*os.File, error) {
	defer func() { _ = unix.Close(at) }()
	name := fmt.Sprintf("/proc/self/fd/%d", at)
	now := make([]byte, 1024)
	if n, err := unix.Getxattr(name, labelAttribute, now); err != nil || strings.TrimRight(string(now[:n]), "\x00") != label {
		if err := unix.Setxattr(name, labelAttribute, []byte(label), 0); err != nil {
			return nil, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, err
	}
	dir, err := unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dir), name), nil
}
