package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// listening is the socket of a monitor, which is this process, and the record of that.
func listening(t *testing.T) (dir string, listener *net.UnixListener, record Record) {
	t.Helper()
	dir = t.TempDir()
	socket, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	l, err := net.FileListener(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ticks, err := process.StartTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return dir, l.(*net.UnixListener), Record{Version: Version, PID: os.Getpid(), StartTicks: ticks}
}

// answerHello takes connections until one says hello, which it answers.
func answerHello(listener *net.UnixListener, record Record) error {
	for {
		accepted, err := listener.AcceptUnix()
		if err != nil {
			return err
		}
		conn := Conn{accepted}
		var request Request
		_ = conn.SetDeadline(time.Now().Add(time.Second)) // of those that only wait
		if _, err = conn.Receive(&request); err == nil {
			data, err := json.Marshal(Hello{Record: record})
			return errors.Join(err, conn.Send(Response{Result: data}), conn.Close())
		}
		_ = conn.Close()
	}
}

// As many as a socket takes may wait for a monitor that is stopped or has no processor: one more waits, too, and is not told that the
// monitor has ended.
func TestWhoFindsAMonitorsSocketFullWaits(t *testing.T) {
	dir, listener, record := listening(t)
	name := filepath.Join(dir, SocketName)
	for {
		conn, err := net.Dial("unix", name)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close() // it keeps its place
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := ConnectTo(ctx, dir, record); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while nobody is let in: %v", err)
	}
	go func() { _ = answerHello(listener, record) }()
	client, err := ConnectTo(t.Context(), dir, record)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
}

// A process with an environment that is larger than a socket's buffer is not sent where a monitor that is stopped reads nothing: who
// wants it to run, as a probe, waits no longer than it has time.
func TestAnExecIsGivenUpWhileItsRequestIsSent(t *testing.T) {
	dir, listener, record := listening(t)
	go func() { _ = answerHello(listener, record) }()
	client, err := ConnectTo(t.Context(), dir, record)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	large, err := json.Marshal(strings.Repeat("x", 8<<20))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := client.Exec(ctx, "c", large, Stdio{})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it waits still")
	}
}

func TestAMonitorThatDoesNotAnswerIsEndedAndReaped(t *testing.T) {
	for name, script := range map[string]string{"it ends": "exit 1", "it hangs": "exec sleep 1000"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			number := filepath.Join(dir, "number")
			program := filepath.Join(dir, "program")
			if err := os.WriteFile(program, []byte("#!/bin/sh\necho $$ >"+number+"\n"+script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			helper, err := os.Open(program)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = helper.Close() }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := Spawn(ctx, helper, &Config{Pod: "pod", Dir: filepath.Join(dir, "run"), StateRoot: dir}); err == nil {
				t.Fatal("it was started")
			}
			data, err := os.ReadFile(number)
			if err != nil {
				t.Skip("it was killed before it said its number") // on a machine that is busy
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				t.Skip(err)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d is there still: %v", pid, err)
			}
		})
	}
}
