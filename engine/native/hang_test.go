package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// hangingStart is a container of the pod whose start hangs in a hook of its OCI spec; the hook's process is hook. The start's
// error comes when it has been given up.
func (b *bench) hangingStart(t *testing.T, pod engine.PodID, s *engine.PodSpec) (id engine.ContainerID, hook int, giveUp func() error) {
	t.Helper()
	spec := b.containerSpec(t, pod, s, "hangs", "sleep 1000")
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	oci, err := b.readBundle(st.ID)
	if err != nil {
		t.Fatal(err)
	}
	reached := filepath.Join(t.TempDir(), "reached")
	script := `echo $$ > ` + reached + `.tmp; mv ` + reached + `.tmp ` + reached + `; sleep 1000; exit`
	oci.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}}}}
	if err := b.writeBundle(st.ID, oci); err != nil {
		t.Fatal(err)
	}
	ctx, abort := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { _, err := b.StartContainer(ctx, st.ID, spec); started <- err }()
	eventually(t, 20*time.Second, "the hook runs", func() bool {
		data, err := os.ReadFile(reached)
		hook, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		return err == nil
	})
	return st.ID, hook, func() error { abort(); return <-started }
}

// A start that hangs, here in a hook of the OCI spec, holds up neither its pod's end nor other pods, and the hook ends with
// the pod.
//
// Rows: R07 (part)
func TestAHangingStartEndsWithItsPod(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 300 * time.Millisecond
	b := serving(t)
	pod, s := b.runPod(t)
	other, otherSpec := b.runPod(t)
	hanging, hook, giveUp := b.hangingStart(t, pod, s)
	if err := giveUp(); !errors.Is(err, context.Canceled) {
		t.Errorf("the start: %v", err)
	}
	if state := b.status(t, hanging).State; state == engine.ContainerRunning {
		t.Errorf("it is %s", state)
	}
	b.removePod(t, pod)
	if runs(hook) {
		t.Errorf("the hook, process %d, outlives its pod", hook)
	}
	id := b.run(t, other, otherSpec, "goes-on", "sleep 1000")
	if state := b.status(t, id).State; state != engine.ContainerRunning {
		t.Errorf("another pod's is %s", state)
	}
	b.removePod(t, other)
}

// A daemon that was killed in the midst of a start comes back while the monitor is at it still: the next start waits until that is taken
// away, and is not told that the container is there.
func TestAContainerStartsAfterACrashInTheMidstOfItsStart(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 300 * time.Millisecond
	b := serving(t)
	pod, s := b.runPod(t)
	id, hook, giveUp := b.hangingStart(t, pod, s)
	_ = giveUp()
	b.die(t)
	b.back(t)
	oci, err := b.readBundle(id)
	if err != nil {
		t.Fatal(err)
	}
	oci.Hooks = nil
	if err := b.writeBundle(id, oci); err != nil {
		t.Fatal(err)
	}
	asleep := 0
	eventually(t, 20*time.Second, "the hook sleeps", func() bool {
		child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", hook, hook))
		asleep, _ = strconv.Atoi(strings.TrimSpace(string(child)))
		return err == nil && asleep > 0
	})
	started := make(chan error, 1)
	go func() { _, err := b.StartContainer(t.Context(), id, nil); started <- err }()
	time.Sleep(100 * time.Millisecond) // it has come to the monitor, mostly
	kill(t, asleep)
	if err := <-started; err != nil {
		t.Errorf("the next start: %v", err)
	}
	if state := b.status(t, id).State; state != engine.ContainerRunning {
		t.Errorf("it is %s", state)
	}
	b.removePod(t, pod)
}

// Rows: R03 (part)
func TestAHookEndsWithItsMonitor(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 300 * time.Millisecond
	for name, down := range map[string]bool{"while the daemon runs": false, "while it is down": true} {
		t.Run(name, func(t *testing.T) {
			b := serving(t)
			other, otherSpec := b.runPod(t)
			_, bystander, giveUpOther := b.hangingStart(t, other, otherSpec)
			pod, s := b.runPod(t)
			_, hook, giveUp := b.hangingStart(t, pod, s)
			monitor := b.monitorPID(t, pod)
			if down {
				_, _ = giveUp(), giveUpOther()
				b.die(t)
				kill(t, monitor)
				b.back(t)
			} else {
				kill(t, monitor)
				if err := giveUp(); err == nil {
					t.Error("the start succeeded")
				}
			}
			eventually(t, 20*time.Second, "the hook ends with its monitor", func() bool { return !runs(hook) })
			if !runs(bystander) {
				t.Error("the hook of another pod's monitor was killed")
			}
			if !down {
				_ = giveUpOther()
			}
			b.removePod(t, pod)
			b.removePod(t, other)
		})
	}
}

