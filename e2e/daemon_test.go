package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// The daemon as systemd and an operator meet it: its notifications, its signals, its sockets, its modes.

func TestSystemdIsToldOfReadinessWatchdogAndEnd(t *testing.T) {
	harness.Require(t)
	socket := filepath.Join(harness.WorkDir(t, "sd"), "notify.sock")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	messages := make(chan string, 100)
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := notify.Read(buffer)
			if err != nil {
				return
			}
			messages <- string(buffer[:n])
		}
	}()
	wait := func(want string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case got := <-messages:
				if strings.Contains(got, want) {
					return
				}
			case <-deadline:
				t.Fatalf("systemd was not told %s", want)
			}
		}
	}
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Env: []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=600000"}})
	wait("READY=1")
	wait("WATCHDOG=1")
	n.Shim.Signal(syscall.SIGTERM)
	wait("STOPPING=1\nEXTEND_TIMEOUT_USEC=") // a longer drain than the unit's limit is waited for
	harness.Eventually(t, 20*time.Second, "the end of the daemon", func() error {
		if n.Shim.Running() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	if code := n.Shim.ExitCode(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	if n.Docker == nil || n.Shim.Both() {
		n.Shim.Start()
		return
	}
	// While dockerd is down the start ends all the same, and says what is waited for.
	n.Docker.Stop()
	n.Shim.StartWithoutWaiting()
	wait("STATUS=waiting for the Docker Engine at " + n.Docker.Endpoint())
	wait("READY=1")
	n.Docker.Start()
	wait("STATUS=serving on the Docker Engine at " + n.Docker.Endpoint())
	n.Shim.WaitReady()
}

func TestSignalsReloadAndDump(t *testing.T) {
	harness.Require(t)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{})
	ref := n.Pull(t, harness.Small)
	if imageStatus(t, n, ref).Pinned {
		t.Fatal("the image is pinned before anybody asked for it")
	}
	n.Shim.Reconfigure(map[string]any{"images": map[string]any{"pinned": []string{ref}}})
	n.Shim.Signal(syscall.SIGHUP)
	harness.Eventually(t, 10*time.Second, "the image to be pinned", func() error {
		if !imageStatus(t, n, ref).Pinned {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	n.Shim.Signal(syscall.SIGUSR1)
	harness.Eventually(t, 10*time.Second, "the goroutines in the log", func() error {
		log, err := os.ReadFile(n.Shim.LogFile)
		if err == nil && !strings.Contains(string(log), "goroutine 1 [") {
			err = fmt.Errorf("they are not there")
		}
		return err
	})
}

func TestSecondSocketAnswersToo(t *testing.T) {
	harness.Require(t)
	dir := harness.WorkDir(t, "old")
	old := filepath.Join(dir, "dockershim.sock")
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{})
	n.Shim.Reconfigure(map[string]any{"listen": []string{"unix://" + n.Shim.Socket, "unix://" + old}})
	n.Shim.Restart()
	reply, err := harness.Dial(t, old).AlphaRuntime.Version(ctx(t), &runtimeapi.VersionRequest{})
	if err != nil || reply.RuntimeName != runtimeName() {
		t.Errorf("the old shim's socket: %v, %v", reply, err)
	}
	n.RunPod(t, "both").IP()
}

func TestDockerBridgeIsANetworkWithoutCNI(t *testing.T) {
	harness.AboutDocker(t)
	harness.Require(t)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"network": map[string]any{"mode": "docker-bridge", "conf_dir": "/no/such/net.d"}}})
	image := n.Pull(t, harness.Web)
	pod := n.RunPod(t, "bridge")
	pod.Run("web", image, nil)
	if body := httpGet(t, net.JoinHostPort(pod.IP(), "80")+"/"); body != "host=bridge path=/\n" {
		t.Errorf("the pod says %q", body)
	}
	before := pod.IP()
	n.Shim.KillAndRestart()
	if after := pod.IP(); after != before {
		t.Errorf("the address was %s and is %s after a restart of the daemon", before, after)
	}
}
