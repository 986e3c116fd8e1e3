package native

import (
	"bytes"
	"context"
	"testing"
	"time"

	"crishim/engine"
)

// A process that has ended in time has ended: that its children hold its output open beyond the client's time makes no timeout of
// it, such as of the kubelet's probes, whose second is less than the wait for output.
//
// Rows: S43 (part)
func TestAnExecThatEndedInTimeIsNoTimeout(t *testing.T) {
	var out bytes.Buffer
	streams := &engine.Streams{Stdout: &out}
	pipes, err := newPipes(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer pipes.handedOver() // of the child, which stays
	if _, err := pipes.theirs.Stdout.WriteString("done"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := drain(ctx, pipes.copy(streams), pipes); err != nil {
		t.Error(err)
	}
}

// slowWriter is a client that takes nothing before it is let.
type slowWriter struct {
	bytes.Buffer
	begun, let chan struct{}
	told       bool
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if !w.told {
		w.told = true
		close(w.begun)
	}
	<-w.let
	return w.Buffer.Write(p)
}

// A client that takes its time, such as the other end of `kubectl exec pod -- cat file` on a slow line, gets all that was written
// before the process ended, with children that hold the output open too.
//
// Rows: S43 (part)
func TestASlowClientGetsAllOutputOfAnExecThatHasEnded(t *testing.T) {
	for name, held := range map[string]bool{"a child holds the output": true, "nobody does": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := &slowWriter{begun: make(chan struct{}), let: make(chan struct{})}
			streams := &engine.Streams{Stdout: client}
			pipes, err := newPipes(streams)
			if err != nil {
				t.Fatal(err)
			}
			defer pipes.handedOver()
			output := pipes.copy(streams)
			sent := []byte("first")
			_, _ = pipes.theirs.Stdout.Write(sent)
			<-client.begun
			rest := bytes.Repeat([]byte("x"), 60<<10) // less than the pipe takes
			_, _ = pipes.theirs.Stdout.Write(rest)
			if !held {
				pipes.handedOver()
			}
			time.AfterFunc(engine.DrainTimeout+time.Second/2, func() { close(client.let) })
			if err := drain(t.Context(), output, pipes); err != nil {
				t.Error(err)
			}
			if got, want := client.Len(), len(sent)+len(rest); got != want {
				t.Errorf("the client got %d bytes of %d", got, want)
			}
		})
	}
}

// Children that write on without end are not waited for longer than others.
//
// Rows: S43 (part)
func TestAChildThatWritesWithoutEndDoesNotHoldUpAnExec(t *testing.T) {
	client := &slowWriter{begun: make(chan struct{}), let: make(chan struct{})}
	close(client.let)
	streams := &engine.Streams{Stdout: client}
	pipes, err := newPipes(streams)
	if err != nil {
		t.Fatal(err)
	}
	output := pipes.copy(streams)
	child := pipes.theirs.Stdout
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := child.Write([]byte("y\n")); err != nil {
				return // nobody reads any more
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if err := drain(t.Context(), output, pipes); err != nil {
		t.Error(err)
	}
	<-ended
	pipes.handedOver()
}

// A client whose terminal has no size, as that of a script, leaves the container's as it is.
func TestATerminalIsNotMadeToHaveNoSize(t *testing.T) {
	sizes := make(chan engine.TerminalSize, 4)
	want := engine.TerminalSize{Width: 80, Height: 24}
	for _, size := range []engine.TerminalSize{{}, {Width: 80}, want, {Height: 24}} {
		sizes <- size
	}
	close(sizes)
	var set []engine.TerminalSize
	follow(nil, sizes, func(size engine.TerminalSize) { set = append(set, size) })
	if len(set) != 1 || set[0] != want {
		t.Errorf("set to %v", set)
	}
}
