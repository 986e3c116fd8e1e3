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
	"os/exec"
	"path/filepath"
	"strings"
	"time"

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
)

// pluginExec runs plugins for libcni, each in a process group of its own that dies whole with its context: libcni's own
// exec kills the plugin alone and then waits for the children that hold its pipes.
type pluginExec struct{ version.PluginDecoder }

var _ invoke.Exec = (*pluginExec)(nil)

// FindInPath implements invoke.Exec; it refuses a plugin name with a path separator.
func (*pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	return invoke.FindInPath(plugin, dirs)
}

// ExecPlugin implements invoke.Exec. A binary that is just being written is tried again until ctx ends or two seconds passed.
func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (stdout []byte, err error) {
	err = failpoint.Around("cni."+verbOf(environ)+"."+filepath.Base(path), func() (err error) {
		stdout, err = execPlugin(ctx, path, stdin, environ)
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

func execPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for try := 0; ; try++ {
		stdout, _, err := runPlugin(ctx, path, stdin, environ)
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
	out := &cappedBuffer{limit: maxResult}
	stderr, err = runTo(ctx, out, path, stdin, environ, args...)
	if out.exceeded != nil {
		err = out.exceeded // how the plugin ended came of it
	}
	if err != nil {
		return nil, stderr, pluginError(ctx, path, err, out.Bytes(), stderr)
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
	stderr, err = runTo(ctx, to, path, nil, nil, args...)
	_ = to.Close()
	if unread := <-done; unread != nil {
		err = unread
	}
	if err != nil {
		return stderr, pluginError(ctx, path, err, nil, stderr)
	}
	return stderr, nil
}

// runTo runs a program in a process group of its own, to its end and, where it fails, that of all it started.
func runTo(ctx context.Context, stdout io.Writer, path string, stdin []byte, environ []string, args ...string) (stderr []byte, err error) {
	messages := &cappedBuffer{limit: maxStderr, discard: true}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environ
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = stdout, messages
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = drainDelay
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() && ctx.Err() == nil {
		err = nil // it ended well; something it started lives on with its pipes
	}
	if err != nil && cmd.Process != nil {
		// What a failed plugin left running must not work against the DEL that follows.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	}
	return messages.Bytes(), err
}

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
