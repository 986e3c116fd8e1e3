package server

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// write writes in pieces, and wants each to be taken: the process would block else.
func write(t *testing.T, s *outputStream, piece []byte, times int) {
	t.Helper()
	for range times {
		if n, err := s.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("%d of %d, %v", n, len(piece), err)
		}
	}
}

// S42: output without end is cut where the reply would not fit a message, of both streams together, and the reply says so.
//
// Rows: S42 (part)
func TestS42EndlessOutputIsCut(t *testing.T) {
	var all execOutputs
	o := newExecOutput(&all)
	write(t, &o.stderr, []byte("first\n"), 1)
	piece := bytes.Repeat([]byte("0123456"), 10_000)
	write(t, &o.stdout, piece, 300) // 21 MB
	write(t, &o.stderr, []byte("last\n"), 1)
	stdout, stderr, dropped := o.reply()
	if len(stdout)+len("first\n") != execOutputLimit || int64(len(stdout))+dropped != int64(300*len(piece)+len("last\n")) {
		t.Errorf("%d bytes are kept, %d dropped", len(stdout), dropped)
	}
	if !bytes.Equal(stdout[:70_000], piece) || !bytes.Equal(stdout[140_000:210_000], piece) {
		t.Error("what is kept is not what was written")
	}
	if !strings.HasPrefix(string(stderr), "first\n\ncrishim: the output was cut, ") {
		t.Errorf("stderr is %q", stderr)
	}
	if reply := (&runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: -1}); proto.Size(reply) > maxMessageSize {
		t.Errorf("the reply has %d bytes", proto.Size(reply))
	}
	write(t, &o.stdout, piece, 1) // a child that holds it open
	if n := o.end(); n != execOutputLimit || all.kept != 0 {
		t.Errorf("%d bytes were kept, %d still are", n, all.kept)
	}
}

// What many calls keep at once is bounded, and none is without its share.
//
// Rows: S42 (part)
func TestS42ManyEndlessOutputsAreCut(t *testing.T) {
	const calls = 50
	var all execOutputs
	var outputs []*execOutput
	var writers sync.WaitGroup
	for range calls {
		o := newExecOutput(&all)
		outputs = append(outputs, o)
		writers.Go(func() { write(t, &o.stdout, make([]byte, 32<<10), 100) })
	}
	writers.Wait()
	late := newExecOutput(&all)
	write(t, &late.stdout, make([]byte, 10<<10), 1)
	if stdout, stderr, dropped := late.reply(); len(stdout) != 10<<10 || len(stderr) != 0 || dropped != 0 {
		t.Errorf("of a probe's output beside them %d bytes are kept, and %q", len(stdout), stderr)
	}
	kept := 0
	for _, o := range outputs {
		stdout, _, _ := o.reply()
		if len(stdout) < execOutputShare {
			t.Errorf("of one only %d bytes are kept", len(stdout))
		}
		kept += len(stdout)
	}
	if kept != execOutputsLimit+calls*execOutputShare {
		t.Errorf("%d bytes are kept", kept)
	}
	for _, o := range append(outputs, late) {
		o.end()
	}
	if all.kept != 0 {
		t.Errorf("%d bytes are kept for ever", all.kept)
	}
}
