package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/imageset"
	"crishim/engine/native/image"
)

// adminSocket is how a command reaches the stores of a running daemon. It is root's alone.
func adminSocket(c *config.Config) string { return filepath.Join(c.RunDir, "admin.sock") }

// told is one line of what the daemon tells a command.
type told struct {
	Line     string          `json:"line,omitempty"`     // for standard output
	Data     []byte          `json:"data,omitempty"`     // likewise, where it is no text
	Progress string          `json:"progress,omitempty"` // for standard error
	Image    *image.Progress `json:"image,omitempty"`    // likewise, of an image
	Error    string          `json:"error,omitempty"`    // why the command fails; the last line
	Verdict  int             `json:"verdict,omitempty"`  // the command's exit status, of what it printed; the last line
}

// The commands that a daemon takes.
const (
	carryPath  = "/images/carry"
	verifyPath = "/images/verify"
	workPath   = "/images/work"
)

// listenAdmin makes the admin socket, before anything else makes files: its rights come from the process's umask. nil where
// it cannot be made: only commands are missing then.
func listenAdmin(c *config.Config) net.Listener {
	l, err := listenHTTP("unix://" + adminSocket(c))
	if err != nil {
		klog.ErrorS(err, "There is no admin socket: commands do not reach this daemon")
		return nil
	}
	return l
}

// serveAdmin answers on the admin socket until ctx ends.
func serveAdmin(ctx context.Context, l net.Listener, set *imageset.Set, engines nodeEngines) error {
	if l == nil {
		return nil
	}
	mux := http.NewServeMux()
	handle(mux, carryPath, func(ctx context.Context, what carrying, _ io.Reader, answer *answering) error {
		return what.inDaemon(ctx, set, engines, answer)
	})
	handle(mux, verifyPath, func(ctx context.Context, what verifying, _ io.Reader, answer *answering) error {
		return what.inDaemon(ctx, engines, answer)
	})
	handle(mux, workPath, func(ctx context.Context, what imageWork, in io.Reader, answer *answering) error {
		return what.inDaemon(ctx, engines, in, answer)
	})
	return serveOn(ctx, l, mux)
}

// handle answers a command with what it prints, as it does, and how it ends. What the command is comes in a line of JSON, then what it
// reads.
func handle[W any](mux *http.ServeMux, path string, do func(ctx context.Context, what W, in io.Reader, answer *answering) error) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var what W
		in := bufio.NewReaderSize(r.Body, 1<<20)
		line, err := in.ReadSlice('\n')
		if err == nil || errors.Is(err, io.EOF) {
			err = json.Unmarshal(line, &what)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil { // it answers while it reads
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer := &answering{to: w}
		err = do(r.Context(), what, in, answer)
		var found verdict
		switch {
		case errors.As(err, &found):
			answer.tell(told{Verdict: int(found)})
		case err != nil:
			answer.tell(told{Error: err.Error()})
		}
	})
}

// inDaemon carries between the daemon's engines, and tells how far it is.
func (what *carrying) inDaemon(ctx context.Context, set *imageset.Set, engines nodeEngines, answer *answering) error {
	on := map[string]engine.Images{}
	for _, e := range engines {
		on[e.Name()] = e
	}
	for _, name := range []string{what.From, what.To} {
		if on[name] == nil {
			return fmt.Errorf("engine %s is not on in the running daemon: add it to engines and restart crishim, or stop it while this runs", name)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	telling.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			for _, p := range set.Underway() {
				if p.To == what.To {
					answer.tell(told{Progress: progressLine(&p)})
				}
			}
		}
	})
	return what.do(ctx, set, on[what.From], answer)
}

// answering writes each line at once.
type answering struct {
	mu sync.Mutex
	to http.ResponseWriter
}

func (a *answering) tell(t told) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = json.NewEncoder(a.to).Encode(t) // a command that is gone has cancelled the request
	_ = http.NewResponseController(a.to).Flush()
}

// Write implements io.Writer for what is standard output.
func (a *answering) Write(b []byte) (int, error) {
	a.tell(told{Line: string(b)})
	return len(b), nil
}

// dataTo is standard output that is no text.
type dataTo struct{ *answering }

func (d dataTo) Write(b []byte) (int, error) {
	d.tell(told{Data: b})
	return len(b), nil
}

func adminClient(c *config.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", adminSocket(c))
	}}}
}

// carryInDaemon has the running daemon do it, which has the native engine's store.
func carryInDaemon(ctx context.Context, c *config.Config, fs *pflag.FlagSet, name string, refs []string, out io.Writer) error {
	what, err := carryingOf(fs, name, refs)
	if err != nil {
		return err
	}
	return askDaemon(ctx, c, carryPath, what, nil, nil, out)
}

// askDaemon has the running daemon do a command, and prints what that says. in is what the command reads, if anything.
func askDaemon(ctx context.Context, c *config.Config, path string, what any, in io.Reader, progress func(image.Progress), out io.Writer) error {
	line, err := json.Marshal(what)
	if err != nil {
		return err
	}
	body := io.Reader(bytes.NewReader(append(line, '\n')))
	if in != nil {
		body = io.MultiReader(body, in)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://crishim"+path, body)
	if err != nil {
		return err
	}
	reply, err := adminClient(c).Do(request)
	if err != nil {
		return fmt.Errorf("the native engine's images are in use, and no running daemon answers on %s: %w", adminSocket(c), err)
	}
	defer func() { _ = reply.Body.Close() }()
	if reply.StatusCode == http.StatusNotFound {
		return fmt.Errorf("the running daemon is of an earlier version and does not know this; restart it, or stop it while this runs: %w", errdefs.ErrNotImplemented)
	}
	if reply.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(reply.Body, 1<<16))
		return fmt.Errorf("the running daemon refuses: %s: %w", bytes.TrimSpace(text), errdefs.ErrInvalidArgument)
	}
	lines := json.NewDecoder(reply.Body)
	for {
		var t told
		switch err := lines.Decode(&t); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the running daemon ended meanwhile: %w; give the command again", err)
		case t.Verdict != 0:
			return verdict(t.Verdict)
		case t.Error != "":
			return relayed(t.Error)
		}
		if _, err := io.WriteString(out, t.Line); err != nil {
			return err
		}
		if _, err := out.Write(t.Data); err != nil {
			return err
		}
		if t.Progress != "" {
			_, _ = fmt.Fprintln(os.Stderr, t.Progress)
		}
		if t.Image != nil {
			progress(*t.Image)
		}
	}
}
