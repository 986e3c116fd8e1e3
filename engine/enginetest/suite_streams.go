package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"crishim/crilog"
	"crishim/engine"

	"github.com/containerd/errdefs"
)

var logTests = map[string]func(*suite){
	"both streams are in the log, in CRI's form": func(s *suite) {
		spec := s.containerSpec(s.Commands.Print("to-stdout", "to-stderr"))
		s.exited(s.runContainer(spec))
		s.eventually("both lines are logged", func() bool { return len(s.log(spec.LogPath)) >= 2 })
		got := map[crilog.Stream]string{}
		for _, e := range s.log(spec.LogPath) {
			got[e.Stream] += string(e.Content)
			if e.Partial || time.Since(e.Time).Abs() > time.Hour {
				s.Errorf("entry %+v", e)
			}
		}
		if got[crilog.Stdout] != "to-stdout" || got[crilog.Stderr] != "to-stderr" {
			s.Errorf("got %q", got)
		}
	},
	"a log without a path is not written": func(s *suite) {
		spec := s.containerSpec(s.Commands.Print("a", "b"))
		dir := filepath.Dir(spec.LogPath)
		spec.LogPath = ""
		s.exited(s.runContainer(spec))
		if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
			s.Errorf("%v, %v", files, err)
		}
	},
	"every line is logged once, in order, over a rotation": func(s *suite) {
		spec := s.containerSpec(s.Commands.Tick)
		id := s.runContainer(spec)
		s.eventually("lines are logged", func() bool { return len(s.log(spec.LogPath)) >= 3 })
		rotated := spec.LogPath + ".1"
		s.ok(os.Rename(spec.LogPath, rotated), "rotate")
		s.ok(s.Engine.ReopenLog(s.Context(), id), "reopen")
		old, err := os.Stat(rotated)
		s.ok(err, "look at the rotated log")
		s.eventually("lines are logged to the new file", func() bool { return exists(spec.LogPath) && len(s.log(spec.LogPath)) >= 3 })
		s.ok(s.Engine.StopContainer(s.Context(), id, 5*time.Second), "stop")
		if now, err := os.Stat(rotated); err != nil || now.Size() != old.Size() {
			s.Errorf("the old file grew from %d to %v, %v", old.Size(), now, err)
		}
		for i, e := range append(s.log(rotated), s.log(spec.LogPath)...) {
			if want := fmt.Sprintf("tick %d", i); string(e.Content) != want {
				s.Fatalf("line %q, want %q", e.Content, want)
			}
		}
	},
	"the log of a container that does not run is not reopened": func(s *suite) {
		spec := s.containerSpec(s.Commands.Exit(0))
		id := s.createContainer(spec).ID
		s.class(s.Engine.ReopenLog(s.Context(), id), errdefs.IsFailedPrecondition, "reopen before the start")
		_, err := s.Engine.StartContainer(s.Context(), id, spec)
		s.ok(err, "start")
		// The engine itself may say so before the last of the log is written; the sink is told after that.
		s.eventually("the sink is told of the exit", func() bool {
			st, ok := s.seen.container(id)
			return ok && st.State == engine.ContainerExited
		})
		s.class(s.Engine.ReopenLog(s.Context(), id), errdefs.IsFailedPrecondition, "reopen after the exit")
	},
}

// log is the whole entries of a log file; none when it is absent.
func (s *suite) log(path string) []crilog.Entry {
	s.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		s.Fatal(err)
	}
	var entries []crilog.Entry
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // being written
		}
		e, err := crilog.ParseEntry(line)
		if err != nil {
			s.Fatalf("line %q: %v", line, err)
		}
		entries = append(entries, e)
	}
	return entries
}

