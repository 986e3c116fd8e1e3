package cni

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crishim/internal/failpoint"
)

const (
	maxResult = 4 << 20  // bytes of a plugin's answer
	maxStderr = 32 << 10 // bytes of its messages that an error may carry
	maxLine   = 1 << 20  // bytes of one rule, as it is listed
	// drainDelay is how long a plugin's answer is waited for after its end, where a child of it holds the pipe.
	drainDelay = time.Second
	// delNice is the nice value of plugins that take a pod down: what else goes on, such as the start of others, goes first.
	delNice = 10
)

// pluginExec runs plugins for libcni, each in a process group of its own that dies whole with its context: libcni's own
// exec kills the plugin alone and then waits for the children that hold its pipes.
type pluginExec struct {
	version.PluginDecoder
	// inherited is open in every plugin (Own); nil before.
	inherited *os.File
}

var _ invoke.Exec = (*pluginExec)(nil)

// FindInPath implements invoke.Exec; it refuses a plugin name with a path separator.
func (*pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	return invoke.FindInPath(plugin, dirs)
}

// ExecPlugin implements invoke.Exec. A binary that is just being written is tried again until ctx ends or two seconds passed.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (stdout []byte, err error) {
	err = failpoint.Around("cni."+verbOf(environ)+"."+filepath.Base(path), func() (err error) {
		stdout, err = e.execPlugin(ctx, path, stdin, environ)
		return err
	})
	return stdout, err
}

// verbOf is what a plugin is asked to do.
func verbOf(environ []string) string {
	for _, variable := range environ {
		if verb, ok := strings.CutPrefix(variable, "CNI_COMMAND="); ok {
			return verb
		}
	}
	return ""
}

