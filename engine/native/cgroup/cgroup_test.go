package cgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/host"
)

func driver(name engine.CgroupDriver) *Driver { return New(&host.Host{CgroupDriver: name}) }

func TestCgroupsAreNamedInTheWordsOfEitherDriver(t *testing.T) {
	for _, c := range []struct {
		driver      engine.CgroupDriver
		parent      string
		pod         Pod
		cgroupsPath string
		path        string
	}{
		{engine.CgroupfsDriver, "", Pod{"/crishim/podp1", true}, "/crishim/podp1/c1", "/crishim/podp1/c1"},
		{engine.CgroupfsDriver, "/kubepods/burstable/podX", Pod{Path: "/kubepods/burstable/podX"}, "/kubepods/burstable/podX/c1", "/kubepods/burstable/podX/c1"},
		{engine.SystemdDriver, "", Pod{"/crishim.slice/crishim-podp1.slice", true}, "crishim-podp1.slice:crishim:c1", "/crishim.slice/crishim-podp1.slice/crishim-c1.scope"},
		{engine.SystemdDriver, "/kubepods.slice/kubepods-podX.slice", Pod{Path: "/kubepods.slice/kubepods-podX.slice"}, "kubepods-podX.slice:crishim:c1",
			"/kubepods.slice/kubepods-podX.slice/crishim-c1.scope"},
		{engine.SystemdDriver, "kubepods-podX.slice", Pod{Path: "/kubepods.slice/kubepods-podX.slice"}, "kubepods-podX.slice:crishim:c1",
			"/kubepods.slice/kubepods-podX.slice/crishim-c1.scope"},
	} {
		d := driver(c.driver)
		pod, err := d.Pod("p1", c.parent)
		if err != nil || pod != c.pod {
			t.Errorf("%s, %q: %+v, %v", c.driver, c.parent, pod, err)
		}
		if dir := d.Unified(pod); dir != "" {
			t.Errorf("%s, %q: a folder %q of cgroup v2 on a host of v1", c.driver, c.parent, dir)
		}
		if got := d.Container(pod, "c1"); got != (Container{c.cgroupsPath, c.path}) {
			t.Errorf("%s, %q: %+v", c.driver, c.parent, got)
		}
		if got, err := d.Path(c.cgroupsPath); err != nil || got != c.path {
			t.Errorf("%s, %q: back to %q, %v", c.driver, c.cgroupsPath, got, err)
		}
	}
}

// Rows: S28 (part), S29
func TestAParentThatClimbsOrIsNoSliceIsRefused(t *testing.T) {
	both := []string{"/", "..", "../..", "/a/../../b", "/a/..", ".", "//", "/a b", "/a\nb", "/a\x00", "a:b:c", "/" + strings.Repeat("a", 4096)}
	for driverName, parents := range map[engine.CgroupDriver][]string{
		engine.CgroupfsDriver: both,
		engine.SystemdDriver:  append(both, "/kubepods", "system.slice/x", "-.slice", ".slice", "a--b.slice", "-a.slice", "/x.slice/y.service"),
	} {
		for _, parent := range parents {
			if pod, err := driver(driverName).Pod("p1", parent); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s, %.80q: %+v, %v", driverName, parent, pod, err)
			}
		}
		for _, id := range []engine.PodID{"", "..", "a/b", "a-b", "a:b", "a.b\n"} {
			if pod, err := driver(driverName).Pod(id, ""); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s, id %q: %+v, %v", driverName, id, pod, err)
			}
		}
	}
	for _, path := range []string{"", "a:b", "a.slice:b:c:d", "x:y:z"} {
		if got, err := driver(engine.SystemdDriver).Path(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", path, got, err)
		}
	}
	d := driver(engine.CgroupfsDriver)
	for _, path := range []string{"", "/", "a", "/..", "/a/../..", "/a/", "//"} {
		_, err := d.Processes(path)
		for _, err := range []error{err, d.Kill(t.Context(), path), d.Remove(t.Context(), path), d.Join(path, os.Getpid())} {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", path, err)
			}
		}
	}
}

