package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// bareVariable makes the program of the benchmarks a streaming server: SOCKET CONTAINER MIB, by blanks. SOCKET is Docker's, or onHost and a busybox.
const bareVariable = "CRISHIM_BENCH_BARE"

// onHost is before the path of the images' busybox, in the place of an engine's socket: the raw source below the native engine is
// a process that writes into a pipe. It has to be the same program, as some write twice as fast as others.
const onHost = "process:"

// bareStreaming serves one exec over and over by cri-streaming alone, in a process of its own as crishim is.
func (n *bench) bareStreaming(socket, container string, mib int) (url string) {
	n.b.Helper()
	cmd := exec.CommandContext(n.b.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", bareVariable, socket, container, mib))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		n.b.Fatalf("starting cri-streaming alone: %v", err)
	}
	n.b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		n.b.Fatalf("starting cri-streaming alone: it does not tell its address: %v", err)
	}
	return strings.TrimSpace(line)
}

// serveBare is the other process.
func serveBare(what string) error {
	words := strings.Fields(what)
	if len(words) != 3 {
		return fmt.Errorf("%s=%q is not SOCKET CONTAINER MIB", bareVariable, what)
	}
	mib, err := strconv.Atoi(words[2])
	if err != nil {
		return err
	}
	raw := rawExecutor{mib: mib}
	var process bool
	if raw.busybox, process = strings.CutPrefix(words[0], onHost); !process {
		raw.docker = dockerAt(context.Background(), words[0])
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeExec(w, r, raw, "", "", words[1], nil, &remotecommand.Options{Stdout: true},
			time.Hour, time.Minute, remotecommand.SupportedStreamingProtocols)
	})}
	return server.Serve(l)
}

// rawExecutor has no docker where the command is busybox's on the host.
type rawExecutor struct {
	docker  *dockerSide
	busybox string
	mib     int
}

func (e rawExecutor) ExecInContainer(_ context.Context, _, _, container string, _ []string, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if e.docker == nil {
		return hostOut(e.busybox, e.mib, out)
	}
	return e.docker.execOut(container, e.mib, out)
}

// hostOut is the command of execOut without a container.
func hostOut(busybox string, mib int, to io.Writer) error {
	cmd := exec.Command(busybox, execCommand(mib)...)
	cmd.Stdout = to
	return cmd.Run()
}
