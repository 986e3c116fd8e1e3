package monitor

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// StartError is a process that could not start. ExitCode is what CRI reports for it: 127 (no such command), 126 (it
// cannot be executed) or 128 (anything else).
type StartError struct {
	ExitCode int
	Message  string
}

func (e *StartError) Error() string { return e.Message }

// classes are the words for errors on the wire; released words stay.
var classes = map[string]error{
	"InvalidArgument":    errdefs.ErrInvalidArgument,
	"NotFound":           errdefs.ErrNotFound,
	"AlreadyExists":      errdefs.ErrAlreadyExists,
	"FailedPrecondition": errdefs.ErrFailedPrecondition,
	"NotImplemented":     errdefs.ErrNotImplemented,
	"ResourceExhausted":  errdefs.ErrResourceExhausted,
	"Unavailable":        errdefs.ErrUnavailable,
	"Internal":           errdefs.ErrInternal,
}

// ToWire prepares an error for sending.
func ToWire(err error) *Error {
	e := &Error{Message: err.Error()}
	if start := new(StartError); errors.As(err, &start) {
		e.ExitCode = start.ExitCode
	}
	for word, class := range classes {
		if errors.Is(err, class) {
			e.Class = word
		}
	}
	return e
}

// Err is the error as received: a *StartError in its chain where it has an exit code, and its class.
func (e *Error) Err() error {
	switch class := classes[e.Class]; {
	case e.ExitCode != 0:
		return &StartError{ExitCode: e.ExitCode, Message: e.Message}
	case class != nil:
		return &wireError{e.Message, class}
	}
	return fmt.Errorf("%s: %w", e.Message, errdefs.ErrUnknown)
}

// wireError has the class's text in its message already.
type wireError struct {
	message string
	class   error
}

func (e *wireError) Error() string { return e.message }
func (e *wireError) Unwrap() error { return e.class }