// A container whose monitor does not kill it, as one that waits for an exec that is being made and hangs, is killed all the same; nor
// does a monitor that passes no signal on keep it from being killed once its time is up.
//
// Rows: R07 (part)
func TestAContainerIsKilledThoughItsMonitorHangs(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 300 * time.Millisecond
	b := serving(t)
	for name, grace := range map[string]time.Duration{"at once": 0, "with time to end": 300 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			pod, s := b.runPod(t)
			id := b.run(t, pod, s, "c", "sleep 1000")
			group, monitor := b.containers[id].Cgroup.Path, b.monitorPID(t, pod)
			if err := unix.Kill(monitor, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Kill(monitor, unix.SIGCONT) }()
			stopped := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				stopped <- b.StopContainer(ctx, id, grace)
			}()
			eventually(t, 20*time.Second, "the container is killed", func() bool {
				pids, err := b.cgroups.Processes(group)
				return err == nil && !slices.ContainsFunc(pids, runs)
			})
			if err := unix.Kill(monitor, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if st := b.status(t, id); st.State != engine.ContainerExited || st.ExitCode != 137 {
				t.Errorf("the container is %s, exit code %d", st.State, st.ExitCode)
			}
			b.removePod(t, pod)
		})
	}
}

// An exec that hangs while it is made, here as its user is looked up in a pipe, goes when its client does, and when its container is stopped.
//
// Rows: R07 (part)
func TestAnExecThatHangsEndsWithItsClientOrItsContainer(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 2 * time.Second
	t.Run("libcontainer", func(t *testing.T) { execsThatHang(t, serving(t)) })
	t.Run("an OCI runtime", func(t *testing.T) {
		b := runcBench(t)
		b.serve(t)
		execsThatHang(t, b, withRunc)
	})
}

