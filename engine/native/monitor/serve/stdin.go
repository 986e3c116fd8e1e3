package serve

import (
	"io"
	"os"
	"sync"
	"time"
)

// stdin is the writing end of a container's standard input, shared by the attached clients.
type stdin struct {
	once     bool
	terminal bool

	mu      sync.Mutex
	file    *os.File // nil without, or once closed
	writers map[*os.File]struct{}
}

// newStdin takes the pipe, or shares the terminal.
func newStdin(pipe, terminal *os.File, once bool) *stdin {
	s := &stdin{once: once, file: pipe, writers: map[*os.File]struct{}{}}
	if terminal != nil {
		s.file, s.terminal = terminal, true
	}
	return s
}

func (s *stdin) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file != nil
}

// close ends the input: the container reads its end once it has read what was written. A terminal stays: it has no end
// but the hang-up.
func (s *stdin) close() {
	if !s.terminal {
		s.end()
	}
}

// end is for a container that has exited.
func (s *stdin) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return
	}
	if !s.terminal { // which the output closes
		_ = s.file.Close()
	}
	s.file = nil
	for writer := range s.writers {
		_ = writer.Close()
	}
}

// copy writes what comes from r, until its end, or until stop is called. The input ends with it where it is for one
// client only; where it goes on without this client, left is closed once all that came from r is written.
func (s *stdin) copy(r io.Reader) (left <-chan struct{}, stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil, func() {}
	}
	// A duplicate, so that giving up one client's write leaves the others alone.
	writer, err := pollable(s.file)
	if err != nil {
		return nil, func() {}
	}
	s.writers[writer] = struct{}{}
	ended := make(chan struct{})
	go func() {
		// However it ends, the client is gone or the container reads no more: that ends this client's input.
		_, err := io.Copy(onlyWriter{writer}, r)
		s.mu.Lock()
		delete(s.writers, writer)
		_ = writer.Close()
		s.mu.Unlock()
		if s.once {
			s.close()
		}
		if err == nil && (!s.once || s.terminal) {
			close(ended)
		}
	}()
	return ended, func() { _ = writer.SetWriteDeadline(time.Unix(1, 0)) }
}

// onlyWriter keeps io.Copy from splice, which would hold a pipe's content inside the kernel with no way to give it up.
type onlyWriter struct{ io.Writer }
