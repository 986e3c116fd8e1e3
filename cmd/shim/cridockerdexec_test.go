package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/config"
)

// TestMain is the program itself where a test has started it under cri-dockerd's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == config.CRIDockerd {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// criDockerdBinary is this program under the other name.
func criDockerdBinary(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, config.CRIDockerd)
	if err := os.Symlink(self, name); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestUnderItsNameTheBinaryIsCRIDockerd(t *testing.T) {
	binary := criDockerdBinary(t, t.TempDir())
	out, err := exec.Command(binary, "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "cri-dockerd ") {
		t.Errorf("--version: %q, %v", out, err)
	}
	out, err = exec.Command(binary, "--help").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--cni-bin-dir") {
		t.Errorf("--help: %q, %v", out, err)
	}
	for _, row := range []struct {
		flag, want string
		status     int
	}{
		{"--no-such-flag", "unknown flag: --no-such-flag", 2},
		{"--network-plugin=kubenet", "use --network-plugin=cni", 1},
		{"--container-runtime-endpoint=fd://", "start cri-docker.socket", 1},
	} {
		out, err := exec.Command(binary, row.flag).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != row.status || !strings.Contains(string(out), row.want) {
			t.Errorf("%s: %v, %q; want status %d and %q", row.flag, err, out, row.status, row.want)
		}
	}
}

// log is what the daemon has written so far.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// minikube's drop-in with cri-dockerd's socket unit: the daemon serves on the socket that systemd has made and keeps. There
// is no Docker Engine here, so only what needs none is asked.
func TestUnderItsNameTheDaemonServesOnSystemdsSocket(t *testing.T) {
	dir := t.TempDir()
	binary := criDockerdBinary(t, dir)
	socket := filepath.Join(dir, "cri-dockerd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	handed, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	settings := fmt.Sprintf(`root_dir = "%[1]s/root"
run_dir = "%[1]s/run"
compatibility_root = "%[1]s/shim"
[network]
conf_dir = "%[1]s/net.d"
[metrics]
listen = ""
`, dir)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(execStart(t, "cri-docker.service", "minikube-10-cni.conf"), "--config="+file, "--docker-endpoint=unix://"+dir+"/no-docker.sock")
	var out log
	// As systemd, which names the process that the sockets are for.
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`, binary}, args...)...)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{handed}, &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = handed.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended already where all went well
		if t.Failed() {
			t.Logf("its log:\n%s", &out)
		}
	})

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		v, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
		cancel()
		if err == nil {
			if v.RuntimeName != "docker" {
				t.Errorf("the runtime is called %q", v.RuntimeName)
			}
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the daemon ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, want := range []string{
		"--container-runtime-endpoint is the setting --listen=unix://" + socket,
		"--pod-infra-container-image is the setting --images-pause=registry.k8s.io/pause:3.9",
		"--hairpin-mode=hairpin-veth does nothing",
		`engine="docker"`, `shim="cri-dockerd"`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "shim", "sandbox")); err != nil {
		t.Errorf("cri-dockerd's folder: %v", err)
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("its end: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("systemd's socket is gone: %v", err)
	}
}
