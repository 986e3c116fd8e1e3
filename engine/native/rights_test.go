package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
)

// rights are what a process may do: of /proc/PID/status, its namespaces, cgroups and label.
const rightsScript = `grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask)' /proc/$P/status
for n in cgroup ipc mnt net pid user uts; do readlink /proc/$P/ns/$n; done; cat /proc/$P/cgroup; cat /proc/$P/oom_score_adj; cat /proc/$P/limits
cat /proc/$P/attr/current 2>/dev/null; true`

// An exec has the rights of the container's first process, exactly.
//
// Rows: S19 (part), S18 (part)
func TestAnExecHasTheContainersRights(t *testing.T) {
	b := serving(t)
	uid, gid := int64(1000), int64(1000)
	for name, change := range map[string]func(*engine.ContainerSpec){
		"default": func(*engine.ContainerSpec) {},
		"user": func(s *engine.ContainerSpec) {
			s.Security.UID, s.Security.GID, s.Security.NoNewPrivs = &uid, &gid, true
		},
		"seccomp":    func(s *engine.ContainerSpec) { s.Security.Seccomp.Type = engine.ProfileRuntimeDefault },
		"no caps":    func(s *engine.ContainerSpec) { s.Security.CapDrop = []string{"ALL"} },
		"some":       func(s *engine.ContainerSpec) { s.Security.CapAdd = []string{"NET_ADMIN"} },
		"privileged": func(s *engine.ContainerSpec) { s.Security.Privileged = true },
	} {
		t.Run(name, func(t *testing.T) {
			pod, spec := b.runPod(t)
			s := b.containerSpec(t, pod, spec, "c", "sleep 1000")
			s.Command = []string{"sleep", "1000"}
			change(s)
			st, err := b.CreateContainer(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
				t.Fatal(err)
			}
			first, own := b.sh(t, st.ID, "P=1; "+rightsScript), b.sh(t, st.ID, "P=$$; "+rightsScript)
			if first != own || !strings.Contains(first, "CapEff") {
				t.Errorf("the first process has\n%s\nan exec has\n%s", first, own)
			}
			if !strings.Contains(first, "CapInh:\t0000000000000000") && name != "privileged" {
				t.Errorf("inheritable capabilities: %s", first)
			}
			b.removePod(t, pod)
		})
	}
}

// A process has its three descriptors and no folder of the host, for its working directory too.
//
// Rows: S06 (part), S55 (part), S56
func TestNothingOfTheHostIsOpenInAContainer(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	s := b.containerSpec(t, pod, spec, "c", "")
	s.Command = []string{"sleep", "1000"}
	st, err := b.CreateContainer(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = b.StartContainer(t.Context(), st.ID, s); err != nil {
		t.Fatal(err)
	}
	id := st.ID
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		_, err := b.Exec(ctx, id, &engine.ExecSpec{Command: []string{"sleep", "1001"}})
		ended <- err
	}()
	var pids []int
	eventually(t, 10*time.Second, "the exec runs too", func() bool {
		pids, err = b.Engine.cgroups.Processes(st.CgroupPath)
		return err == nil && len(pids) == 2 && len(processes(t, "sleep\x001001")) > 0
	})
	for _, pid := range pids {
		var open []string
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			open = append(open, entry.Name())
		}
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil || !slices.Equal(open, []string{"0", "1", "2"}) || cwd != "/" {
			t.Errorf("process %d has %v open and is in %q: %v", pid, open, cwd, err)
		}
	}
	stop()
	<-ended
	monitorPID := b.monitorPID(t, pod)
	before, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", monitorPID))
	if err != nil {
		t.Fatal(err)
	}
	for n := 3; n < 32; n++ {
		s := b.containerSpec(t, pod, spec, fmt.Sprintf("fd%d", n), "ls; cat etc/shadow")
		s.WorkingDir = fmt.Sprintf("/proc/self/fd/%d", n)
		st, err := b.CreateContainer(t.Context(), s)
		if err != nil {
			continue
		}
		if _, err := b.StartContainer(t.Context(), st.ID, s); err == nil {
			t.Errorf("a container with the working directory %s started", s.WorkingDir)
		}
		if err := b.RemoveContainer(t.Context(), st.ID); err != nil {
			t.Error(err)
		}
	}
	// The classic overwriting of the runtime through what it is for a moment.
	for _, command := range [][]string{{"/proc/self/exe"}, {"sh", "-c", "for p in /proc/[0-9]*; do echo x > $p/exe; done 2>/dev/null; true"}} {
		_, _ = b.Exec(t.Context(), id, &engine.ExecSpec{Command: command})
	}
	after, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", monitorPID))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the helper was changed: %v", err)
	}
	b.sh(t, id, "true")
	b.removePod(t, pod)
}