var execTests = map[string]func(*suite){
	"the exit code is the process's": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		for _, code := range []int{0, 1, 42, 255} {
			got, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Exit(code)})
			if err != nil || got != code {
				s.Errorf("exit %d: %d, %v", code, got, err)
			}
		}
	},
	"a program that does not exist is an error or a code": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		code, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: []string{"/nonexistent/program"}})
		if err == nil && code != 126 && code != 127 && code != 128 {
			s.Errorf("code %d", code)
		}
		if st := s.status(id); st.State != engine.ContainerRunning {
			s.Errorf("the container: %+v", st)
		}
	},
	"streams go where they belong": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		var stdout, stderr bytes.Buffer
		code, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{
			Command: s.Commands.Print("out", "err"), Streams: engine.Streams{Stdout: &stdout, Stderr: &stderr},
		})
		if err != nil || code != 0 || stdout.String() != "out\n" || stderr.String() != "err\n" {
			s.Errorf("%d, %v, %q, %q", code, err, &stdout, &stderr)
		}
		stdout.Reset()
		code, err = s.Engine.Exec(s.Context(), id, &engine.ExecSpec{
			Command: s.Commands.Cat, Streams: engine.Streams{Stdin: strings.NewReader("through"), Stdout: &stdout},
		})
		if err != nil || code != 0 || stdout.String() != "through" {
			s.Errorf("cat: %d, %v, %q", code, err, &stdout)
		}
		code, err = s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Print("nobody", "listens")})
		if err != nil || code != 0 {
			s.Errorf("without streams: %d, %v", code, err)
		}
	},
	"all output is delivered before the return": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		const lines = 20_000
		var stdout bytes.Buffer
		code, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Lines(lines), Streams: engine.Streams{Stdout: &stdout}})
		got := strings.Fields(stdout.String())
		if err != nil || code != 0 || len(got) != lines || got[lines-1] != fmt.Sprint(lines) {
			s.Errorf("%d, %v, %d lines", code, err, len(got))
		}
	},
	"the end of the input is not the end of a terminal's output": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		const lines = 20_000
		var stdout bytes.Buffer
		code, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{
			Command: s.Commands.Lines(lines), Streams: engine.Streams{TTY: true, Stdin: strings.NewReader(""), Stdout: &stdout},
		})
		if got := strings.Fields(stdout.String()); err != nil || code != 0 || len(got) != lines || got[lines-1] != fmt.Sprint(lines) {
			s.Errorf("%d, %v, %d lines", code, err, len(got))
		}
	},
	"a context that ends kills the process": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		ctx, cancel := context.WithTimeout(s.Context(), 500*time.Millisecond)
		defer cancel()
		const marker = 98_765_431
		s.within(0, slack, "the exec", func() {
			_, err := s.Engine.Exec(ctx, id, &engine.ExecSpec{Command: s.Commands.Sleep(marker)})
			s.class(err, isCanceled, "exec")
		})
		if s.RealProcesses {
			s.eventually("the process is gone", func() bool { return !someProcessSays(fmt.Sprint(marker)) })
		}
		if st := s.status(id); st.State != engine.ContainerRunning {
			s.Errorf("the container: %+v", st)
		}
	},
	"children that keep the output open do not hold up the return": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		var stdout bytes.Buffer
		s.within(0, engine.DrainTimeout+slack, "the exec", func() {
			code, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Hold(60), Streams: engine.Streams{Stdout: &stdout}})
			if err != nil || code != 0 {
				s.Errorf("%d, %v", code, err)
			}
		})
	},
	"nothing is run in a container that does not run": func(s *suite) {
		spec := s.containerSpec(s.Commands.Exit(0))
		id := s.createContainer(spec).ID
		_, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Exit(0)})
		s.class(err, errdefs.IsFailedPrecondition, "exec before the start")
		_, err = s.Engine.StartContainer(s.Context(), id, spec)
		s.ok(err, "start")
		s.exited(id)
		_, err = s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Exit(0)})
		s.class(err, errdefs.IsFailedPrecondition, "exec after the exit")
	},
	"attach joins the main process, and the end of a stdin-once stream is its end of input": func(s *suite) {
		spec := s.containerSpec(s.Commands.Cat)
		spec.Stdin, spec.StdinOnce = true, true
		id := s.runContainer(spec)
		input, typist := io.Pipe()
		stdout := &lockedBuffer{}
		ended := make(chan error, 1)
		go func() {
			ended <- s.Engine.Attach(s.Context(), id, &engine.Streams{Stdin: input, Stdout: stdout})
		}()
		_, err := io.WriteString(typist, "hello\n")
		s.ok(err, "type")
		s.eventually("the echo comes", func() bool { return stdout.String() == "hello\n" })
		s.ok(typist.Close(), "end the input")
		select {
		case err := <-ended:
			s.ok(err, "attach")
		case <-time.After(patience):
			s.Fatal("attach goes on after the process ended")
		}
		if st := s.exited(id); st.ExitCode != 0 {
			s.Errorf("%+v", st)
		}
	},
	"the end of a stream that is not stdin-once ends the attach and leaves the container alone": func(s *suite) {
		spec := s.containerSpec(s.Commands.Cat)
		spec.Stdin = true
		id := s.runContainer(spec)
		for range 2 {
			input, typist := io.Pipe()
			stdout := &lockedBuffer{}
			ended := make(chan error, 1)
			go func() {
				ended <- s.Engine.Attach(s.Context(), id, &engine.Streams{Stdin: input, Stdout: stdout})
			}()
			_, err := io.WriteString(typist, "hello\n")
			s.ok(err, "type")
			s.eventually("the echo comes", func() bool { return stdout.String() == "hello\n" })
			s.ok(typist.Close(), "end the input")
			select {
			case err := <-ended:
				s.ok(err, "attach")
			case <-time.After(patience):
				s.Fatal("attach goes on after the end of its input")
			}
		}
		if st := s.status(id); st.State != engine.ContainerRunning {
			s.Errorf("%+v", st)
		}
	},
	"a context that ends detaches and leaves the container alone": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		ctx, cancel := context.WithTimeout(s.Context(), 300*time.Millisecond)
		defer cancel()
		s.within(0, slack, "attach", func() {
			s.class(s.Engine.Attach(ctx, id, &engine.Streams{Stdout: io.Discard}), isCanceled, "attach")
		})
		if st := s.status(id); st.State != engine.ContainerRunning {
			s.Errorf("%+v", st)
		}
	},
}

// lockedBuffer is read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// someProcessSays looks for a word in the command lines of this machine.
func someProcessSays(word string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for arg := range bytes.SplitSeq(data, []byte{0}) {
			if string(arg) == word {
				return true
			}
		}
	}
	return false
}
