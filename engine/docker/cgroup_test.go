package docker

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/process"
)

func TestACgroupIsTheContainersByItsName(t *testing.T) {
	for path, want := range map[string]string{
		"":                              "",
		"/":                             "",
		"/system.slice/sshd.service":    "",
		"/docker/" + otherContainer:     "",
		"/docker/" + testContainer[:12]: "",
		"/docker/" + testContainer:      "/docker/" + testContainer,
		"/kubepods.slice/docker-" + testContainer + ".scope":            "/kubepods.slice/docker-" + testContainer + ".scope",
		"/kubepods.slice/docker-" + testContainer + ".scope/init.scope": "/kubepods.slice/docker-" + testContainer + ".scope",
		"/docker/" + testContainer + "/x (deleted)":                     "/docker/" + testContainer,
		"/docker/" + testContainer + " (deleted)":                       "",
	} {
		if got := containerCgroup(path, testContainer); got != want {
			t.Errorf("a process in %q: the container's is %q, want %q", path, got, want)
		}
	}
	for data, v2 := range map[string]bool{"9:cpu,memory:/here\n1:cpu:/there\n0::/there\n": false, "1:memory:/there\n0::/here\n": true} {
		if got := parseCgroup(data, v2); got != "/here" {
			t.Errorf("of %q: %q", data, got)
		}
	}
}

// The root cgroup has all processes of the host.
func TestNothingIsDoneToTheRootCgroup(t *testing.T) {
	unified := engine.Resources{Unified: map[string]string{"memory.high": "1"}}
	huge := engine.Resources{Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 4096}}}
	defaults := engine.Resources{Hugepages: []engine.HugepageLimit{{PageSize: "2MB"}}}
	for _, path := range []string{"", "/", "//", "/a/.."} {
		for _, v2 := range []bool{false, true} {
			f := &facts{cgroupV2: v2, cgroupRoot: t.TempDir()}
			listIn(t, f, "/", 1)
			if pids, err := f.cgroupProcesses(path); len(pids) != 0 || err != nil {
				t.Errorf("cgroup %q has the processes %v", path, pids)
			}
			if files, err := f.limitsByFile(path, &huge, &engine.Resources{}); len(files) != 0 || !errdefs.IsFailedPrecondition(err) {
				t.Errorf("cgroup %q is limited by %v, %v", path, files, err)
			}
			if files, err := f.limitsByFile(path, &defaults, &engine.Resources{}); len(files) != 0 || err != nil {
				t.Errorf("what nobody asked for, in cgroup %q: %v, %v", path, files, err)
			}
			if files, err := f.limitsByFile(path, &engine.Resources{}, &huge); len(files) != 0 || !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a limit of cgroup %q is taken back by %v, %v", path, files, err)
			}
			if files, err := f.limitsByFile(path, &unified, &engine.Resources{}); v2 && (len(files) != 0 || !errdefs.IsFailedPrecondition(err)) {
				t.Errorf("cgroup %q is limited by %v, %v", path, files, err)
			}
		}
	}
}