func (e *pluginExec) execPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for try := 0; ; try++ {
		stdout, _, err := program{path: path, stdin: stdin, environ: environ, inherits: e.inherited}.run(ctx)
		if !errors.Is(err, unix.ETXTBSY) || try == 20 {
			return stdout, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("plugin %s: %w", path, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func runPlugin(ctx context.Context, path string, stdin []byte, environ []string, args ...string) (stdout, stderr []byte, err error) {
	return program{path: path, args: args, stdin: stdin, environ: environ}.run(ctx)
}

// program is what is to be run.
type program struct {
	path          string
	args, environ []string
	stdin         []byte
	inherits      *os.File // open in it; nil for none
}

// run answers with the output, if the program succeeds.
func (p program) run(ctx context.Context) (stdout, stderr []byte, err error) {
	out := &cappedBuffer{limit: maxResult}
	stderr, err = p.runTo(ctx, out)
	if out.exceeded != nil {
		err = out.exceeded // how the plugin ended came of it
	}
	if err != nil {
		return nil, stderr, pluginError(ctx, p.path, err, out.Bytes(), stderr)
	}
	return out.Bytes(), stderr, nil
}

// readLines runs a program that answers with lines, which may be any number, and has read go through them. What read makes of
// them counts only without an error.
func readLines(ctx context.Context, read func(lines iter.Seq[string]), path string, args ...string) (stderr []byte, err error) {
	from, to := io.Pipe()
	done := make(chan error)
	go func() {
		lines := bufio.NewScanner(from)
		lines.Buffer(nil, maxLine)
		read(func(yield func(string) bool) {
			for lines.Scan() && yield(lines.Text()) {
			}
		})
		err := lines.Err()
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("a line of its output has more than %d bytes", maxLine)
		}
		_ = from.CloseWithError(err)
		done <- err
	}()
	stderr, err = program{path: path, args: args}.runTo(ctx, to)
	_ = to.Close()
	if unread := <-done; unread != nil {
		err = unread
	}
	if err != nil {
		return stderr, pluginError(ctx, path, err, nil, stderr)
	}
	return stderr, nil
}

// runTo runs the program in a process group of its own, to its end and, where it fails, that of all it started.
func (p program) runTo(ctx context.Context, stdout io.Writer) (stderr []byte, err error) {
	messages := &cappedBuffer{limit: maxStderr, discard: true}
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = p.environ
	cmd.Stdin = bytes.NewReader(p.stdin)
	cmd.WaitDelay = drainDelay // a child that has left the group may hold its input without reading it
	if p.inherits != nil {
		cmd.ExtraFiles = []*os.File{p.inherits}
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	output, err := readInto(stdout, cmd.StdoutPipe)
	if err != nil {
		return nil, err
	}
	said, err := readInto(messages, cmd.StderrPipe)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if verbOf(p.environ) == "DEL" {
		_ = unix.Setpriority(unix.PRIO_PGRP, cmd.Process.Pid, delNice)
	}
	go output.read()
	go said.read()
	killed := make(chan struct{})
	// Its pid is nobody else's until it is reaped.
	kill := func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	living := context.AfterFunc(ctx, func() { kill(); close(killed) })
	succeeded := endsWell(cmd.Process.Pid)
	late := time.AfterFunc(drainDelay, func() { output.close(); said.close() })
	<-output.done
	<-said.done
	late.Stop()
	if !living() {
		<-killed
		succeeded = false
	}
	if succeeded {
		time.AfterFunc(reapDelay, func() { _ = cmd.Wait() })
		return messages.Bytes(), nil
	}
	kill() // what a failed plugin left running must not work against the DEL that follows
	if err = cmd.Wait(); err == nil {
		err = ctx.Err() // it ended well as its time was up, and what it left was killed
	}
	return messages.Bytes(), err
}

// reapDelay is how long a program that ended well stays a zombie. Who reaps it at once, while its last thread is on its way out,
// goes round and round in the kernel over what /proc has of it: that was an eighth of the daemon's work for a pod.
const reapDelay = 20 * time.Millisecond

// endsWell waits for the end of a child, without reaping it, and says whether its exit status is 0.
func endsWell(pid int) bool {
	var info unix.Siginfo
	for {
		switch err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err {
		case nil:
			const cldExited, statusAt = 1, 24 // siginfo_t of SIGCHLD: si_code, and where si_status is
			status := *(*int32)(unsafe.Add(unsafe.Pointer(&info), statusAt))
			return info.Code == cldExited && status == 0
		case unix.EINTR:
		default:
			return false // Wait tells why
		}
	}
}

// pipe is an output of a program on its way to w.
type pipe struct {
	from io.ReadCloser
	w    io.Writer
	done chan struct{}
}

func readInto(w io.Writer, open func() (io.ReadCloser, error)) (*pipe, error) {
	from, err := open()
	return &pipe{from, w, make(chan struct{})}, err
}

// read ends with what is written, or with w, which breaks the pipe.
func (p *pipe) read() {
	_, _ = io.Copy(p.w, p.from)
	p.close()
	close(p.done)
}

// close ends read.
func (p *pipe) close() { _ = p.from.Close() }

// pluginError prefers what the plugin says of itself: a *types.Error on stdout, else its messages.
func pluginError(ctx context.Context, path string, err error, stdout, stderr []byte) error {
	if ctx.Err() != nil {
		return fmt.Errorf("plugin %s was killed, its time was up: %w", path, context.Cause(ctx))
	}
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && (said.Code != 0 || said.Msg != "") {
		return &said
	}
	if text := strings.TrimSpace(string(stderr)); text != "" {
		return fmt.Errorf("plugin %s: %w: %s", path, err, text)
	}
	return fmt.Errorf("plugin %s: %w", path, err)
}

// cappedBuffer keeps at most limit bytes; what is beyond fails the write, or is dropped with discard.
type cappedBuffer struct {
	// Not embedded: io.Copy would find bytes.Buffer's ReadFrom and pass Write by.
	buf      bytes.Buffer
	limit    int
	discard  bool
	exceeded error // what the write beyond has failed with
}

func (b *cappedBuffer) Bytes() []byte { return b.buf.Bytes() }

func (b *cappedBuffer) Write(p []byte) (int, error) {
	room := b.limit - b.buf.Len()
	if len(p) <= room {
		return b.buf.Write(p)
	}
	if !b.discard {
		b.exceeded = fmt.Errorf("it answered with more than %d bytes", b.limit)
		return 0, b.exceeded
	}
	_, _ = b.buf.Write(p[:room])
	return len(p), nil
}
