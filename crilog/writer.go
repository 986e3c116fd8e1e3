package crilog

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Writer appends a container's output to its log. Its methods may be called at once from several goroutines; entries of
// different streams do not mix.
//
// A full or failing disk never holds the container up: the entries are dropped and counted, and an entry of which the
// disk took a part is completed before the next one.
type Writer struct {
	root, path string
	bound      int64 // bytes, 0 for none

	mu     sync.Mutex
	file   *os.File // nil once closed
	size   int64    // of file
	began  bool     // the file was empty when it was first opened
	left   Left     // the file before it
	buf    []byte   // rendering, reused
	rest   []byte   // the missing bytes of an entry that was written in part
	part   int64    // bytes of that entry that are in the file
	torn   bool     // the file does not end with a newline
	bytes  atomic.Uint64
	failed atomic.Uint64
	lost   atomic.Uint64
}

// Stats counts what a Writer did.
type Stats struct {
	// Bytes were written to the log, headers included; DroppedBytes were not because writing failed, in WriteErrors cases.
	Bytes        uint64
	WriteErrors  uint64
	DroppedBytes uint64
}

// Open opens the log as OpenFile does. An entry that a crash left without its end gets a newline, so that the next one
// stands on its own line. A log that would get longer than bound bytes (0: any length) is set aside and a new one begun.
func Open(root, path string, bound int64) (*Writer, error) {
	w := &Writer{root: root, path: path, bound: bound}
	if err := w.Reopen(); err != nil {
		return nil, err
	}
	return w, nil
}

// Reopen goes on in a new file at the path (CRI ReopenContainerLog, after the kubelet renamed the old one). From the moment that
// the new file is there the old one gets nothing more, since who follows the log reads it no further; with an error the old
// file stays in use.
func (w *Writer) Reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != nil && w.left.TakenBack(w.root, w.path, w.file) {
		w.goBack()
	}
	return w.reopen()
}

// reopen requires mu.
func (w *Writer) reopen() error {
	if w.file != nil {
		w.completeRest()
	}
	file, err := OpenFile(w.root, w.path)
	if err != nil {
		return err
	}
	if w.file != nil {
		w.cut() // before the size is read: it may be the same file
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return classify("look at log", w.path, err)
	}
	began := info.Size() == 0
	if w.file != nil {
		if old, err := w.file.Stat(); err == nil && os.SameFile(old, info) {
			began = w.began
		} else {
			w.left = Leave(w.file)
		}
		_ = w.file.Close()
	}
	w.file, w.size, w.began = file, info.Size(), began
	w.torn = !EndsWithNewline(file)
	return nil
}

// Close closes the log. Writing afterwards drops and counts.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	if TakenBack(w.root, w.path, w.file) {
		w.goBack()
	}
	w.completeRest()
	w.cut()
	err := w.file.Close()
	w.file = nil
	return err
}

// cut takes back an entry that a full disk let in only in part, where nothing will complete it.
func (w *Writer) cut() {
	if len(w.rest) > 0 && w.part > 0 {
		// Somebody may have made room by emptying the log.
		if info, err := w.file.Stat(); err == nil && info.Size() == w.size && w.file.Truncate(w.size-w.part) == nil {
			w.lost.Add(uint64(w.part))
		}
	}
	w.lost.Add(uint64(len(w.rest)))
	w.rest, w.part = nil, 0
}

// Stats returns the counters.
func (w *Writer) Stats() Stats {
	return Stats{Bytes: w.bytes.Load(), WriteErrors: w.failed.Load(), DroppedBytes: w.lost.Load()}
}

// WriteText appends output of the container as AppendText renders it.
func (w *Writer) WriteText(t time.Time, stream Stream, text []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = AppendText(w.buf[:0], t, stream, text)
	w.append(w.buf)
}

// append writes whole entries.
func (w *Writer) append(entries []byte) {
	if w.file == nil {
		w.lost.Add(uint64(len(entries)))
		return
	}
	if TakenBack(w.root, w.path, w.file) {
		w.goBack()
	}
	if !w.completeRest() {
		w.lost.Add(uint64(len(entries)))
		return
	}
	if w.full(len(entries)) {
		err := SetAside(w.root, w.path, w.file)
		if err == nil {
			err = w.reopen()
		}
		if err != nil { // a bound that holds only mostly bounds nothing
			w.failed.Add(1)
			w.lost.Add(uint64(len(entries)))
			return
		}
	}
	n, err := w.write(entries)
	if err == nil {
		return
	}
	w.failed.Add(1)
	left := entries[n:]
	if n > 0 && entries[n-1] != '\n' {
		end := bytes.IndexByte(left, '\n') + 1
		w.rest = slices.Clone(left[:end])
		w.part = int64(n - (bytes.LastIndexByte(entries[:n], '\n') + 1))
		left = left[end:]
	}
	w.lost.Add(uint64(len(left)))
}

