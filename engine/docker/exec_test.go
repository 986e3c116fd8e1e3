package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

// An engine that has been asked to start an exec does so after its caller has left: nobody would end that process.
//
// Rows: S51 (part)
func TestAnExecThatStartsAfterItsCallerLeftIsKilled(t *testing.T) {
	for name, answered := range map[string]bool{"answered before": true, "not answered before": false} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.put(testContainer, running)
			e, sink := watched(t, f.socket, nil)
			sink.waitReady(t)
			cmd := exec.Command("/bin/sleep", "1000")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			var pid atomic.Int64
			asked, left := make(chan struct{}), make(chan struct{})
			f.mu.Lock()
			f.fail["/containers/"+testContainer+"/exec"] = func(w http.ResponseWriter) {
				w.WriteHeader(http.StatusCreated)
				_, _ = io.WriteString(w, `{"Id":"late"}`)
			}
			f.fail["/exec/late/json"] = func(w http.ResponseWriter) {
				w.Header().Set("Content-Type", "application/json")
				p := int(pid.Load())
				_ = json.NewEncoder(w).Encode(container.ExecInspect{ExecID: "late", Running: p > 0, Pid: p})
			}
			f.fail["/exec/late/start"] = func(w http.ResponseWriter) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				answer := func() {
					_, _ = fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
				}
				if answered {
					answer()
				}
				close(asked)
				<-left
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				pid.Store(int64(cmd.Process.Pid))
				if !answered {
					answer()
				}
				_, _ = io.Copy(io.Discard, conn)
			}
			f.mu.Unlock()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-asked
				if answered {
					time.Sleep(50 * time.Millisecond) // its stream is read by then
				}
				cancel()
			}()
			if _, err := e.Exec(ctx, testContainer, &engine.ExecSpec{Command: []string{"x"}}); err == nil {
				t.Error("an exec that was cancelled has an exit code")
			}
			close(left)
			ended := make(chan error, 1)
			eventually(t, 10*time.Second, "it is started", func() bool { return pid.Load() > 0 })
			go func() { ended <- cmd.Wait() }()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				_ = cmd.Process.Kill()
				t.Error("it runs on")
			}
		})
	}
}

// So is one that has closed its output, and of which nobody can say whether it has ended when its caller leaves.
//
// Rows: S51 (part)
func TestAnExecWithoutOutputWhoseInspectFailsIsKilled(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var asked atomic.Int32
	f.mu.Lock()
	f.fail["/containers/"+testContainer+"/exec"] = func(w http.ResponseWriter) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"quiet"}`)
	}
	f.fail["/exec/quiet/json"] = func(w http.ResponseWriter) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(container.ExecInspect{ExecID: "quiet", Running: true, Pid: cmd.Process.Pid})
	}
	f.fail["/exec/quiet/start"] = func(w http.ResponseWriter) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	}
	f.mu.Unlock()
	if code, err := e.Exec(t.Context(), testContainer, &engine.ExecSpec{Command: []string{"x"}}); err == nil {
		t.Errorf("the exit code is %d", code)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("it runs on")
	}
}

// Whoever takes no output any more, though he has not left, leaves a process that would wait for him for ever.
func TestAnExecWhoseOutputNobodyTakesIsKilled(t *testing.T) {
	f := newFake(t)
	f.put(testContainer, running)
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	f.mu.Lock()
	f.fail["/containers/"+testContainer+"/exec"] = func(w http.ResponseWriter) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"full"}`)
	}
	f.fail["/exec/full/json"] = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(container.ExecInspect{ExecID: "full", Running: true, Pid: cmd.Process.Pid})
	}
	f.fail["/exec/full/start"] = func(w http.ResponseWriter) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n\x01\x00\x00\x00\x00\x00\x00\x01x")
		<-ended // it holds its output open
	}
	f.mu.Unlock()
	broken := errors.New("nobody reads")
	spec := &engine.ExecSpec{Command: []string{"x"}, Streams: engine.Streams{Stdout: failingWriter{broken}}}
	if _, err := e.Exec(t.Context(), testContainer, spec); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it runs on")
		_ = cmd.Process.Kill()
		<-ended
	}
}

// pausingWriter is a client that takes each piece only after a while.
type pausingWriter struct {
	bytes.Buffer
	pause time.Duration
}

func (w *pausingWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	return w.Buffer.Write(p)
}

// A client that takes its time gets all that dockerd had when it told of the exec's end, which may be a megabyte and more.
//
// Rows: S43 (part)
func TestASlowClientGetsAllOutputOfAnExecThatHasEnded(t *testing.T) {
	for name, pause := range map[string]time.Duration{"one long pause": engine.DrainTimeout + time.Second/2, "many short ones": engine.DrainTimeout / 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			client := &pausingWriter{pause: pause}
			stream := types.NewHijackedResponse(ours, "")
			output := pump(&stream, &engine.Streams{TTY: true, Stdout: client}, true)
			pieces := int(2*engine.DrainTimeout/pause) + 2
			go func() {
				for range pieces {
					_, _ = theirs.Write(make([]byte, outputChunk))
				}
				_ = theirs.Close()
			}()
			if err := drain(t.Context(), output, &stream); err != nil {
				t.Error(err)
			}
			if got, want := client.Len(), pieces*outputChunk; got != want {
				t.Errorf("the client got %d bytes of %d", got, want)
			}
		})
	}
}

// A stream on which nothing comes is not waited for.
//
// Rows: S43 (part)
func TestAnExecsOutputThatStaysOpenIsCut(t *testing.T) {
	ours, theirs := net.Pipe()
	var client bytes.Buffer
	stream := types.NewHijackedResponse(ours, "")
	output := pump(&stream, &engine.Streams{TTY: true, Stdout: &client}, true)
	_, _ = io.WriteString(theirs, "word")
	if err := drain(t.Context(), output, &stream); err != nil || client.String() != "word" {
		t.Errorf("got %q, %v", &client, err)
	}
	if _, err := theirs.Write([]byte("late")); err == nil {
		t.Error("it is read on")
	}
}
