// Package crilog owns the CRI log file: how an entry is written, split, parsed, and how the file is opened at a path that
// a hostile pod may have prepared.
//
// A log is a sequence of entries, one a line (kubelet, "CRI logging format"):
//
//	2016-10-06T00:17:09.669794202Z stdout F the content
//
// Tag F ends a line of the container, tag P says that the line goes on in the next entry of the same stream. Rendering is
// pure: the same bytes at the same time always give the same entry, on which the exactly-once copy of Docker's logs rests.
//
// Callers that hold a container's output open a Writer and feed it with Copy or WriteText. Callers that keep account of
// offsets themselves (logpump) render with AppendText and open the file with OpenFile. The package imports nothing heavy,
// so that a small monitor process can carry it.
package crilog

import (
	"bytes"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// MaxContent is the most bytes of content in one entry; longer lines are written as P entries (containerd's
// max_container_log_line_size).
const MaxContent = 16 << 10

// Stream names the output an entry came from.
type Stream string

// The streams of CRI.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Entry is one parsed line of a log.
type Entry struct {
	Time   time.Time
	Stream Stream
	// Partial says that the container's line goes on in the stream's next entry (tag P).
	Partial bool
	// Content has no trailing newline. It shares the memory that was parsed.
	Content []byte
}

// AppendEntry appends one entry to dst. The content holds no newline (AppendText splits). The time is written in UTC, so
// that the entry does not depend on the host's zone.
func AppendEntry(dst []byte, t time.Time, stream Stream, partial bool, content []byte) []byte {
	dst = t.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	if partial {
		dst = append(dst, " P "...)
	} else {
		dst = append(dst, " F "...)
	}
	dst = append(dst, content...)
	return append(dst, '\n')
}

// AppendText appends the entries for output of a container: every newline ends an F entry, a rest without newline becomes
// a P entry, and what is longer than MaxContent is cut. Each byte of text but the newlines appears exactly once.
func AppendText(dst []byte, t time.Time, stream Stream, text []byte) []byte {
	for len(text) > 0 {
		line, rest, full := bytes.Cut(text, []byte{'\n'})
		for len(line) > MaxContent {
			dst = AppendEntry(dst, t, stream, true, line[:MaxContent])
			line = line[MaxContent:]
		}
		dst = AppendEntry(dst, t, stream, !full, line)
		text = rest
	}
	return dst
}

// ParseEntry parses one line, with or without its newline. ErrInvalidArgument where it is no entry.
func ParseEntry(line []byte) (Entry, error) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Entry{}, malformed("no time")
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return Entry{}, malformed("no stream")
	}
	tags, content, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return Entry{}, malformed("no tag")
	}
	var e Entry
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Entry{}, malformed("bad time")
	}
	// Its offset may lead a time out of the years that entries, which are in UTC, can tell.
	if year := t.UTC().Year(); year < 0 || year > 9999 {
		return Entry{}, malformed("bad time")
	}
	e.Time = t
	switch e.Stream = Stream(stream); e.Stream {
	case Stdout, Stderr:
	default:
		return Entry{}, malformed("unknown stream")
	}
	// Further tags may follow after colons; the first one is P or F.
	switch tag, _, _ := bytes.Cut(tags, []byte{':'}); string(tag) {
	case "P":
		e.Partial = true
	case "F":
	default:
		return Entry{}, malformed("unknown tag")
	}
	if bytes.IndexByte(content, '\n') >= 0 {
		return Entry{}, malformed("more than one line")
	}
	e.Content = content
	return e, nil
}

func malformed(what string) error {
	return fmt.Errorf("parse CRI log entry: %s: %w", what, errdefs.ErrInvalidArgument)
}