// listIn has a cgroup list processes.
func listIn(t *testing.T, f *facts, path string, pids ...int) {
	t.Helper()
	dir := f.cgroupDir(path, "memory")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for _, pid := range pids {
		list.WriteString(strconv.Itoa(pid) + "\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bystander is a process in whichever cgroup the test is in, and a check that nobody has changed it.
func bystander(t *testing.T) (cmd *exec.Cmd, untouched func()) {
	t.Helper()
	cmd = exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	before := scoreOf(t, cmd)
	return cmd, func() {
		t.Helper()
		if now := scoreOf(t, cmd); now != before {
			t.Errorf("oom_score_adj of a process that is not the container's was set from %s to %s", before, now)
		}
	}
}

func scoreOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	data, err := os.ReadFile(procPath(cmd.Process.Pid, "oom_score_adj"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// Docker names the score of a container's creation for ever: a second change may be to that one.
func TestAScoreGoesBackToThatOfTheCreation(t *testing.T) {
	f := &facts{cgroupRoot: cgroupRoot, oomScoreAdjMin: oomScoreAdjLowest}
	if _, err := os.Stat(f.cgroupDir("/", "memory")); err != nil {
		f.cgroupV2 = true
	}
	path := fmt.Sprintf("/crishim-score-%d/%s", os.Getpid(), testContainer)
	dir := f.cgroupDir(path, "memory")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	t.Cleanup(func() {
		eventually(t, 10*time.Second, "the cgroup to be empty", func() bool { return unix.Rmdir(dir) == nil })
		_ = unix.Rmdir(filepath.Dir(dir))
	})
	first, _ := bystander(t)
	pid := strconv.Itoa(first.Process.Pid)
	for file, value := range map[string]string{procPath(first.Process.Pid, "oom_score_adj"): "900", filepath.Join(dir, "cgroup.procs"): pid} {
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			t.Skipf("no process can be moved to a cgroup: %v", err)
		}
	}
	fake := newAbsentFake(t)
	fake.put(testContainer, running)
	in := fake.containers[testContainer]
	in.State.Pid, in.HostConfig.OomScoreAdj = first.Process.Pid, 900
	var e Engine
	for _, score := range []int64{950, 900} {
		if err := e.updateByFile(testContainer, path, &engine.Resources{OOMScoreAdj: score}, &in, f); err != nil {
			t.Error(err)
		}
		if got := scoreOf(t, first); got != strconv.FormatInt(score, 10) {
			t.Errorf("oom_score_adj is %s, want %d", got, score)
		}
	}
}

// The list of a cgroup's processes is old by the time that they are written to.
//
// Rows: R16 (part)
func TestOnlyProcessesOfTheContainerGetItsScore(t *testing.T) {
	other, untouched := bystander(t)
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	f := &facts{cgroupRoot: t.TempDir(), oomScoreAdjMin: oomScoreAdjLowest}
	path := "/docker/" + testContainer
	listIn(t, f, path, other.Process.Pid, gone.Process.Pid)
	fake := newAbsentFake(t)
	fake.put(testContainer, running)
	in := fake.containers[testContainer]
	var e Engine
	if err := e.updateByFile(testContainer, path, &engine.Resources{OOMScoreAdj: 500}, &in, f); err != nil {
		t.Error(err)
	}
	untouched()
}

// updateBench is an engine with a running container whose first process is one of the test's, outside of the container's
// cgroup as the kernel says, and a root cgroup with a bystander.
type updateBench struct {
	*Engine
	fake      *fakeEngine
	first     *exec.Cmd
	untouched func()
}

func newUpdateBench(t *testing.T) *updateBench {
	t.Helper()
	b := &updateBench{fake: newFake(t)}
	var other *exec.Cmd
	other, b.untouched = bystander(t)
	root := t.TempDir()
	listIn(t, &facts{cgroupRoot: root}, "/", other.Process.Pid)
	b.first, _ = bystander(t)
	state := running
	state.Pid = b.first.Process.Pid
	b.fake.put(testContainer, state)
	b.fake.setFail("/containers/"+testContainer+"/update", http.StatusOK, "{}")
	var sink *record
	b.Engine, sink = watched(t, b.fake.socket, func(o *Options) { o.cgroupRoot = root })
	sink.waitReady(t)
	return b
}

// updates is how often Docker was asked.
func (b *updateBench) updates() int {
	return b.fake.requests("POST /containers/" + testContainer + "/update")
}

// What Docker calls running may have ended, and its pid be another's, by the time that the pid is looked at.
//
// Rows: R16 (part)
func TestUpdateOfAContainerThatHasEndedMeanwhile(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *updateBench){
		"nobody has reaped it": func(t *testing.T, b *updateBench) {
			if err := b.first.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			eventuallyGone(t, b.first.Process.Pid)
		},
		"its pid is nobody's": func(t *testing.T, b *updateBench) {
			_ = b.first.Process.Kill()
			_ = b.first.Wait()
		},
		"its pid is another's": func(_ *testing.T, b *updateBench) {
			p, _ := b.processes.of(testContainer)
			p.startTicks--
			b.processes.m.Store(testContainer, p)
		},
		"Docker knows": func(_ *testing.T, b *updateBench) { b.fake.put(testContainer, exited) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newUpdateBench(t)
			end(t, b)
			if err := b.UpdateContainer(t.Context(), testContainer, &engine.Resources{OOMScoreAdj: 500}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has ended") {
				t.Errorf("the update: %v", err)
			}
			if n := b.updates(); n != 0 {
				t.Errorf("Docker was asked %d times to change what has ended", n)
			}
			b.untouched()
		})
	}
}

// eventuallyGone waits for the end of a child, which stays a zombie.
func eventuallyGone(t *testing.T, pid int) {
	t.Helper()
	w, err := process.WatchExit(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestAContainerThatEndsWhileItIsUpdated(t *testing.T) {
	b := newUpdateBench(t)
	b.fake.mu.Lock()
	b.fake.fail["/containers/"+testContainer+"/update"] = func(w http.ResponseWriter) {
		_ = b.first.Process.Kill()
		_ = b.first.Wait()
		_, _ = w.Write([]byte("{}"))
	}
	b.fake.mu.Unlock()
	if err := b.UpdateContainer(t.Context(), testContainer, &engine.Resources{OOMScoreAdj: 500}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("the update: %v", err)
	}
	if n := b.updates(); n != 1 {
		t.Errorf("Docker was asked %d times, want no second time to take back what has ended", n)
	}
	b.untouched()
}

// Limits that Docker sets need no cgroup from us.
func TestUpdateOfAContainerInAForeignCgroup(t *testing.T) {
	b := newUpdateBench(t)
	if err := b.UpdateContainer(t.Context(), testContainer, &engine.Resources{CPUShares: 512}); err != nil || b.updates() != 1 {
		t.Errorf("CPU shares: %v, Docker was asked %d times", err, b.updates())
	}
	for name, r := range map[string]engine.Resources{
		"oom_score_adj": {OOMScoreAdj: 500},
		"huge page":     {Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 4096}}},
	} {
		before := b.updates()
		if err := b.UpdateContainer(t.Context(), testContainer, &r); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if n := b.updates() - before; n != 2 {
			t.Errorf("%s: Docker was asked %d times, want a second time to take it back", name, n)
		}
	}
	b.untouched()
}

func TestAContainerThatStartsInAForeignCgroupIsNotLimitedThere(t *testing.T) {
	for name, c := range map[string]struct {
		limit uint64
		runs  bool
	}{"not asked for": {0, true}, "asked for": {4096, false}} {
		t.Run(name, func(t *testing.T) {
			b := newUpdateBench(t)
			file := filepath.Join(b.opts.cgroupRoot, "hugetlb", "hugetlb.2MB.limit_in_bytes")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("before"), 0o644); err != nil {
				t.Fatal(err)
			}
			b.fake.setFail("/containers/"+testContainer+"/wait", http.StatusOK, `{"StatusCode":137}`)
			spec := &engine.ContainerSpec{Resources: engine.Resources{Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: c.limit}}}}
			_, err := b.StartContainer(t.Context(), testContainer, spec)
			if c.runs != (err == nil) || err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("the start: %v", err)
			}
			if killed := b.fake.requests("POST /containers/"+testContainer+"/kill") > 0; killed == c.runs {
				t.Errorf("it was killed: %v", killed)
			}
			if data, _ := os.ReadFile(file); string(data) != "before" {
				t.Errorf("the root's limit is %q", data)
			}
		})
	}
}