// recorded is a tree of files as cgroup v2 shows them.
func recorded(t *testing.T, files map[string]string) *Driver {
	t.Helper()
	d := New(&host.Host{CgroupV2: true, CgroupDriver: engine.CgroupfsDriver})
	d.root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(d.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestARecordedTreeIsRead(t *testing.T) {
	d := recorded(t, map[string]string{
		"crishim/poda/cgroup.procs": "", "crishim/poda/c1/cgroup.procs": "12\n11\n0\n", "crishim/poda/c1/sub/cgroup.procs": "12\n13\n",
		"crishim/podb/cgroup.procs": "", "crishim/monitors/cgroup.procs": "1\n",
	})
	if pids, err := d.Processes("/crishim/poda"); err != nil || !slices.Equal(pids, []int{11, 12, 13}) {
		t.Errorf("%v, %v", pids, err)
	}
	if dir := d.Unified(Pod{Path: "/crishim/poda"}); dir != filepath.Join(d.root, "crishim/poda") {
		t.Errorf("its folder is %q", dir)
	}
	if pids, err := d.Processes("/crishim/none"); err != nil || len(pids) != 0 {
		t.Errorf("%v, %v", pids, err)
	}
}

func TestAMemoryLimitBelowWhatIsInUseIsRefused(t *testing.T) {
	d := recorded(t, map[string]string{
		"crishim/poda/memory.current": "41943040\n", "crishim/poda/memory.max": "67108864\n",
		"crishim/podb/memory.current": "41943040\n", "crishim/podb/memory.max": "max\n",
		"crishim/podc/memory.current": "41947136\n", "crishim/podc/memory.max": "41943040\n",
	})
	for _, tt := range []struct {
		name    string
		limit   int64
		refused bool
	}{
		{"poda", 16 << 20, true}, {"poda", 40<<20 - 1, true}, {"poda", 40 << 20, false}, {"poda", 96 << 20, false}, {"poda", 0, false}, {"poda", -1, false},
		{"podb", 16 << 20, true}, {"podb", 64 << 20, false},
		{"podc", 40 << 20, false}, {"podc", 39 << 20, true}, // the limit in effect, above which the kernel has gone
		{"none", 1, false},
	} {
		err := d.FitsUsage("/crishim/"+tt.name, tt.limit)
		if tt.refused != errdefs.IsFailedPrecondition(err) || tt.refused != (err != nil) {
			t.Errorf("%s, %d: %v", tt.name, tt.limit, err)
		}
	}
	err := d.UpdatePod(t.Context(), Pod{Path: "/crishim/poda", Own: true}, &engine.Resources{MemoryLimit: 16 << 20}, nil)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "memory limit 16777216 is below the 41943040 bytes in use") {
		t.Errorf("a pod: %v", err)
	}
}

// Version 1 looks itself, once it has made room.
func TestARefusalOfVersion1IsExplained(t *testing.T) {
	d := recorded(t, map[string]string{"memory/crishim/poda/memory.usage_in_bytes": "41943040\n"})
	d.host.CgroupV2 = false
	if err := d.FitsUsage("/crishim/poda", 16<<20); err != nil {
		t.Errorf("before: %v", err)
	}
	busy := errors.New("unable to set memory limit")
	for limit, below := range map[int64]bool{16 << 20: true, 64 << 20: false, 0: false, -1: false} {
		if err := d.Refused("/crishim/poda", limit, busy); !errors.Is(err, busy) || errdefs.IsFailedPrecondition(err) != below {
			t.Errorf("%d: %v", limit, err)
		}
	}
	if err := d.Refused("/crishim/poda", 16<<20, nil); err != nil {
		t.Errorf("what was not refused: %v", err)
	}
}

func TestTheLimitsOfAPodAreAllSet(t *testing.T) {
	d := New(&host.Host{CgroupV2: true, Swap: true, HugePageSizes: []string{"2MB"}})
	r := d.lower(&engine.Resources{CPUShares: 512, CPUPeriod: 100000, CPUQuota: 50000, MemoryLimit: 1 << 20, Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 5}, {PageSize: "1GB"}}}, nil)
	if r.Memory != 1<<20 || r.MemorySwap != 1<<20 || r.CpuQuota != 50000 || r.CpuWeight == 0 || len(r.HugetlbLimit) != 1 || !r.SkipDevices {
		t.Errorf("%+v", r)
	}
	if r := d.lower(&engine.Resources{}, nil); r.Memory != -1 || r.MemorySwap != -1 || r.CpuQuota != -1 || r.CpuShares != 0 || r.CpusetCpus != "" {
		t.Errorf("nothing asked for: %+v", r)
	}
	d.host.CPUs, d.host.MemoryNodes = "0-3", "0-1"
	previous := &engine.Resources{CPUShares: 512, CPUPeriod: 50000, CpusetCPUs: "1", CpusetMems: "1", Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 5}, {PageSize: "1GB"}}}
	r = d.lower(&engine.Resources{}, previous)
	if r.CpuShares != 1024 || r.CpuWeight != cgroups.ConvertCPUSharesToCgroupV2Value(1024) || r.CpuPeriod != 100000 || r.CpusetCpus != "0-3" || r.CpusetMems != "0-1" ||
		len(r.HugetlbLimit) != 1 || r.HugetlbLimit[0].Limit < 1<<62 {
		t.Errorf("nothing asked for any more: %+v", r)
	}
}

