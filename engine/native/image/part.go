package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crishim/engine/native/space"
	"crishim/internal/atomicfile"
)

const (
	// fetchTries is how often a blob is asked for without getting a byte; each byte starts the count anew.
	fetchTries = 5
	// firstPause is between the first two tries; each further one is twice as long.
	firstPause = 500 * time.Millisecond
	// corruptTries is how often a blob may turn out to be another one.
	corruptTries = 2
)

// blobSource is what blobs come from.
type blobSource interface {
	// open streams a blob from offset on, and what the stream has again before that.
	open(ctx context.Context, d digest.Digest, offset int64) (*blobStream, error)
}

// part is a blob under way: a file that grows while others read it. It stays when the work ends early, to go on with.
type part struct {
	desc  ocispec.Descriptor
	file  *os.File
	room  *space.Room
	whole bool // it is in its place already, to be checked only
	// fetched counts what comes of it now, and of others.
	fetched *atomic.Uint64

	mu      sync.Mutex
	grown   chan struct{} // closed at the next change
	written int64         // bytes that may be read; the last one only once the digest was right
	ended   bool
	err     error
}

// syncFile is replaced by a test, whose disk loses what is written.
var syncFile = (*os.File).Sync

// errCorrupt is content that does not have the digest it was asked for by.
var errCorrupt = fmt.Errorf("it does not have this digest: %w", errdefs.ErrDataLoss)

// openPart opens the part of a blob, or the whole blob where it is here. The caller holds s.fetching.
func (s *Store) openPart(desc ocispec.Descriptor) (*part, error) {
	p := &part{desc: desc, fetched: &s.counts.fetched, grown: make(chan struct{})}
	s.mu.Lock()
	have := s.content.blobs[desc.Digest]
	s.mu.Unlock()
	var err error
	if p.whole = have != nil && have.size == desc.Size; p.whole {
		p.file, err = os.Open(s.blobPath(desc.Digest))
	} else {
		p.file, err = os.OpenFile(s.partPath(desc.Digest), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, diskError("open blob "+string(desc.Digest), err)
	}
	p.room = space.On(p.file, s.options.Limits.Layer.Reserve)
	return p, nil
}

// drop removes a part, or a whole blob, that turned out to be something else.
func (s *Store) drop(p *part) error {
	if !p.whole {
		return os.Remove(s.partPath(p.desc.Digest))
	}
	s.mu.Lock()
	delete(s.content.blobs, p.desc.Digest)
	s.mu.Unlock()
	return os.Remove(s.blobPath(p.desc.Digest))
}

// set publishes a change to the readers.
func (p *part) set(written int64, ended bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.written, p.ended, p.err = written, ended, err
	close(p.grown)
	p.grown = make(chan struct{})
}

// fill brings the part to its end and into its place. Readers see the bytes as they come.
func (s *Store) fill(ctx context.Context, p *part, source blobSource, at *progress) (err error) {
	defer func() {
		if err != nil {
			p.set(0, true, err)
		}
	}()
	sum := sha256.New()
	have, err := p.resume(ctx, sum, at)
	if err != nil {
		return fmt.Errorf("read what was fetched of blob %s: %w", p.desc.Digest, err)
	}
	if !p.whole {
		have, err = p.fetch(ctx, source, sum, have, at)
		if errors.Is(err, errCorrupt) {
			return errors.Join(err, s.drop(p))
		}
		if err != nil {
			return err
		}
	}
	if have != p.desc.Size || digest.NewDigest(digest.SHA256, sum) != p.desc.Digest {
		// Nothing of it may be gone on with.
		return errors.Join(fmt.Errorf("blob %s: %w", p.desc.Digest, errCorrupt), s.drop(p))
	}
	if p.whole {
		p.set(have, true, nil)
		return nil
	}
	err = at.onDisk(func() error {
		if err := syncFile(p.file); err != nil {
			// Memory still has what the disk has lost, and a second fsync would succeed.
			return errors.Join(err, s.drop(p))
		}
		if err := os.Rename(s.partPath(p.desc.Digest), s.blobPath(p.desc.Digest)); err != nil {
			return err
		}
		if err := atomicfile.SyncDir(s.path(blobsDir, string(digest.SHA256))); err != nil {
			return err
		}
		return s.addBlob(p.desc.Digest)
	})
	if err != nil {
		return diskError("store blob "+string(p.desc.Digest), err)
	}
	p.set(have, true, nil)
	return nil
}

// resume takes in what an earlier try left.
func (p *part) resume(ctx context.Context, sum hash.Hash, at *progress) (have int64, err error) {
	info, err := p.file.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() > p.desc.Size && !p.whole {
		return 0, p.file.Truncate(0)
	}
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return have, err
		}
		n, err := p.file.ReadAt(buf, have)
		sum.Write(buf[:n])
		have += int64(n)
		at.fetch(n)
		p.grow(have)
		if errors.Is(err, io.EOF) {
			return have, nil
		}
		if err != nil {
			return have, err
		}
	}
}

