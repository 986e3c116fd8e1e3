// Package unpack turns the archive of an image's layer into a folder that overlay can stack.
//
// Archives are hostile. Every name is resolved by the kernel inside the layer's own folder (openat2 RESOLVE_IN_ROOT), as a
// chroot into it would, and every object is made anew by its parent's descriptor: nothing outside the folder is ever
// opened, linked, or given another mode. Decompression happens in this process. What an archive may cost is bounded by
// Limits, and by what the disk has (package space). After an error the folder holds part of the layer, and its owner removes it.
//
// A whiteout becomes a character device 0:0, an opaque folder gets trusted.overlay.opaque=y
// (https://docs.kernel.org/filesystems/overlayfs.html, opencontainers/image-spec layer.md).
package unpack

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crishim/engine/native/space"
)

// Limits bound what one layer may cost.
type Limits struct {
	// Bytes is the size of the archive without compression, and of the files in it, in bytes. 0 is the size of the file system
	// that it is unpacked to: more cannot be there, and what is not written, like what follows its end, costs time.
	Bytes int64
	// Reserve is what is kept free on that file system, 0 what package space says.
	Reserve int64
	// Entries is the number of objects in it.
	Entries int64
	// ZstdWindow is the memory that a zstd frame may ask for, in bytes.
	ZstdWindow uint64
}

// DefaultLimits are far above real images and far below what harms a node. How well an archive was compressed says nothing:
// an image of a disk, of zeros mostly, is tens of thousands of times larger than its compressed form.
var DefaultLimits = Limits{Entries: 5_000_000, ZstdWindow: 128 << 20}

// Layer is what came out of an archive.
type Layer struct {
	// DiffID is the digest of the archive without compression.
	DiffID digest.Digest
	// Bytes is its size.
	Bytes int64
	// Implied are folders that the archive uses without an entry of their own, each after those that it lies in. They were made as
	// root's, mode 0755; a lower layer may know better, see Inherit.
	Implied []string
}

// Unpack reads a layer's archive, plain, gzip or zstd, to its end and makes its content in dir, which is empty. With a nil
// dir it only checks the archive's limits, of which Bytes must be given, and finds its DiffID. count is told of the bytes that came out; it may be nil.
//
// Errors of the archive have class ErrInvalidArgument, those of limits and of a full disk ErrResourceExhausted.
func Unpack(ctx context.Context, dir *os.File, compressed io.Reader, limits Limits, count func(n int)) (Layer, error) {
	plain, closePlain, err := Decompress(compressed, limits.ZstdWindow)
	if err != nil {
		return Layer{}, archiveError(err)
	}
	defer closePlain()
	sum := sha256.New()
	out := &bounded{ctx: ctx, plain: plain, limits: &limits, sum: sum, count: count}
	archive := bufio.NewReaderSize(out, 128<<10)
	var implied []string
	if dir != nil {
		room := space.On(dir, limits.Reserve)
		if limits.Bytes == 0 {
			if _, limits.Bytes, err = room.Left(); err != nil {
				return Layer{}, archiveError(err)
			}
		}
		if implied, err = untar(ctx, dir, archive, &limits, room); err != nil {
			return Layer{}, archiveError(err)
		}
	}
	// What follows the end of the archive is part of its digest.
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return Layer{}, archiveError(err)
	}
	return Layer{DiffID: digest.NewDigest(digest.SHA256, sum), Bytes: out.n, Implied: implied}, nil
}

// archiveError gives an error its class, unless it has one.
func archiveError(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errdefs.IsInvalidArgument(err),
		errdefs.IsResourceExhausted(err), errdefs.IsUnavailable(err), errdefs.IsDataLoss(err), errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("unpack the layer: %w", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("unpack the layer: the disk is full, free some space: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("unpack the layer: %w: %w", err, errdefs.ErrInternal)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("unpack the layer (device nodes and whiteouts need root with CAP_MKNOD and CAP_SYS_ADMIN): %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("unpack the layer: the archive is damaged or of no known form: %w: %w", err, errdefs.ErrInvalidArgument)
}