func execsThatHang(t *testing.T, b *bench, options ...func(*engine.PodSpec)) {
	t.Helper()
	pod, s := b.runPod(t, options...)
	etc := t.TempDir()
	spec := b.containerSpec(t, pod, s, "c", "exec sleep 1000")
	spec.Mounts = []engine.Mount{{HostPath: etc, ContainerPath: "/etc"}}
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = b.StartContainer(t.Context(), st.ID, spec); err != nil {
		t.Fatal(err)
	}
	group := b.containers[st.ID].Cgroup.Path
	alone := func() bool {
		pids, err := b.cgroups.Processes(group)
		return err == nil && len(pids) == 1
	}
	eventually(t, 20*time.Second, "the container runs", alone)
	if err := unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	// One whose client leaves goes at once, also one that waits behind it. Neither holds anything up.
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := b.Exec(ctx, st.ID, &engine.ExecSpec{Command: []string{"true"}}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("an exec that hangs: %v", err)
			}
		})
	}
	both.Wait()
	eventually(t, 20*time.Second, "nothing of it is left", alone)
	if err := os.Rename(filepath.Join(etc, "passwd"), filepath.Join(etc, "aside")); err != nil {
		t.Fatal(err)
	}
	if code, err := b.Exec(t.Context(), st.ID, &engine.ExecSpec{Command: []string{"true"}}); code != 0 || err != nil {
		t.Errorf("the next exec: %d, %v", code, err)
	}
	if err := os.Rename(filepath.Join(etc, "aside"), filepath.Join(etc, "passwd")); err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool, 1)
	go func() {
		code, err := b.Exec(t.Context(), st.ID, &engine.ExecSpec{Command: []string{"true"}})
		ended <- err == nil && code == 0
	}()
	hangs := 0
	eventually(t, 20*time.Second, "the exec hangs", func() bool {
		if now, err := b.cgroups.Processes(group); err == nil && len(now) > 1 {
			hangs++
		}
		return hangs == 10
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.StopContainer(ctx, st.ID, 0); err != nil {
		t.Fatal(err)
	}
	if <-ended {
		t.Error("the exec did not hang")
	}
	if state := b.status(t, st.ID).State; state != engine.ContainerExited {
		t.Errorf("the container is %s", state)
	}
	b.removePod(t, pod)
}

// An exec that hangs while it is made is given up when its container ends by itself, whose end is told: also where other processes
// than the first are not ended by the kernel with it.
//
// Rows: R07 (part)
func TestAContainersEndIsToldThoughAnExecHangs(t *testing.T) {
	b := serving(t)
	for name, shared := range map[string]func(*engine.PodSpec){"PIDs of its own": func(*engine.PodSpec) {}, "the pod's PIDs": sharedPIDs} {
		t.Run(name, func(t *testing.T) {
			pod, s := b.runPod(t, shared)
			etc := t.TempDir()
			spec := b.containerSpec(t, pod, s, "c", "touch /etc/runs; while ! test -e /etc/end; do sleep 0.1; done; exit 7")
			spec.Mounts = []engine.Mount{{HostPath: etc, ContainerPath: "/etc"}}
			st, err := b.CreateContainer(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if st, err = b.StartContainer(t.Context(), st.ID, spec); err != nil {
				t.Fatal(err)
			}
			eventually(t, 20*time.Second, "the container runs", func() bool {
				_, err := os.Stat(filepath.Join(etc, "runs"))
				return err == nil
			})
			if err := unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644); err != nil {
				t.Fatal(err)
			}
			ended := make(chan bool, 1)
			go func() {
				code, err := b.Exec(t.Context(), st.ID, &engine.ExecSpec{Command: []string{"true"}})
				ended <- err == nil && code == 0
			}()
			hangs := 0
			eventually(t, 20*time.Second, "the exec hangs", func() bool {
				pids, err := b.cgroups.Processes(b.containers[st.ID].Cgroup.Path)
				// It is the helper until it runs its command.
				if err == nil && slices.ContainsFunc(pids, func(pid int) bool {
					line, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
					return strings.HasSuffix(string(line), "\x00init\x00")
				}) {
					hangs++
				}
				return hangs == 10
			})
			if err := os.WriteFile(filepath.Join(etc, "end"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if st := b.exited(t, st.ID); st.ExitCode != 7 {
				t.Errorf("exit code %d", st.ExitCode)
			}
			if <-ended {
				t.Error("the exec did not hang")
			}
			b.removePod(t, pod)
		})
	}
}

// A monitor that does not answer is killed at its pod's end, also where no container is left in it. One that the kernel does not end, as
// its log's disk hangs, is waited for no longer than for endLimit, by whoever asks, and the error says why; the pod can be removed later.
//
// Rows: R28 (part)
func TestAPodsEndDoesNotWaitForAMonitorThatHangs(t *testing.T) {
	defer func(was, wasEnd time.Duration) { hangLimit, endLimit = was, wasEnd }(hangLimit, endLimit)
	hangLimit = 300 * time.Millisecond
	b := serving(t)
	stopped, _ := b.runPod(t, sharedPIDs)
	if err := unix.Kill(b.monitorPID(t, stopped), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.removePod(t, stopped)

	if b.host.CgroupV2 || !b.host.Has("freezer") {
		t.Skip("only cgroup v1's freezer holds processes that are killed")
	}
	pod, _ := b.runPod(t)
	group := filepath.Join("/sys/fs/cgroup/freezer", testCgroup, "stuck")
	if err := os.MkdirAll(group, 0o700); err != nil {
		t.Fatal(err)
	}
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(group, file), []byte(value), 0); err != nil {
			t.Error(err)
		}
	}
	set("cgroup.procs", strconv.Itoa(b.monitorPID(t, pod)))
	set("freezer.state", "FROZEN")
	defer func() {
		set("freezer.state", "THAWED")
		eventually(t, 10*time.Second, "its cgroup goes", func() bool { return os.Remove(group) == nil })
	}()
	endLimit = 300 * time.Millisecond
	for range 2 {
		if err := b.StopPod(context.Background(), pod); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is still there") {
			t.Errorf("stopping the pod: %v", err)
		}
	}
	if err := b.RemovePod(context.Background(), pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("removing the pod: %v", err)
	}
	set("freezer.state", "THAWED")
	endLimit = 20 * time.Second
	b.removePod(t, pod)
}
