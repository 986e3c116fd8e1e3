package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// Streams through the kubelet, by both of its protocols, and logs while they are rotated.
var kubeletStreamFamily = kubeletFamily{
	pods: map[string]string{
		"streams": `
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: IMAGE, command: [testserver, on-term, "0"]}
  - {name: pipe, image: IMAGE, stdin: true, command: [sh, -c, "while read x; do echo got $x; echo heard $x >&2; done"]}
  - {name: terminal, image: IMAGE, stdin: true, tty: true, command: [sh, -c, "while read x; do echo got $x at $(stty size); done"]}
  - {name: once, image: IMAGE, stdin: true, stdinOnce: true, command: [sh, -c, "md5sum; exec testserver on-term 0"]}
  - {name: bulk-spdy, image: IMAGE, stdin: true, stdinOnce: true, command: [sh, -c, "head -c 4194304 | md5sum; exec testserver on-term 0"]}
  - {name: bulk-websocket, image: IMAGE, stdin: true, stdinOnce: true, command: [sh, -c, "head -c 4194304 | md5sum; exec testserver on-term 0"]}
  - {name: echo, image: IMAGE, command: [testserver, tcp, ":7"], readinessProbe: {tcpSocket: {port: 7}, periodSeconds: 1}}`,
	},
	steps: []kubeletStep{
		{"exec over SPDY and WebSocket", kubeletExecs},
		{"attach over SPDY and WebSocket, once, again, and for good", kubeletAttaches},
		{"port-forward over SPDY and WebSocket", kubeletForwards},
		{"logs since a time, and limited", kubeletLogsSince},
	},
}

// What kubelets up to 1.26 do not do: they follow no log over its rotation. Nor do those up to 1.35 take SPDY in WebSocket.
var kubeletNewStreamFamily = kubeletFamily{
	pods: map[string]string{
		"rotating": `
  terminationGracePeriodSeconds: 1
  containers:
  - {name: lines, image: IMAGE, command: [sh, -c, "until [ -e /host/go ]; do sleep 0.1; done; testserver log 500 LINES 100; exec testserver on-term 0"], volumeMounts: [{name: host, mountPath: /host}]}
  volumes: [{name: host, hostPath: {path: DIR/rotating, type: DirectoryOrCreate}}]`,
	},
	steps: []kubeletStep{
		{"a log that is followed over its rotation has every line", kubeletFollowsRotation},
		{"port-forward over SPDY in WebSocket", kubeletTunnel},
	},
}

// streamers are the protocols by which a client reaches a kubelet.
var streamers = map[string]func(context.Context, string, harness.Streams) error{"SPDY": harness.StreamSPDY, "WebSocket": harness.StreamWebSocket}

func kubeletExecs(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "streams")
	input := make([]byte, 4<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(input)
	for protocol, stream := range streamers {
		exec := func(s harness.Streams, command ...string) error {
			return stream(ctx(t), r.ExecURL("streams", "shell", s, command...), s)
		}
		var out, stderr harness.Buffer
		if err := exec(harness.Streams{Stdin: bytes.NewReader(input), Stdout: &out}, "cat"); err != nil || out.String() != string(input) {
			t.Errorf("%s: of 4 MiB through cat come %d bytes, the same: %v, error %v", protocol, len(out.String()), out.String() == string(input), err)
		}
		out = harness.Buffer{}
		if err := exec(harness.Streams{Stdout: &out, Stderr: &stderr}, "sh", "-c", "echo out; echo err >&2; exit 7"); err != harness.ExitError(7) || out.String() != "out\n" || stderr.String() != "err\n" {
			t.Errorf("%s: %q, %q, error %v", protocol, out.String(), stderr.String(), err)
		}
		if err := exec(harness.Streams{Stdout: io.Discard}, "/no/such"); err == nil {
			t.Errorf("%s: a program that is not there is no error", protocol)
		}
		out = harness.Buffer{}
		terminal := harness.Streams{Stdout: &out, TTY: true, Resize: harness.TerminalSize{Width: 101, Height: 37}}
		if err := exec(terminal, "sh", "-c", "while [ \"$(stty size)\" != '37 101' ]; do sleep 0.1; done; tty"); err != nil || !strings.Contains(out.String(), "/dev/pts/") {
			t.Errorf("%s: the terminal is %q, error %v", protocol, out.String(), err)
		}
	}
}

func kubeletAttaches(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "streams")
	for protocol, stream := range streamers {
		for container, want := range map[string]string{"pipe": "got %s\n", "terminal": "got %s at 22 77\r\n"} {
			word := protocol + container
			in, typed := io.Pipe()
			var out, stderr harness.Buffer
			s := harness.Streams{Stdin: in, Stdout: &out}
			if s.TTY = container == "terminal"; s.TTY {
				s.Resize = harness.TerminalSize{Width: 77, Height: 22}
			} else {
				s.Stderr = &stderr
			}
			c, cancel := context.WithCancel(ctx(t))
			ended := make(chan error, 1)
			go func() { ended <- stream(c, r.AttachURL("streams", container, s), s) }()
			if s.TTY { // the first line may overtake the size
				harness.Eventually(t, 20*time.Second, "the size of the terminal", func() error {
					if _, err := io.WriteString(typed, "x\n"); err != nil {
						return err
					}
					if !strings.Contains(out.String(), "at 22 77") {
						return fmt.Errorf("it shows %q", out.String())
					}
					return nil
				})
			}
			if _, err := io.WriteString(typed, word+"\n"); err != nil {
				t.Fatal(err)
			}
			out.WaitFor(t, fmt.Sprintf(want, word))
			if !s.TTY {
				stderr.WaitFor(t, "heard "+word+"\n")
			}
			cancel() // the client goes away; the container must not notice
			<-ended
			_ = typed.Close()
		}
	}
	input := make([]byte, 4<<20)
	random := rand.NewChaCha8([32]byte{3})
	_, _ = random.Read(input)
	for container, typed := range map[string][]byte{"once": []byte("all of it"), "bulk-spdy": input, "bulk-websocket": input} { // md5sum of once ends with its standard input; without stdinOnce the end of what is typed would end the attach
		stream := harness.StreamSPDY
		if container == "bulk-websocket" {
			stream = harness.StreamWebSocket
		}
		var out harness.Buffer
		s := harness.Streams{Stdin: bytes.NewReader(typed), Stdout: &out}
		attached, cancel := context.WithCancel(ctx(t))
		ended := make(chan error, 1)
		go func() { ended <- stream(attached, r.AttachURL("streams", container, s), s) }()
		out.WaitFor(t, fmt.Sprintf("%x  -\n", md5.Sum(typed)))
		cancel()
		<-ended
	}
	if pod := r.WaitReady(t, "streams"); slices.ContainsFunc(pod.Status.ContainerStatuses, func(c harness.KubeletContainer) bool { return c.RestartCount != 0 }) {
		t.Errorf("containers were restarted: %+v", pod.Status.ContainerStatuses)
	}
}

