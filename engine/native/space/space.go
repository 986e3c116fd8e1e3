// Package space keeps some of the file system free that images, checkpoints and images' volumes are written to.
//
// An image may be as large as the disk can hold. What it would leave no room for is not its own, though: records, logs and
// writable layers of containers are on the same disk. So whoever writes content that others send makes a Room, and asks it as
// the bytes come: an archive that unpacks without end is ended while everything else can still be written.
package space

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// look is how many bytes are written between two looks at the file system.
	look = 1 << 20
	// share is the part of a file system that is kept free, of its inodes too, mostReserve what is enough of the bytes on a large one.
	share       = 50
	mostReserve = 1 << 30
)

// Room is the file system of a file or folder, for one goroutine that writes to it.
type Room struct {
	at      *os.File
	reserve int64
	ahead   int64 // bytes that may be written until the next look
}

// On is the room on the file system of an open file or folder. reserve is what is kept free, 0 a fiftieth and 1 GiB at most.
func On(at *os.File, reserve int64) *Room { return &Room{at: at, reserve: reserve} }

// Left is how many bytes may still be written, less than none where it is too full already, and how many the whole file
// system has.
func (r *Room) Left() (left, size int64, err error) {
	fs, err := r.ask()
	if err != nil {
		return 0, 0, err
	}
	left, size = r.bytes(fs)
	return left, size, nil
}

func (r *Room) ask() (*unix.Statfs_t, error) {
	var fs unix.Statfs_t
	for {
		err := unix.Fstatfs(int(r.at.Fd()), &fs)
		if err == nil {
			return &fs, nil
		}
		if err != unix.EINTR { //nolint:errorlint // of the system call itself
			return nil, fmt.Errorf("ask for the free space of %s: %w", r.at.Name(), err)
		}
	}
}

func (r *Room) bytes(fs *unix.Statfs_t) (left, size int64) {
	size = int64(fs.Blocks) * fs.Bsize
	reserve := r.reserve
	if reserve == 0 {
		reserve = min(size/share, mostReserve)
	}
	return int64(fs.Bavail)*fs.Bsize - reserve, size
}

// Take is called with the number of bytes that are about to be written: ErrResourceExhausted where they would leave too little.
func (r *Room) Take(n int64) error {
	if r.ahead -= n; r.ahead > 0 || n == 0 {
		return nil
	}
	left, err := r.fits(n, 0)
	if err != nil {
		return err
	}
	r.ahead = min(look, left)
	return nil
}

// Fits is Take for a whole tree that is about to be written, of so many bytes in so many files.
func (r *Room) Fits(bytes, files int64) error {
	_, err := r.fits(bytes, files)
	return err
}

func (r *Room) fits(n, files int64) (left int64, err error) {
	fs, err := r.ask()
	if err != nil {
		return 0, err
	}
	if fs.Files > 0 && int64(fs.Ffree)-files < int64(fs.Files/share) { // some file systems have no bound to them
		return 0, fmt.Errorf("the disk has %d inodes left, of which some are kept free: remove some files: %w", fs.Ffree, errdefs.ErrResourceExhausted)
	}
	left, _ = r.bytes(fs)
	if left < n {
		return 0, fmt.Errorf("the disk has %s left for images, and the rest is kept free: free some space: %w", Text(max(0, left)), errdefs.ErrResourceExhausted)
	}
	return left, nil
}

// Writer writes to w, a file there, what leaves enough.
func (r *Room) Writer(w io.Writer) io.Writer { return &writer{w, r} }

type writer struct {
	to   io.Writer
	room *Room
}

func (w *writer) Write(b []byte) (int, error) {
	if err := w.room.Take(int64(len(b))); err != nil {
		return 0, err
	}
	return w.to.Write(b)
}

// Text is a number of bytes for a message.
func Text(bytes int64) string {
	unit := "bytes"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if bytes < 10<<10 {
			break
		}
		bytes, unit = bytes>>10, next
	}
	return fmt.Sprintf("%d %s", bytes, unit)
}