// grow lets readers go on, short of the last byte.
func (p *part) grow(have int64) { p.set(max(0, min(have, p.desc.Size-1)), false, nil) }

// fetch appends what is missing, from as many answers as it takes.
func (p *part) fetch(ctx context.Context, source blobSource, sum hash.Hash, have int64, at *progress) (int64, error) {
	tries, pause := 0, firstPause
	for have < p.desc.Size {
		n, err := p.fetchOnce(ctx, source, sum, have, at)
		have += n
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return have, context.Cause(ctx)
		case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errdefs.IsInvalidArgument(err),
			errdefs.IsResourceExhausted(err), errdefs.IsFailedPrecondition(err), errors.Is(err, errCorrupt):
			return have, fmt.Errorf("fetch blob %s: %w", p.desc.Digest, err)
		case n > 0:
			tries, pause = 0, firstPause
		}
		if tries++; tries == fetchTries {
			return have, fmt.Errorf("fetch blob %s: %w", p.desc.Digest, err)
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return have, context.Cause(ctx)
		}
	}
	return have, nil
}

// fetchOnce appends what one answer brings.
func (p *part) fetchOnce(ctx context.Context, source blobSource, sum hash.Hash, have int64, at *progress) (n int64, err error) {
	stream, err := source.open(ctx, p.desc.Digest, have)
	if err != nil {
		return 0, err
	}
	defer stream.close()
	buf := make([]byte, 128<<10)
	for stream.again > 0 {
		got, err := stream.Read(buf[:min(int64(len(buf)), stream.again)])
		stream.again -= int64(got)
		at.touch() // or a large blob would never be done, by who waits for a shorter time than this takes
		if err != nil && stream.again > 0 {
			stream.broken()
			return 0, stream.failed(err)
		}
	}
	for {
		got, rerr := stream.Read(buf)
		if have+n+int64(got) > p.desc.Size {
			stream.broken()
			return n, fmt.Errorf("more than %d bytes came: %w", p.desc.Size, errCorrupt)
		}
		if got > 0 {
			if err := p.room.Take(int64(got)); err != nil {
				return n, err
			}
			if _, err := p.file.WriteAt(buf[:got], have+n); err != nil {
				return n, diskError("write", err)
			}
			sum.Write(buf[:got])
			n += int64(got)
			p.fetched.Add(uint64(got))
			at.fetch(got)
			p.grow(have + n)
		}
		switch {
		case errors.Is(rerr, io.EOF) && have+n == p.desc.Size:
			if digest.NewDigest(digest.SHA256, sum) != p.desc.Digest {
				stream.broken()
			}
			return n, nil
		case errors.Is(rerr, io.EOF):
			rerr = io.ErrUnexpectedEOF
			fallthrough
		case rerr != nil:
			stream.broken()
			return n, stream.failed(rerr)
		}
	}
}

// failed names where the answer came from.
func (b *blobStream) failed(err error) error {
	if b.endpoint == nil {
		return err
	}
	return b.endpoint.Failed(fmt.Errorf("the answer broke off: %w", err))
}

// reader reads a part from its start, waiting for what is to come. It ends once the digest was right, and fails when it
// was not. While waiting it runs idle, which returns a function to run before going on.
func (p *part) reader(ctx context.Context, idle func() func() error) io.Reader {
	return &partReader{ctx: ctx, part: p, idle: idle}
}

type partReader struct {
	ctx    context.Context
	part   *part
	idle   func() (goOn func() error)
	offset int64
}

func (r *partReader) Read(b []byte) (int, error) {
	var goOn func() error
	for {
		r.part.mu.Lock()
		written, ended, err, grown := r.part.written, r.part.ended, r.part.err, r.part.grown
		r.part.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case r.offset < written:
			if goOn != nil {
				if err := goOn(); err != nil {
					return 0, err
				}
			}
			n, err := r.part.file.ReadAt(b[:min(int64(len(b)), written-r.offset)], r.offset)
			r.offset += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		case ended:
			return 0, io.EOF
		}
		if goOn == nil {
			goOn = r.idle()
		}
		select {
		case <-grown:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}