// forwarded is one connection to a port of a pod.
type forwarded interface {
	io.ReadWriter
	Err() error
	End()
}

func kubeletForwards(t *testing.T, r *kubeletRun) {
	forwards(t, r, "SPDY", func(address string, port int) (forwarded, error) { return harness.ForwardSPDY(address, port) })
	forwards(t, r, "WebSocket", func(address string, port int) (forwarded, error) { return harness.ForwardWebSocket(address, port) })
}

func kubeletTunnel(t *testing.T, r *kubeletRun) {
	forwards(t, r, "SPDY in WebSocket", func(address string, port int) (forwarded, error) { return harness.ForwardTunnel(address, port) })
}

// forwards sends 4 MiB to a port and back, and asks for one where nobody listens.
func forwards(t *testing.T, r *kubeletRun, protocol string, forward func(string, int) (forwarded, error)) {
	t.Helper()
	r.WaitReady(t, "streams")
	input := make([]byte, 4<<20)
	random := rand.NewChaCha8([32]byte{2})
	_, _ = random.Read(input)
	connection, err := forward(r.PortForwardURL("streams"), 7)
	if err != nil {
		t.Fatalf("%s: %v", protocol, err)
	}
	context.AfterFunc(ctx(t), connection.End)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{connection}, struct{ io.Reader }{bytes.NewReader(input)}) // in frames of 32 KiB, as kubectl
		sent <- err
	}()
	output := make([]byte, len(input))
	n, err := io.ReadFull(connection, output)
	if same := bytes.Equal(output, input); err != nil || !same {
		t.Errorf("%s: of 4 MiB come %d bytes back, the same: %v, error %v", protocol, n, same, err)
	}
	connection.End()
	if err := <-sent; err != nil {
		t.Errorf("%s: sending 4 MiB: %v", protocol, err)
	}
	nobody, err := forward(r.PortForwardURL("streams"), 4321)
	if err != nil {
		t.Fatalf("%s: %v", protocol, err)
	}
	context.AfterFunc(ctx(t), nobody.End)
	if err := nobody.Err(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%s: of a port where nobody listens comes error %v", protocol, err)
	}
	nobody.End()
}

func kubeletFollowsRotation(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "rotating")
	follow := r.FollowLogs(t, "rotating", "lines")
	defer follow.Close()
	if err := os.WriteFile(filepath.Join(r.host, "rotating", "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(follow)
	for i := range chattyLines {
		if want := fmt.Sprintf("line %d ", i); !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			t.Fatalf("line %d that follows is %.40q, %v", i, lines.Text(), lines.Err())
		}
	}
	pod := r.WaitReady(t, "rotating")
	if files, _ := filepath.Glob(filepath.Join(r.PodLogs, "default_"+pod.Metadata.Name+"_"+pod.Metadata.UID, "lines", "0.log.*")); len(files) == 0 {
		t.Error("the log was not rotated")
	}
}

func kubeletLogsSince(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "streams")
	r.Shell(t, "streams", "shell", "echo before > /proc/1/fd/1")
	var stamp string
	harness.Eventually(t, 20*time.Second, "the line", func() error {
		last, text, _ := strings.Cut(r.Logs(t, "streams", "shell", "timestamps=true", "tailLines=1"), " ")
		if stamp = last; text != "before\n" {
			return fmt.Errorf("the last line is %q", text)
		}
		return nil
	})
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		t.Fatal(err)
	}
	// The kubelet takes whole seconds.
	next := at.Truncate(time.Second).Add(time.Second)
	harness.Eventually(t, 30*time.Second, "the next second", func() error {
		if time.Now().Before(next) {
			return fmt.Errorf("it is %v", time.Now())
		}
		return nil
	})
	r.Shell(t, "streams", "shell", "echo after > /proc/1/fd/1")
	since := "sinceTime=" + next.UTC().Format(time.RFC3339)
	harness.Eventually(t, 20*time.Second, "the line after it", func() error {
		if got := r.Logs(t, "streams", "shell", since); got != "after\n" {
			return fmt.Errorf("since %v there is %q", next, got)
		}
		return nil
	})
	if got := r.Logs(t, "streams", "shell", "limitBytes=3"); got != "rea" {
		t.Errorf("the first three bytes are %q", got)
	}
	if got := r.Logs(t, "streams", "shell", "sinceSeconds=3600", "tailLines=2"); got != "before\nafter\n" {
		t.Errorf("the last two lines of an hour are %q", got)
	}
}