// full says that n bytes more would be too many.
func (w *Writer) full(n int) bool {
	over := func() bool { return w.bound > 0 && w.size > 0 && w.size+int64(n) > w.bound }
	if !over() {
		return false
	}
	// Somebody may have made room by emptying the log.
	if info, err := w.file.Stat(); err == nil {
		w.size = info.Size()
	}
	return over()
}

// goBack goes on in the log that the kubelet has put in the place of the file, after what came into that meanwhile.
func (w *Writer) goBack() {
	old, rest, part, meanwhile := w.file, w.rest, w.part, int64(0)
	if w.began {
		meanwhile = w.size
	}
	w.file, w.rest, w.part = nil, nil, 0 // reopen neither closes nor completes it
	if err := w.reopen(); err != nil {
		w.file, w.rest, w.part = old, rest, part
		return
	}
	defer func() { _ = old.Close() }()
	n, err := int64(0), error(nil)
	if meanwhile > 0 && w.completeRest() {
		n, err = io.Copy(w.file, io.NewSectionReader(old, 0, meanwhile))
		w.size += n
	}
	if err != nil {
		w.failed.Add(1)
	}
	if n > 0 && n == meanwhile {
		w.rest, w.part = rest, part
		return
	}
	left := meanwhile - n + int64(len(rest))
	if n > 0 {
		w.rest, w.part = tornAt(old, n, meanwhile, rest)
		left -= int64(len(w.rest))
		w.torn = len(w.rest) == 0 && !EndsWithNewline(w.file)
	}
	w.lost.Add(uint64(left))
}

// tornAt is what is missing of the entry in which a copy of file ended, and how many bytes of it are before that. missing is what the
// file has not of its own last entry.
func tornAt(file io.ReaderAt, at, end int64, missing []byte) (rest []byte, part int64) {
	const longest = 2 * MaxContent // more than any entry has
	from := max(0, at-longest)
	piece := make([]byte, min(end, at+longest)-from)
	n, _ := file.ReadAt(piece, from)
	before, after := piece[:min(int64(n), at-from)], slices.Concat(piece[min(int64(n), at-from):n], missing)
	part = int64(len(before) - bytes.LastIndexByte(before, '\n') - 1)
	next := bytes.IndexByte(after, '\n')
	if part == 0 || next < 0 {
		return nil, 0
	}
	return after[:next+1], part
}

func (w *Writer) write(b []byte) (int, error) {
	n, err := w.file.Write(b)
	w.bytes.Add(uint64(n))
	w.size += int64(n)
	return n, err
}

// completeRest brings the file to the end of an entry and says whether it is there.
func (w *Writer) completeRest() bool {
	if len(w.rest) == 0 && w.torn {
		w.rest = []byte{'\n'}
	}
	w.torn = false
	if len(w.rest) == 0 {
		return true
	}
	n, err := w.write(w.rest)
	w.rest = w.rest[n:]
	if w.part > 0 {
		w.part += int64(n)
	}
	if err != nil {
		w.failed.Add(1)
	}
	if len(w.rest) > 0 {
		return false
	}
	w.part = 0
	return true
}

// Copy writes what comes from r, a pipe of the container, until it ends, and drains it also where the log cannot be
// written. A line appears when it is complete or longer than MaxContent; a last line without newline is a P entry. The
// error is r's, nil at its end.
func (w *Writer) Copy(stream Stream, r io.Reader) error {
	return w.copy(stream, r, func(text []byte) []byte { return text })
}

// CopyTerminal is Copy for a container with a terminal, whose line discipline writes "\r\n" for each newline: it is
// written as the newline that the process meant.
func (w *Writer) CopyTerminal(r io.Reader) error {
	return w.copy(Stdout, r, trimTerminal)
}

func (w *Writer) copy(stream Stream, r io.Reader, edit func([]byte) []byte) error {
	buf := make([]byte, 0, MaxContent)
	for {
		held := len(buf) // without a newline
		n, err := r.Read(buf[held:cap(buf)])
		now := time.Now()
		buf = buf[:held+n]
		cut := 0
		if i := bytes.LastIndexByte(buf[held:], '\n'); i >= 0 {
			cut = held + i + 1
		} else if len(buf) == cap(buf) {
			cut = len(buf)
			// A "\r\n" of a terminal is not torn apart.
			if buf[cut-1] == '\r' {
				cut--
			}
		}
		if err != nil {
			cut = len(buf)
		}
		if cut > 0 {
			w.WriteText(now, stream, edit(buf[:cut]))
			buf = buf[:copy(buf, buf[cut:])]
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// trimTerminal replaces each "\r\n" by "\n", in place.
func trimTerminal(text []byte) []byte {
	out := text[:0]
	for i, c := range text {
		if c == '\r' && i+1 < len(text) && text[i+1] == '\n' {
			continue
		}
		out = append(out, c)
	}
	return out
}
