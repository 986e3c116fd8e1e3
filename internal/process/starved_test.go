package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/internal/starving"
)

// A process that cannot be asked for is not gone.
//
// Rows: R16 (part)
func TestWithoutDescriptorsNothingIsGone(t *testing.T) {
	ticks, err := StartTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	asked := func(when string) {
		h, err := Open(os.Getpid(), ticks)
		if err == nil {
			h.Close()
		}
		if !Starved(err) || errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: opened with %v", when, err)
		}
		if Gone(os.Getpid(), ticks) {
			t.Errorf("%s: this process is gone", when)
		}
	}
	starving.Opening(t, 0, 0, func() { asked("with the last descriptor") })
	given := starving.Process(t)
	asked("without any")
	given()
	if Gone(os.Getpid(), ticks) || !Gone(os.Getpid(), ticks+1) || !Gone(0, 0) {
		t.Error("it is not told apart who is gone")
	}
}

func TestStarved(t *testing.T) {
	for err, want := range map[error]bool{
		nil: false, unix.EAGAIN: false, unix.ENOENT: false, os.ErrProcessDone: false,
		&fs.PathError{Op: "open", Path: "/", Err: unix.EMFILE}: true, fmt.Errorf("read: %w", unix.ENFILE): true, unix.ENOMEM: true, unix.ENOBUFS: true,
	} {
		if Starved(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
