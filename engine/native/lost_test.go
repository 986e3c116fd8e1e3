package native

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/internal/mounttree"
	"crishim/internal/rowsize"
)

func contextThatEnded() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx, cancel
}

func logOf(s *engine.ContainerSpec) monitor.CreateArgs {
	return monitor.CreateArgs{LogRoot: s.LogDirectory, LogPath: s.LogPath}
}

// A monitor is killed: its containers are killed within two seconds and say why, also when the daemon was not there.
//
// Rows: R03, S60 (part)
func TestAMonitorIsKilled(t *testing.T) {
	for name, down := range map[string]bool{"while the daemon runs": false, "while it is down": true} {
		t.Run(name, func(t *testing.T) {
			b := serving(t)
			other, otherSpec := b.runPod(t)
			bystander := b.run(t, other, otherSpec, "c", "sleep 1000")
			pod, spec := b.runPod(t, sharedPIDs)
			id := b.run(t, pod, spec, "c", "trap '' TERM; while :; do sleep 1; done")
			ended := b.run(t, pod, spec, "ended", "exit 5")
			b.exited(t, ended)
			created, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "created", "exit 0"))
			if err != nil {
				t.Fatal(err)
			}
			pid, pause := b.status(t, id).PID, 0
			if st, err := b.PodStatus(t.Context(), pod); err == nil {
				pause = st.PID
			}
			if down {
				pid := b.monitorPID(t, pod)
				b.die(t)
				kill(t, pid)
				b.back(t)
			} else {
				kill(t, b.monitorPID(t, pod))
			}
			eventually(t, 2*time.Second, "the container has ended", func() bool { return b.status(t, id).State == engine.ContainerExited })
			st := b.status(t, id)
			if s := b.Stats(); s.MonitorsLost != 1 || s.Monitors != 1 {
				t.Errorf("%d monitors lost, %d run", s.MonitorsLost, s.Monitors)
			}
			if st.ExitCode != 137 || st.Reason != "MonitorLost" || runs(pid) {
				t.Errorf("runs: %v, %+v", runs(pid), st)
			}
			eventually(t, 30*time.Second, "the pod has ended, its pause process too", func() bool {
				return b.podState(t, pod) == engine.PodNotReady && !runs(pause)
			})
			if st := b.status(t, ended); st.ExitCode != 5 {
				t.Errorf("%+v", st)
			}
			if _, err := b.StartContainer(t.Context(), created.ID, nil); err == nil {
				t.Error("a container starts without a monitor")
			}
			if err := b.StopContainer(t.Context(), id, time.Second); err != nil {
				t.Error(err)
			}
			if st := b.status(t, bystander); st.State != engine.ContainerRunning {
				t.Errorf("another pod's: %+v", st)
			}
			b.die(t)
			b.back(t)
			if st := b.status(t, id); st.ExitCode != 137 || st.Reason != "MonitorLost" {
				t.Errorf("after a restart: %+v", st)
			}
			b.removePod(t, pod)
			b.removePod(t, other)
		})
	}
}

// A monitor that lives and does not answer holds nothing else up, and is killed with its containers.
//
// Rows: R14 (part)
func TestAMonitorThatHangsIsKilledAtTheStart(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for joinLimit")
	}
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	pid := b.monitorPID(t, pod)
	b.die(t)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.back(t)
	if st := b.exited(t, id); st.Reason != "MonitorLost" || runs(pid) {
		t.Errorf("the monitor runs: %v, %+v", runs(pid), st)
	}
	b.removePod(t, pod)
}

func removed(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// A process that nothing can kill, and no record names, does not keep the daemon from its work. It is ended at a later start.
func TestAnOrphanThatCannotBeKilledIsLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for orphansLimit")
	}
	b := serving(t)
	if b.host.CgroupV2 || !b.host.Has("freezer") {
		t.Skip("only cgroup v1's freezer holds processes that are killed")
	}
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	pid := b.status(t, id).PID
	pods, containers := b.podRecords, b.containerRecords
	b.die(t)
	for _, dir := range []string{pods.dir, pods.copies} {
		removed(t, filepath.Join(dir, string(pod)))
	}
	for _, dir := range []string{containers.dir, containers.copies} {
		removed(t, filepath.Join(dir, string(id)))
	}
	freezer := filepath.Join("/sys/fs/cgroup/freezer", testCgroup, "freezer.state")
	freeze := func(state string) error { return os.WriteFile(freezer, []byte(state), 0) }
	if err := freeze("FROZEN"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = freeze("THAWED") }()
	b.back(t)
	if !runs(pid) {
		t.Fatal("it was killed: this shows nothing")
	}
	if err := freeze("THAWED"); err != nil {
		t.Fatal(err)
	}
	b.die(t)
	b.back(t)
	eventually(t, 10*time.Second, "it has ended", func() bool { return !runs(pid) })
}

