package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A SIGHUP while the daemon still starts, and one while it drains, reload the settings or do nothing: they do not end it, with what
// is in flight.
func TestAReloadNeverEndsTheDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the daemon is root's")
	}
	dir := t.TempDir()
	socket, node := filepath.Join(dir, "s.sock"), filepath.Join(dir, "root", "node.json")
	settings := fmt.Sprintf("root_dir = \"%[1]s/root\"\nrun_dir = \"%[1]s/run\"\ndrain_timeout = \"1m\"\n"+
		"[docker]\nendpoint = \"unix://%[1]s/no-docker.sock\"\n[network]\nconf_dir = \"%[1]s/net.d\"\n[metrics]\nlisten = \"\"\n", dir)
	// What the daemon reads at its start does not come before it has got the signal.
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "config.toml"), []byte(settings), 0o600), os.Mkdir(filepath.Dir(node), 0o700), syscall.Mkfifo(node, 0o600)); err != nil {
		t.Fatal(err)
	}
	var out log
	cmd := exec.Command(criDockerdBinary(t, dir), "--config="+filepath.Join(dir, "config.toml"), "--cri-dockerd-root-directory="+dir+"/shim",
		"--container-runtime-endpoint=unix://"+socket)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended already where all went well
		if t.Failed() {
			t.Logf("its log:\n%s", &out)
		}
	})
	until := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
			select {
			case err := <-ended:
				t.Fatalf("%s: the daemon ended: %v", what, err)
			default:
			}
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	send := func(sig syscall.Signal) {
		t.Helper()
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}

	fifo := (*os.File)(nil)
	until("it does not start", func() bool {
		var err error
		fifo, err = os.OpenFile(node, os.O_WRONLY|syscall.O_NONBLOCK, 0) // an error while nobody reads
		return err == nil
	})
	send(syscall.SIGHUP)
	if _, err := fifo.WriteString(`{"engine":"docker","runtimeName":"docker"}`); err != nil {
		t.Fatal(err)
	}
	_ = fifo.Close()
	var conn net.Conn // one that says nothing, for which the end has to wait
	until("it does not serve", func() bool {
		var err error
		conn, err = net.Dial("unix", socket)
		return err == nil
	})
	defer func() { _ = conn.Close() }()
	// Connections are taken in their order: once a later one is answered the end waits for the silent one, which by its dial alone is
	// only in the kernel's queue.
	later, err := dialCRI("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runtimeapi.NewRuntimeServiceClient(later).Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	_ = later.Close()
	reloads := func() int { return strings.Count(out.String(), "Reloaded log level") }
	until("the first reload", func() bool { return reloads() == 1 })

	send(syscall.SIGTERM)
	until("it does not drain", func() bool { return strings.Contains(out.String(), "crishim ends") })
	send(syscall.SIGHUP)
	until("the second reload", func() bool { return reloads() == 2 })
	_ = conn.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("its end: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
}