// A score that was changed before the start is that of the process; what cannot be set, as here where the process is in no
// cgroup of the container's, is not passed over.
func TestAStartSetsTheScoreOfAnUpdateBefore(t *testing.T) {
	b := newUpdateBench(t)
	if _, err := b.StartContainer(t.Context(), testContainer, &engine.ContainerSpec{Resources: engine.Resources{OOMScoreAdj: 500}}); err == nil {
		t.Error("it was started with the score of its creation")
	}
}

// A limit that is taken back is waited for no longer than the engine is there: the container's lock is held meanwhile.
func TestALimitThatIsTakenBackEndsWithTheEngine(t *testing.T) {
	f := newFake(t)
	runs := running
	runs.Pid = os.Getpid() // in no cgroup of the container's, so that its files cannot be written
	f.put(testContainer, runs)
	hangs := make(chan struct{})
	updates := 0
	f.mu.Lock()
	f.fail["/containers/"+testContainer+"/update"] = func(w http.ResponseWriter) {
		f.mu.Lock()
		updates++
		first := updates == 1
		f.mu.Unlock()
		if first {
			_, _ = io.WriteString(w, "{}")
			return
		}
		close(hangs)
		<-f.stop
	}
	f.mu.Unlock()
	e, sink := watched(t, f.socket, nil)
	sink.waitReady(t)
	ended := make(chan error, 1)
	go func() {
		ended <- e.UpdateContainer(context.Background(), testContainer, &engine.Resources{Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}})
	}()
	<-hangs
	f.end()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the update succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the update goes on without the engine")
	}
}

func TestAMemoryLimitBelowWhatIsInUseIsRefused(t *testing.T) {
	f := &facts{cgroupV2: true, cgroupRoot: t.TempDir()}
	if err := os.WriteFile(filepath.Join(f.cgroupRoot, "memory.current"), []byte("41943040\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		limits  engine.Resources
		refused bool
	}{
		{engine.Resources{MemoryLimit: 16 << 20}, true}, {engine.Resources{MemoryLimit: 64 << 20}, false}, {engine.Resources{}, false},
		{engine.Resources{Unified: map[string]string{"memory.max": "16M"}}, true},
		{engine.Resources{MemoryLimit: 64 << 20, Unified: map[string]string{"memory.max": "16777216"}}, true},
		{engine.Resources{MemoryLimit: 16 << 20, Unified: map[string]string{"memory.max": "max"}}, false},
	} {
		if err := fitsUsage(&tt.limits, "/", f); errdefs.IsFailedPrecondition(err) != tt.refused || (err != nil) != tt.refused {
			t.Errorf("%+v: %v", tt.limits, err)
		}
	}
}
