package native

import (
	"bytes"
	"context"
	"testing"

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
