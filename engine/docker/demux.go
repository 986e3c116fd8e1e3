package docker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/pkg/stdcopy"
)

const (
	// frameHeader is before each payload of Docker's output: the stream's number, three zeros, the payload's length.
	frameHeader = 8
	// demuxBuffer is how much is read at once, outputChunk how much is written at once.
	demuxBuffer = 64 << 10
	outputChunk = 32 << 10
	// Output is in bulk once bulkReads reads have followed each other within bulkGap. Frames are of a few KiB, what a pipe held
	// when dockerd looked, and each would cost a wake-up here and at the client: so they are collected for bulkPause.
	bulkReads = 16
	bulkGap   = time.Millisecond
	bulkPause = time.Millisecond
)

var demuxBuffers = sync.Pool{New: func() any { return new([demuxBuffer]byte) }}

// demux copies Docker's output to its two streams until it ends: stdcopy.StdCopy for much output in small frames, of which
// all that has arrived for one stream is written at once. Its errors are of the source or of a writer.
func demux(stdout, stderr io.Writer, source io.Reader) error {
	d := &demuxer{stdout: stdout, stderr: stderr, to: io.Discard}
	buf := demuxBuffers.Get().(*[demuxBuffer]byte)
	defer demuxBuffers.Put(buf)
	for quick := 0; ; {
		begin := time.Now()
		n, err := source.Read(buf[:])
		if werr := d.take(buf[:n]); werr != nil {
			return werr
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case time.Since(begin) > bulkGap:
			quick = 0
		case quick < bulkReads:
			quick++
		case n < demuxBuffer/4:
			time.Sleep(bulkPause)
		}
	}
}

// demuxer finds the frames, however they are cut.
type demuxer struct {
	stdout, stderr io.Writer
	head           [frameHeader]byte
	have           int       // bytes of head
	left           int       // bytes of the payload still to come
	to             io.Writer // where it goes
}

// take handles what has arrived. It moves payloads of one stream together within p.
func (d *demuxer) take(p []byte) error {
	run := p[:0]
	for len(p) > 0 {
		if d.left > 0 {
			n := min(d.left, len(p))
			if len(run) == 0 {
				run = p[:0]
			}
			run = append(run, p[:n]...) // to the left of where they were
			d.left -= n
			p = p[n:]
			continue
		}
		n := copy(d.head[d.have:], p)
		d.have += n
		p = p[n:]
		if d.have < frameHeader {
			break
		}
		d.have, d.left = 0, int(binary.BigEndian.Uint32(d.head[4:]))
		to, err := d.stream(stdcopy.StdType(d.head[0]))
		if to != d.to || err != nil {
			if werr := writeOut(d.to, run); werr != nil {
				return werr
			}
			run, d.to = p[:0], to
		}
		if err != nil {
			return err
		}
	}
	return writeOut(d.to, run)
}

func (d *demuxer) stream(number stdcopy.StdType) (io.Writer, error) {
	switch number {
	case stdcopy.Stdin, stdcopy.Stdout:
		return d.stdout, nil
	case stdcopy.Stderr:
		return d.stderr, nil
	case stdcopy.Systemerr: // dockerd's own words are no output
		return io.Discard, nil
	}
	return nil, fmt.Errorf("the engine sent output of an unknown stream %d: %w", number, errdefs.ErrDataLoss)
}

func writeOut(to io.Writer, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), outputChunk)
		if _, err := to.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
