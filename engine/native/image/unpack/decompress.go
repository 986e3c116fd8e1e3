package unpack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"crishim/engine/native/space"
)

// The first bytes of what layers are compressed with (RFC 1952, RFC 8878). Media types are not asked: registries and
// builders label layers wrongly, and the DiffID says whether the right bytes came out.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// skippable zstd frames (0x184D2A50 to 5F) may come first.
	zstdSkip = []byte{0x2a, 0x4d, 0x18}
)

// Form is how something is compressed.
type Form string

// The forms.
const (
	Plain Form = ""
	Gzip  Form = "gzip"
	Zstd  Form = "zstd"
)

// Compression tells the form by the first four bytes.
func Compression(magic []byte) Form {
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		return Gzip
	case bytes.HasPrefix(magic, zstdMagic), len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], zstdSkip):
		return Zstd
	}
	return Plain
}

// Decompress finds out how in is compressed, and undoes it: gzip, zstd, or nothing. window is the memory that a zstd frame
// may ask for. closePlain must be called.
func Decompress(in io.Reader, window uint64) (plain io.Reader, closePlain func(), err error) {
	buffered := bufio.NewReaderSize(in, 64<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) { // less than 4 bytes are no archive, which its reader will say
		return nil, nil, err
	}
	switch Compression(magic) {
	case Gzip:
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case Zstd:
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window))
		if err != nil {
			return nil, nil, err
		}
		return zstdReader{z}, z.Close, nil
	}
	return buffered, func() {}, nil
}

// zstdReader tells a frame that asks for too much apart from a damaged one.
type zstdReader struct{ *zstd.Decoder }

func (z zstdReader) Read(p []byte) (int, error) {
	n, err := z.Decoder.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = fmt.Errorf("a zstd frame needs more memory than is allowed: %w: %w", err, errdefs.ErrResourceExhausted)
	}
	return n, err
}

// bounded reads what came out of the decompressor: it holds it to the limits and hashes it.
type bounded struct {
	ctx    context.Context
	plain  io.Reader
	limits *Limits
	sum    hash.Hash
	count  func(n int)
	n      int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.plain.Read(p)
	b.n += int64(n)
	if b.n > b.limits.Bytes {
		return 0, fmt.Errorf("it is larger than %s without compression: %w", space.Text(b.limits.Bytes), errdefs.ErrResourceExhausted)
	}
	b.sum.Write(p[:n])
	if b.count != nil && n > 0 {
		b.count(n)
	}
	return n, err
}