// reboot makes what is there look as after one: the run folder is empty, and records are of another boot.
func (b *bench) reboot(t *testing.T) {
	t.Helper()
	for _, dir := range []string{b.podRecords.dir, b.containerRecords.dir} {
		b.rewrite(t, dir, boot(), "another-boot")
	}
	if err := mounttree.Unmount(b.opts.RunDir); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(b.opts.RunDir); err != nil {
		t.Fatal(err)
	}
}

// Rows: R24 (part)
func TestAReboot(t *testing.T) {
	for round := range rowsize.Of(1, 50) {
		t.Run(fmt.Sprint(round), aReboot)
	}
}

func aReboot(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t, sharedPIDs)
	running := b.run(t, pod, spec, "running", "echo x >/file; sleep 1000")
	ended := b.run(t, pod, spec, "ended", "exit 9")
	b.exited(t, ended)
	created, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "created", "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	upper := b.status(t, running).UpperDir
	// What a machine that goes down ends with: its processes.
	p, err := b.pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	monitorPID, cgroups, driver := b.monitorPID(t, pod), []string{}, b.cgroups
	for _, c := range b.containersOf(pod) {
		cgroups = append(cgroups, c.Cgroup.Path)
	}
	cgroups = append(cgroups, b.Engine.cgroups.Container(p.Cgroup, engine.ContainerID(pauseID(pod))).Path)
	b.Engine.mu.Lock()
	follow := p.follow
	b.Engine.mu.Unlock()
	follow()
	root := b.Engine
	b.die(t)
	kill(t, monitorPID)
	for _, cg := range cgroups {
		if err := driver.Remove(t.Context(), cg); err != nil {
			t.Fatal(err)
		}
	}
	b.Engine = root
	b.reboot(t)
	b.Engine = nil
	b.back(t)

	if state := b.podState(t, pod); state != engine.PodNotReady {
		t.Errorf("the pod is %s", state)
	}
	if st, err := b.PodStatus(t.Context(), pod); err != nil || st.NetNSPath != "" || st.PID != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if st := b.status(t, running); st.State != engine.ContainerExited || st.ExitCode != 255 || st.Message == "" {
		t.Errorf("%+v", st)
	}
	if st := b.status(t, ended); st.ExitCode != 9 {
		t.Errorf("%+v", st)
	}
	if st := b.status(t, created.ID); st.State != engine.ContainerCreated {
		t.Errorf("%+v", st)
	}
	if _, err := b.StartContainer(t.Context(), created.ID, nil); err == nil {
		t.Error("a container of an earlier boot starts")
	}
	if _, err := os.Stat(filepath.Join(upper, "file")); err != nil {
		t.Errorf("what was written is gone before the removal: %v", err)
	}
	// New pods run beside what is left.
	next, nextSpec := b.runPod(t)
	b.run(t, next, nextSpec, "c", "sleep 1000")
	b.removePod(t, next)
	b.removePod(t, pod)
	if _, err := os.Stat(upper); !os.IsNotExist(err) {
		t.Errorf("the writable layer is there: %v", err)
	}
	if _, err := b.Image(t.Context(), b.image); err != nil {
		t.Errorf("the image: %v", err)
	}
}

// The end of a monitor that the pod's end has ended is no loss, however late who follows it gets to see it.
func TestAMonitorThatWasToEndIsNotLost(t *testing.T) {
	b := serving(t)
	var pods []engine.PodID
	for range 8 {
		id, spec := b.runPod(t)
		c := b.run(t, id, spec, "c", "sleep 1000")
		pods = append(pods, id)
		pid, exit := b.status(t, c).PID, b.exitFile(c)
		p, err := b.pod(id)
		if err != nil {
			t.Fatal(err)
		}
		b.mu.Lock() // who follows is held up by what it is told, of the container's end
		client := p.client
		kill(t, pid)
		eventually(t, 10*time.Second, "the container's end is on record", func() bool { return exists(exit) })
		time.Sleep(20 * time.Millisecond)
		p.follow()
		err = client.KillMonitor()
		<-client.Done()
		b.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // for what must not happen
	if s := b.Stats(); s.MonitorsLost != 0 {
		t.Errorf("%d monitors are told as lost", s.MonitorsLost)
	}
	for _, id := range pods {
		if p, err := b.pod(id); err == nil && p.client != nil {
			b.monitorLost(p, p.client) // that end may have come to nobody
		}
		b.removePod(t, id)
	}
}

// A container's end is found, after the death of its monitor, beside a start that this death ends.
func TestALossBesideAStart(t *testing.T) {
	b := serving(t)
	c := newContainer(containerRecord{header: header{Version: recordVersion, Boot: "another"}, ID: "c"})
	b.beginStart(c)
	given := make(chan struct{})
	go func() {
		defer close(given)
		b.endStart(c, false)
		b.noteExit(c, ending{Code: 128, Reason: engine.ReasonStartError, At: time.Now()}, true)
	}()
	if err := b.loseContainer(t.Context(), time.Minute, c, ending{Code: codeKilled, Reason: reasonMonitorLost}); err != nil {
		t.Error(err)
	}
	<-given
	if c.exit == nil {
		t.Error("it has not ended")
	}
	if err := b.forgetContainer(c); err != nil {
		t.Error(err)
	}
}
