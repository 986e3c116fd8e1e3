package stats

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// closeAfter is how long a cgroup's files stay open unread: the kubelet comes every 10 s.
	closeAfter = time.Minute
	// openShare of the descriptors that this process may have, and at most openMost, are for kept files. Each holds about
	// 5 KiB of the kernel's memory.
	openShare = 4
	openMost  = 16 << 10
)

// openBudget is how many more files may be kept open.
func openBudget() *atomic.Int64 {
	var budget atomic.Int64
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		budget.Store(int64(min(limit.Cur/openShare, openMost)))
	}
	return &budget
}

// keptFiles are the files of one cgroup, or of one pod's network, that stay open between readings: a file's opening costs forty times its reading. They
// belong to whoever holds the lock of the cgroup's history.
type keptFiles struct {
	budget *atomic.Int64
	byName map[string]int // the names differ, whichever hierarchy they are of
	ended  bool           // nothing is kept any more
}

// read reads the file mount + path + name from its start. The kernel gives all of a cgroup file at once, as far as it fits into
// buf. A file that is absent, or whose cgroup went between opening and reading, is ErrNotFound.
func (k *keptFiles) read(mount, path, name string, buf []byte, keep bool) ([]byte, error) {
	return k.readBy(pread, mount, path, name, buf, keep)
}

// readLines is read for a file of many lines, of which the kernel gives a page at once.
func (k *keptFiles) readLines(mount, path, name string, buf []byte, keep bool) ([]byte, error) {
	return k.readBy(preadAll, mount, path, name, buf, keep)
}

func (k *keptFiles) readBy(pread func(fd int, buf []byte) (int, error), mount, path, name string, buf []byte, keep bool) ([]byte, error) {
	if fd, ok := k.byName[name]; ok {
		if n, err := pread(fd, buf); err == nil {
			return buf[:n], nil
		}
		k.drop(name, fd) // ENODEV: the cgroup has gone, and there may be another of its name
	}
	path = mount + path + name
	fd, err := open(path)
	if err != nil {
		return nil, gone(path, err)
	}
	n, err := pread(fd, buf)
	if err != nil || !keep || !k.take(name, fd) {
		_ = unix.Close(fd)
	}
	if err != nil {
		return nil, gone(path, err)
	}
	return buf[:n], nil
}

func (k *keptFiles) take(name string, fd int) bool {
	if k.ended {
		return false
	}
	if k.budget.Add(-1) < 0 {
		k.budget.Add(1)
		return false
	}
	if k.byName == nil {
		k.byName = map[string]int{}
	}
	k.byName[name] = fd
	return true
}

func (k *keptFiles) drop(name string, fd int) {
	_ = unix.Close(fd)
	delete(k.byName, name)
	k.budget.Add(1)
}

// close lets go of all.
func (k *keptFiles) close() {
	for name, fd := range k.byName {
		k.drop(name, fd)
	}
}

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func pread(fd int, buf []byte) (int, error) { return preadAt(fd, buf, 0) }

// preadAll reads until nothing comes, or right away where what came is so short that it was no full page: then that was all.
func preadAll(fd int, buf []byte) (int, error) {
	const line = 512 // at most
	read := 0
	for {
		n, err := preadAt(fd, buf[read:], read)
		if read += n; err != nil || n == 0 || read < os.Getpagesize()-line || read == len(buf) {
			return read, err
		}
	}
}

func preadAt(fd int, buf []byte, at int) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, int64(at))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
