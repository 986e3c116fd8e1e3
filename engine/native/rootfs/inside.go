package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crishim/engine/imageuser"
	"crishim/internal/openat2"
	"crishim/internal/process"
)

// openIn opens a path in root as a process whose root it is would, but through no magic link and into no other file system.
func openIn(root, path string, flags uint64) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dir) }()
	return openat2.Open(dir, "./"+path, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// UserFiles reads /etc/passwd and /etc/group in root. Absent ones are empty. ErrInvalidArgument for what is no regular file
// in root, or larger than imageuser.MaxFile.
func UserFiles(root string) (passwd, group []byte, err error) {
	if passwd, err = readIn(root, "etc/passwd"); err != nil {
		return nil, nil, err
	}
	group, err = readIn(root, "etc/group")
	return passwd, group, err
}

// Home is the home directory of a uid by /etc/passwd in root, "/" where that names none or is no file to read. An error says that
// this process could not look (process.Starved).
func Home(root string, uid int64) (string, error) {
	passwd, err := readIn(root, "etc/passwd")
	switch {
	case process.Starved(err):
		return "", fmt.Errorf("find the home directory: %w", err)
	case err != nil:
		return "/", nil
	}
	return imageuser.Home(passwd, uid), nil
}

func readIn(root, path string) ([]byte, error) {
	// Not opened for real before it is known to be a file: a device or FIFO would notice.
	fd, err := openIn(root, path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, invalid("/%s in the image: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, invalid("/%s in the image is no regular file", path)
	}
	if st.Size > imageuser.MaxFile {
		return nil, invalid("/%s in the image has %d bytes, at most %d are read", path, st.Size, imageuser.MaxFile)
	}
	file, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("read /%s in the image: %w", path, err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, imageuser.MaxFile))
	if err != nil {
		return nil, fmt.Errorf("read /%s in the image: %w", path, err)
	}
	return data, nil
}