// live is a driver for this machine, with a pod's cgroup of a name that nobody else uses.
func live(t *testing.T) (*Driver, Pod) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	h, err := host.Probe(host.Options{CgroupDriver: engine.CgroupfsDriver})
	if err != nil {
		t.Skip(err)
	}
	d := New(h)
	pod, err := d.Pod(engine.PodID("test"+rand.Text()), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.RemovePod(context.Background(), pod); err != nil {
			t.Error(err)
		}
		hierarchies, _ := d.hierarchies()
		for _, h := range hierarchies {
			_ = unix.Rmdir(filepath.Join(h, ours)) // unless others are in it
		}
	})
	return d, pod
}

// child is a process that sleeps until it is killed; ended gets how it ended.
type child struct {
	*os.Process
	ended chan error
}

func sleeper(t *testing.T) child {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, gone := child{cmd.Process, make(chan error, 1)}, make(chan struct{})
	go func() {
		c.ended <- cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-gone })
	return c
}

func TestAPodsOwnCgroupIsMadeLimitedAndRemovedWithWhatIsInIt(t *testing.T) {
	d, pod := live(t)
	defer syscall.Umask(syscall.Umask(0o027)) // as the daemon's is
	if err := d.CreatePod(t.Context(), pod, &engine.Resources{MemoryLimit: 64 << 20, CPUShares: 512}); err != nil {
		t.Fatal(err)
	}
	hierarchies, err := d.hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, h := range hierarchies {
		info, err := os.Stat(filepath.Join(h, pod.Path))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("root of a user namespace does not get through %s in %s: %v, %v", pod.Path, h, info.Mode(), err)
		}
		open++
	}
	if open == 0 {
		t.Error("the pod's cgroup is in no hierarchy")
	}
	limit := func() string {
		name := "memory.limit_in_bytes"
		if d.host.CgroupV2 {
			name = "memory.max"
		}
		data, err := os.ReadFile(filepath.Join(d.controller("memory", pod.Path), name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	if got := limit(); got != strconv.Itoa(64<<20) {
		t.Errorf("limit %s", got)
	}
	// Of each other limit the file by its names in both versions, and its value now.
	others := func() (values []string) {
		for _, file := range [][3]string{
			{"cpu", "cpu.shares", "cpu.weight"}, {"cpu", "cpu.cfs_period_us", "cpu.max"}, {"cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective"},
			{"cpuset", "cpuset.effective_mems", "cpuset.mems.effective"},
		} {
			name := file[1]
			if d.host.CgroupV2 {
				name = file[2]
			}
			data, err := os.ReadFile(filepath.Join(d.controller(file[0], pod.Path), name))
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, strings.TrimSpace(string(data)))
		}
		return values
	}
	shares := &engine.Resources{MemoryLimit: 64 << 20, CPUShares: 512}
	if err := d.UpdatePod(t.Context(), pod, &engine.Resources{}, shares); err != nil || limit() == strconv.Itoa(64<<20) {
		t.Errorf("limit %s, %v", limit(), err)
	}
	free := others()
	more := &engine.Resources{MemoryLimit: 128 << 20, CPUShares: 256, CPUPeriod: 50_000, CPUQuota: 20_000, CpusetCPUs: "0", CpusetMems: "0"}
	if err := d.UpdatePod(t.Context(), pod, more, &engine.Resources{}); err != nil || limit() != strconv.Itoa(128<<20) {
		t.Errorf("limit %s, %v", limit(), err)
	}
	if got := others(); got[0] == free[0] || got[1] == free[1] {
		t.Errorf("limited to %q, free it was %q", got, free)
	}
	if err := d.UpdatePod(t.Context(), pod, &engine.Resources{}, more); err != nil || limit() == strconv.Itoa(128<<20) {
		t.Errorf("limit %s, %v", limit(), err)
	}
	if got := others(); !slices.Equal(got, free) {
		t.Errorf("lifted to %q, free it was %q", got, free)
	}
	container := d.Container(pod, "c1")
	inside, beside := sleeper(t), sleeper(t)
	if err := d.Join(container.Path, inside.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := d.Processes(pod.Path); err != nil || !slices.Equal(pids, []int{inside.Pid}) {
		t.Errorf("%v, %v; want %d", pids, err, inside.Pid)
	}
	for range 2 {
		if err := d.RemovePod(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-inside.ended:
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute):
		t.Error("what was in the cgroup lives")
	}
	if err := beside.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("what was beside it: %v", err)
	}
	for _, h := range hierarchies {
		if _, err := os.Stat(filepath.Join(h, pod.Path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s%s is there: %v", h, pod.Path, err)
		}
	}
}

func TestWhatIsFrozenIsKilledToo(t *testing.T) {
	d, pod := live(t)
	if d.host.CgroupV2 {
		t.Skip("cgroup v2 kills frozen processes itself")
	}
	if !d.host.Has("freezer") {
		t.Skip("no freezer")
	}
	frozen := sleeper(t)
	if err := d.Join(pod.Path, frozen.Pid); err != nil {
		t.Fatal(err)
	}
	if err := write(filepath.Join(d.controller("freezer", pod.Path), "freezer.state"), "FROZEN"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.Kill(ctx, pod.Path); err != nil {
		t.Error(err)
	}
	<-frozen.ended
}

// What forks is never all listed: it is frozen, and listed then. Version 1, and 2 before Linux 5.14, have nothing better.
func TestWhatIsNotAllKilledIsFrozenForIt(t *testing.T) {
	const procs = "cgroup.procs"
	for name, of := range map[string]struct {
		v2                    bool
		folder, state         string
		running, frozen, told string
	}{
		"version 1": {false, "freezer/crishim/poda", "freezer.state", "THAWED", "FROZEN", ""},
		"version 2": {true, "crishim/poda", "cgroup.freeze", "0", "1", "populated 1\nfrozen 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			other := sleeper(t) // in another cgroup, so that it is let live
			d := recorded(t, map[string]string{
				of.folder + "/" + procs: strconv.Itoa(other.Pid) + "\n", of.folder + "/" + of.state: of.running, of.folder + "/cgroup.events": of.told,
				"freezer/" + procs: "", // by which a hierarchy of version 1 is known
			})
			d.host.CgroupV2 = of.v2
			state := func() string {
				data, err := os.ReadFile(filepath.Join(d.root, of.folder, of.state))
				if err != nil {
					t.Error(err)
				}
				return string(data)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			killed := make(chan error, 1)
			go func() { killed <- d.Kill(ctx, "/crishim/poda") }()
			for state() != of.frozen {
				if ctx.Err() != nil {
					t.Fatalf("it was never frozen: %v", <-killed)
				}
			}
			if err := os.Truncate(filepath.Join(d.root, of.folder, procs), 0); err != nil {
				t.Error(err)
			}
			if err := <-killed; err != nil {
				t.Error(err)
			}
			if got := state(); got != of.running {
				t.Errorf("it is left %s", got)
			}
		})
	}
}

func TestTheKubeletsCgroupIsNeitherLimitedNorRemoved(t *testing.T) {
	d, own := live(t)
	if err := d.CreatePod(t.Context(), own, nil); err != nil {
		t.Fatal(err)
	}
	kubelets, err := d.Pod("p1", own.Path)
	if err != nil || kubelets.Own {
		t.Fatalf("%+v, %v", kubelets, err)
	}
	if err := errors.Join(
		d.CreatePod(t.Context(), kubelets, &engine.Resources{MemoryLimit: 1}), d.UpdatePod(t.Context(), kubelets, &engine.Resources{MemoryLimit: 1}, nil), d.RemovePod(t.Context(), kubelets),
	); err != nil {
		t.Error(err)
	}
	if !d.exists(own.Path) {
		t.Error("it was removed")
	}
}