// Root of a container owns what it has as its stdio: what stands for none of it must not be the host's /dev/null, whose mode it
// could change for everybody on the node.
//
// Rows: S56 (part)
func TestTheHostsNullDeviceIsInNoContainer(t *testing.T) {
	b := serving(t)
	var host unix.Stat_t
	if err := unix.Stat(os.DevNull, &host); err != nil {
		t.Fatal(err)
	}
	pod, spec := b.runPod(t)
	for name, change := range map[string]func(*engine.ContainerSpec){
		"plain": func(*engine.ContainerSpec) {},
		// Where the pod brings its own /dev, libcontainer makes and opens nothing there.
		"dev": func(s *engine.ContainerSpec) {
			s.Mounts = []engine.Mount{{ContainerPath: "/dev", HostPath: t.TempDir()}}
		},
	} {
		s := b.containerSpec(t, pod, spec, name, "")
		s.Command, s.Security.CapDrop = []string{"sleep", "1000"}, []string{"ALL"}
		change(s)
		st, err := b.CreateContainer(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, s); err != nil {
			t.Fatal(err)
		}
		// The exec has neither output where it is given its input.
		script := strings.NewReader("stat -L -c '%F %t:%T %a %d %i' /proc/self/fd/2 > /tmp/stderr; echo x")
		if code, err := b.Exec(t.Context(), st.ID, &engine.ExecSpec{Command: []string{"sh"}, Streams: engine.Streams{Stdin: script}}); code != 0 || err != nil {
			t.Fatal(code, err)
		}
		got := b.sh(t, st.ID, "stat -L -c '%F %t:%T %a %d %i' /proc/1/fd/0 /proc/self/fd/0; cat /tmp/stderr; readlink /proc/self/fd/0; cat")
		hosts := fmt.Sprintf("666 %d %d\n", host.Dev, host.Ino)
		if strings.Count(got, "character special file 1:3 666 ") != 3 || !strings.HasSuffix(got, "\n/dev/null\n") || strings.Contains(got, hosts) {
			t.Errorf("%s: the container has as its stdio %q, the host's /dev/null is %q", name, got, hosts)
		}
	}
	b.removePod(t, pod)
}

// Nobody but root of the host gets at a monitor: its socket is a file that no container sees, and nothing is abstract.
//
// Rows: S56 (part), S57 (part)
func TestAMonitorIsOutOfReach(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t, func(s *engine.PodSpec) { s.Namespaces.Network = engine.NamespaceNode })
	id := b.run(t, pod, spec, "c", "sleep 1000")
	own := map[string]bool{} // inodes of what the monitor and this process, which is the daemon here, have
	for _, pid := range []int{b.monitorPID(t, pod), os.Getpid()} {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			to, _ := os.Readlink(filepath.Join(dir, entry.Name()))
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				own[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	listed := false
	for _, line := range strings.Split(b.sh(t, id, "cat /proc/net/unix"), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 8 || !own[fields[6]] {
			continue
		}
		listed = listed || strings.HasSuffix(fields[7], "/monitor.sock")
		if strings.HasPrefix(fields[7], "@") {
			t.Errorf("an abstract socket: %s", line)
		}
	}
	if !listed {
		t.Error("the container does not see the list that has the monitor's sockets")
	}
	if got := b.sh(t, id, "find / -name monitor.sock -not -path '/proc/*' 2>/dev/null | wc -l"); strings.TrimSpace(got) != "0" {
		t.Errorf("%s sockets are seen in a container", got)
	}
	dir := b.monitorDir(pod)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "monitor.sock"): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v: %v", path, info.Mode().Perm(), want, err)
		}
	}
	// Its memory and descriptors are nobody's either: it has nothing of the pod's and cannot be traced by its processes.
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.monitorPID(t, pod)))
	if err != nil || len(fds) > 40 {
		t.Errorf("%d descriptors, %v", len(fds), err)
	}
	b.removePod(t, pod)
}
