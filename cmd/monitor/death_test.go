//go:build cgo

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

// A daemon of its own, by this program: it starts a monitor, says so and waits to be killed.
func init() {
	if dir := os.Getenv("CRISHIM_TEST_DAEMON"); dir != "" {
		helper, err := os.Open(os.Getenv("CRISHIM_TEST_HELPER"))
		if err == nil {
			config := &monitor.Config{Pod: "pod", Dir: dir, StateRoot: filepath.Dir(dir) + "/state"}
			config.CommitTimeout, _ = time.ParseDuration(os.Getenv("CRISHIM_TEST_COMMIT"))
			_, err = monitor.Spawn(context.Background(), helper, config)
		}
		fmt.Println(err)
		select {}
	}
}

// killedDaemon leaves a monitor in the folder that waits so long for the commit, 0 for the default.
func killedDaemon(t *testing.T, dir string, commit time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "CRISHIM_TEST_DAEMON="+dir, "CRISHIM_TEST_HELPER="+program, "CRISHIM_TEST_COMMIT="+commit.String())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said [64]byte
	n, _ := out.Read(said[:])
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if string(said[:n]) != "<nil>\n" {
		t.Fatalf("the daemon: %s", said[:n])
	}
}

// Rows: R01 (part), R04 (part), R29 (part)
func TestMonitorOutlivesTheDaemon(t *testing.T) {
	if missing != "" {
		t.Skip("a real monitor " + missing)
	}
	base := t.TempDir()
	killedDaemon(t, base+"/pod", 0)
	client, err := monitor.Connect(within(t), base+"/pod")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := &pod{t: t, Client: client, base: base, name: "outlives", config: monitor.Config{Dir: base + "/pod", StateRoot: base + "/state"}}
	defer p.end()
	args := p.args(p.spec(nil, "/bin/sh", "-c", "while [ ! -e /tmp/go ]; do echo tick; sleep 0.05; done; exit 11"), "a")
	p.run("a", args)
	eventually(t, "it ticks", func() bool { return strings.Contains(p.log("a"), "tick") })
	// This process is the second daemon; the third one comes after the exit.
	client.Close()
	if err := os.WriteFile(base+"/root/tmp/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exit is recorded while no daemon is there", func() bool { _, err := os.Stat(args.ExitFile); return err == nil })
	if p.Client, err = monitor.Connect(within(t), base+"/pod"); err != nil {
		t.Fatal(err)
	}
	if exit := must(p.Wait(within(t), "a")); exit.Code != 11 {
		t.Fatalf("exit %+v", exit)
	}
}

func TestMonitorOfAPodThatWasNeverRecordedEnds(t *testing.T) {
	if missing != "" {
		t.Skip("a real monitor " + missing)
	}
	dir := t.TempDir() + "/pod"
	killedDaemon(t, dir, 300*time.Millisecond)
	switch client, err := monitor.Connect(within(t), dir); {
	case err == nil:
		defer client.Close()
		select {
		case <-client.Done():
		case <-within(t).Done():
			t.Fatal("it lives")
		}
	case !errdefs.IsUnavailable(err) && !errdefs.IsNotFound(err): // has it ended already?
		t.Fatal(err)
	}
	eventually(t, "its files are gone", func() bool {
		entries, err := os.ReadDir(dir)
		return err == nil && !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			return e.Name() == monitor.SocketName || e.Name() == monitor.RecordName
		})
	})
}

