package server

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// delivered is the output of a reply as a client gets it, after which nothing of it is kept.
func delivered(t *testing.T, reply *execReply, code int32) (stdout, stderr []byte) {
	t.Helper()
	sent := reply.encode()
	var got runtimeapi.ExecSyncResponse
	if err := proto.Unmarshal(sent.Materialize(), &got); err != nil || got.ExitCode != code {
		t.Errorf("exit code %d, %v", got.ExitCode, err)
	}
	sent.Free()
	if reply.owed.left != 0 {
		t.Errorf("%d bytes are still kept of what was sent", reply.owed.left)
	}
	return got.Stdout, got.Stderr
}

func (a *execOutputs) now() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kept
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
	left, dropped := o.reply(-1)
	stdout, stderr := delivered(t, left, -1)
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
	left, dropped := late.reply(0)
	if stdout, stderr := delivered(t, left, 0); len(stdout) != 10<<10 || len(stderr) != 0 || dropped != 0 {
		t.Errorf("of a probe's output beside them %d bytes are kept, and %q", len(stdout), stderr)
	}
	kept, given := 0, 0
	most := slices.MaxFunc(outputs, func(a, b *execOutput) int { return a.taken - b.taken })
	outputs = append([]*execOutput{most}, slices.DeleteFunc(outputs, func(o *execOutput) bool { return o == most })...)
	for _, o := range outputs {
		left, _ := o.reply(3)
		if o.end(); o == most {
			if left = nil; all.kept != execOutputsLimit {
				t.Errorf("%d bytes are kept while none was sent", all.kept)
			}
			// Nobody sends it: what it took is given back all the same.
			for end := time.Now().Add(time.Minute); time.Now().Before(end); {
				runtime.GC()
				if all.now() < execOutputsLimit {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			given = execOutputsLimit - all.now()
			continue
		}
		stdout, _ := delivered(t, left, 3)
		if len(stdout) < execOutputShare {
			t.Errorf("of one only %d bytes are kept", len(stdout))
		}
		kept += len(stdout)
	}
	if given == 0 || kept+given != execOutputsLimit+(calls-1)*execOutputShare {
		t.Errorf("%d bytes are kept, and %d were of a reply that was not sent", kept, given)
	}
	for _, o := range append(outputs, late) {
		o.end()
	}
	if left := all.now(); left != 0 {
		t.Errorf("%d bytes are kept for ever", left)
	}
}
