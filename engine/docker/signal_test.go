package docker

import (
	"context"
	"encoding/json"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// sleeper is a process that ends by a signal only, and what is known of it. It has a mount at its root, as containers have.
func sleeper(t *testing.T) (*exec.Cmd, firstProcess) {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("/", root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ticks, err := process.StartTicks(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, firstProcess{pid: cmd.Process.Pid, startTicks: ticks, root: root}
}

// endedBy is the signal that ended the process.
func endedBy(cmd *exec.Cmd) syscall.Signal {
	_ = cmd.Wait()
	return cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()
}

// A container's first process is signalled without Docker only where it is known to be that.
func TestSignalsGoToTheContainersOwnProcess(t *testing.T) {
	cmd, own := sleeper(t)
	later, elsewhere, untold, unread, dockers := own, own, own, own, own
	later.startTicks++
	elsewhere.root = "/proc"
	untold.root = ""
	unread.startTicks = 0
	dockers.byDocker = true
	for name, p := range map[string]firstProcess{
		"another with its pid":                    later,
		"one outside of the container's root":     elsewhere,
		"one of a container whose root is untold": untold,
		"one whose start could not be read":       unread,
		"one that Docker has to signal":           dockers,
	} {
		var e Engine
		e.processes.m.Store(testContainer, p)
		if sent, err := e.signal(testContainer, unix.SIGTERM); sent || err != nil {
			t.Errorf("%s got it: %v, %v", name, sent, err)
		}
	}
	observer := Engine{opts: Options{Observe: true}}
	observer.processes.m.Store(testContainer, own)
	if sent, _ := observer.signal(testContainer, unix.SIGTERM); sent {
		t.Error("an observer sent it")
	}

	var e Engine
	if sent, _ := e.signal(testContainer, unix.SIGTERM); sent {
		t.Error("it was sent to the process of a container that nobody saw")
	}
	e.processes.m.Store(testContainer, own)
	if sent, err := e.signal(testContainer, unix.SIGTERM); !sent || err != nil {
		t.Fatalf("the container's own process did not get it: %v, %v", sent, err)
	}
	if by := endedBy(cmd); by != unix.SIGTERM {
		t.Errorf("it ended by %v", by)
	}
	if sent, err := e.signal(testContainer, unix.SIGTERM); sent || err != nil {
		t.Errorf("it was sent to what has ended: %v, %v", sent, err)
	}
}

func TestRootMount(t *testing.T) {
	for _, line := range []string{
		"1132 1131 0:57 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w",
		"1133 1132 0:58 / /proc rw,nosuid - proc proc rw",
		"not a line of a mount table",
	} {
		m, ok := parseRootMount(line)
		if want := strings.Contains(line, "overlay"); ok != want || ok && (m.device != "0:57" || m.upperDir() != "/u") {
			t.Errorf("of %q: %+v, %v", line, m, ok)
		}
	}
}

// Docker alone suspends a restart policy, and knows what an OCI runtime that was chosen keeps for a container.
func TestWhatDockerHasToSignal(t *testing.T) {
	f := &facts{defaultRuntime: "runc"}
	for name, c := range map[string]struct {
		host container.HostConfig
		want bool
	}{
		"ours":            {container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled}, Runtime: "runc"}, false},
		"an old shim's":   {container.HostConfig{}, false},
		"docker update":   {container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyUnlessStopped}}, true},
		"another runtime": {container.HostConfig{Runtime: "kata"}, true},
	} {
		in := &container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{HostConfig: &c.host}}
		if got := signalledByDocker(in, f); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// watchedSleeper is an engine that has seen a process run as the test container's.
func watchedSleeper(t *testing.T) (*Engine, *fakeEngine, *exec.Cmd) {
	t.Helper()
	f := newFake(t)
	cmd, own := sleeper(t)
	f.put(testContainer, running)
	f.mu.Lock()
	in := f.containers[testContainer]
	in.State.Pid = own.pid
	in.GraphDriver.Data = map[string]string{"MergedDir": own.root}
	f.containers[testContainer] = in
	f.mu.Unlock()
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	return e, f, cmd
}

func TestStopSignalsWithoutDocker(t *testing.T) {
	for name, c := range map[string]struct {
		grace time.Duration
		by    syscall.Signal
	}{"gently": {time.Minute, unix.SIGTERM}, "at once": {0, unix.SIGKILL}} {
		t.Run(name, func(t *testing.T) {
			e, f, cmd := watchedSleeper(t)
			f.mu.Lock()
			f.fail["/containers/"+testContainer+"/wait"] = func(w http.ResponseWriter) {
				_ = json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: 128 + int64(c.by)})
			}
			f.mu.Unlock()
			began := time.Now()
			if err := e.StopContainer(t.Context(), testContainer, c.grace); err != nil {
				t.Fatal(err)
			}
			if by := endedBy(cmd); by != c.by {
				t.Errorf("it ended by %v", by)
			}
			// What has not ended in its time is left to Docker, also where it is the machine that took so long.
			if n := f.requests("POST /containers/" + testContainer + "/kill"); n != 0 && time.Since(began) < signalledLimit {
				t.Errorf("Docker was asked %d times to signal it", n)
			}
		})
	}
}

// A process that was frozen does not end by a signal: Docker, which can thaw it, is asked.
func TestDockerKillsWhatASignalDoesNotEnd(t *testing.T) {
	e, f, _ := watchedSleeper(t)
	f.setHang("/containers/"+testContainer+"/wait", true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- e.StopContainer(ctx, testContainer, 0) }()
	eventually(t, 30*time.Second, "Docker is asked to kill", func() bool { return f.requests("POST /containers/"+testContainer+"/kill") == 1 })
	cancel()
	if err := <-stopped; err == nil {
		t.Error("the stop succeeded although the container runs")
	}
}

// Docker gives up after 12 seconds on a container that takes longer to end by SIGKILL, as one with much memory or a slow disk does. A
// stop does not: it ends when the container has.
func TestAStopWaitsForLongerThanDockersOwnKill(t *testing.T) {
	e, f, _ := watchedSleeper(t)
	ended := make(chan struct{})
	f.mu.Lock()
	f.fail["/containers/"+testContainer+"/wait"] = func(w http.ResponseWriter) {
		<-ended
		_ = json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: 137})
	}
	f.fail["/containers/"+testContainer+"/kill"] = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(`{"message":"cannot kill container: x: tried to kill container, but did not receive an exit event"}`))
		time.AfterFunc(100*time.Millisecond, func() { close(ended) })
	}
	f.mu.Unlock()
	if err := e.StopContainer(t.Context(), testContainer, 0); err != nil {
		t.Error(err)
	}
}

// An image may name a stop signal that is none: Docker takes it, and says so only when it is to send it.
func TestAStopSignalThatIsNoneIsSIGTERM(t *testing.T) {
	e, f, cmd := watchedSleeper(t)
	f.mu.Lock()
	in := f.containers[testContainer]
	in.Config.StopSignal = "SIGFOO"
	f.containers[testContainer] = in
	f.fail["/containers/"+testContainer+"/kill"] = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"message":"invalid signal: SIGFOO"}`))
	}
	f.fail["/containers/"+testContainer+"/wait"] = func(w http.ResponseWriter) {
		_ = json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: 143})
	}
	f.mu.Unlock()
	if err := e.StopContainer(t.Context(), testContainer, time.Minute); err != nil {
		t.Fatal(err)
	}
	if by := endedBy(cmd); by != unix.SIGTERM {
		t.Errorf("it ended by %v", by)
	}
}