// Rows: R03 (part)
func TestDeathOfTheMonitorIsNoticedAndItsContainersCanBeRemoved(t *testing.T) {
	p := newPod(t)
	state := p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	waited := make(chan error, 1)
	go func() { _, err := p.Wait(within(t), "a"); waited <- err }()
	subscribed := make(chan error, 1)
	go func() { subscribed <- p.Subscribe(within(t), func(monitor.Event) {}) }()
	if err := p.KillMonitor(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-within(t).Done():
		t.Fatal("not noticed")
	}
	for _, calls := range []chan error{waited, subscribed} {
		if err := <-calls; !errdefs.IsUnavailable(err) {
			t.Fatalf("a call in flight: %v", err)
		}
	}
	if _, err := p.List(within(t)); !errdefs.IsUnavailable(err) {
		t.Fatalf("a later call: %v", err)
	}
	if _, err := monitor.Connect(within(t), p.config.Dir); !errdefs.IsUnavailable(err) {
		t.Fatalf("connect: %v", err)
	}
	if !alive(state.PID) {
		t.Fatal("the container died with its monitor")
	}
	p.Close()
	next, err := monitor.Spawn(within(t), p.helper, &p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.Client = next
	if err := p.Delete(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container is dead", func() bool { return !alive(state.PID) })
	for _, path := range state.CgroupPaths {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("cgroup %s is left", path)
		}
	}
}

func TestSecondMonitorIsRefused(t *testing.T) {
	p := newPod(t)
	if _, err := monitor.Spawn(within(t), p.helper, &p.config); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if _, err := monitor.Connect(within(t), t.TempDir()); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
}

// socketNames are those of all unix sockets that a process holds, abstract ones with "@".
func socketNames(pid int) (names []string) {
	proc := "/proc/" + itoa(pid)
	own := map[string]bool{}
	for _, entry := range must(os.ReadDir(proc + "/fd")) {
		to, _ := os.Readlink(proc + "/fd/" + entry.Name())
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for line := range strings.Lines(string(must(os.ReadFile(proc + "/net/unix")))) {
		if fields := strings.Fields(line); len(fields) > 7 && own[fields[6]] {
			names = append(names, fields[7])
		}
	}
	return names
}

// Rows: S57, S56 (part)
func TestMonitorProcess(t *testing.T) {
	p := newPod(t)
	pid := itoa(p.PID())
	proc := "/proc/" + pid
	for name, mode := range map[string]os.FileMode{"": 0o700, "/" + monitor.SocketName: 0o600, "/" + monitor.RecordName: 0o600} {
		if info := must(os.Stat(p.config.Dir + name)); info.Mode().Perm() != mode {
			t.Errorf("%s%s has mode %v", p.config.Dir, name, info.Mode())
		}
	}
	if comm := string(must(os.ReadFile(proc + "/comm"))); comm != "crishim-monitor\n" {
		t.Errorf("comm %q", comm)
	}
	if cwd := must(os.Readlink(proc + "/cwd")); cwd != "/" {
		t.Errorf("cwd %s", cwd)
	}
	for fd := range 2 {
		if to := must(os.Readlink(proc + "/fd/" + itoa(fd))); to != "/dev/null" {
			t.Errorf("descriptor %d is %s", fd, to)
		}
	}
	for _, entry := range must(os.ReadDir(proc + "/fd")) {
		to, _ := os.Readlink(proc + "/fd/" + entry.Name())
		if strings.HasPrefix(to, "/") && to != "/dev/null" && !strings.HasPrefix(to, p.config.Dir) {
			t.Errorf("descriptor %s is %s", entry.Name(), to)
		}
	}
	if env := string(must(os.ReadFile(proc + "/environ"))); strings.Contains(env, "HOME") {
		t.Errorf("environment %q", env)
	}
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGTERM, unix.SIGINT, unix.SIGPIPE, unix.SIGQUIT} {
		if err := unix.Kill(p.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	if exit := p.sh("a", "kill -TERM $$; true", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }); exit.Signal != int(unix.SIGTERM) {
		t.Errorf("a container's process does not take SIGTERM: %+v", exit)
	}
	if session, err := unix.Getsid(p.PID()); err != nil || session != p.PID() {
		t.Errorf("session %d, %v", session, err)
	}
	p.run("b", p.args(p.spec(nil, "/bin/sleep", "1000"), "b"))
	names := socketNames(p.PID())
	for _, name := range names {
		if strings.HasPrefix(name, "@") {
			t.Errorf("an abstract socket: %s", name)
		}
	}
	if !slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, "/"+monitor.SocketName) }) {
		t.Errorf("its own socket is not among %q", names)
	}
}

// Rows: R17 (part)
func TestOrphansAreReaped(t *testing.T) {
	p := newPod(t)
	p.run("a", p.args(p.spec(func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }, "/bin/sleep", "1000"), "a"))
	for range 5 {
		if _, exited, err := p.exec(within(t), "a", p.process("/bin/sh", "-c", "(setsid sleep 0.02 &); exit 2")); err != nil || exited.Code != 2 {
			t.Fatalf("%+v, %v", exited, err)
		}
	}
	eventually(t, "the monitor has one child", func() bool {
		data := must(os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID(), p.PID())))
		all := strings.Fields(string(data))
		for _, entry := range must(os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))) {
			if entry.Name() != itoa(p.PID()) {
				data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", p.PID(), entry.Name()))
				all = append(all, strings.Fields(string(data))...)
			}
		}
		return len(all) == 1
	})
}
