package engine

import (
	"io"
	"time"
)

// DrainTimeout bounds the wait for an exec's output after its process has ended, where its children keep it open.
const DrainTimeout = 2 * time.Second

// ExecSpec is a process to run in a container.
type ExecSpec struct {
	Command []string
	Streams
}

// Streams are the ends of an exec or attach. A nil stream is not wanted. With a TTY there is no Stderr.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	TTY    bool
	// Resize delivers terminal sizes until it is closed; nil where there is no TTY.
	Resize <-chan TerminalSize
}

// TerminalSize is in characters.
type TerminalSize struct {
	Width, Height uint16
}
