package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// EngineNative is the value of $E2E_ENGINE for the daemon's own engine, which needs no dockerd.
const EngineNative = "native"

// EngineBoth is the value of $E2E_ENGINE for EngineDebian with the native engine on beside it.
const EngineBoth = "both"

// Native says that the tests run on the daemon's own engine.
func Native() bool { return os.Getenv(engineVariable) == EngineNative }

// AboutDocker skips a test of what only a Docker Engine does where the tests run without one.
func AboutDocker(t testing.TB) {
	t.Helper()
	if Native() {
		t.Skip("this test is about a Docker Engine")
	}
}

// AboutNative skips a test of what only the daemon's own engine does where the tests run on a Docker Engine.
func AboutNative(t testing.TB) {
	t.Helper()
	if !Native() {
		t.Skip("this test is about the native engine: E2E_ENGINE=native")
	}
}

// nativeHelper builds the helper that the daemon's build embeds.
func nativeHelper(t T) {
	t.Helper()
	if os.Getenv("E2E_CRISHIM") != "" {
		return // it has its own
	}
	if err := locked(root(), nil, filepath.Join(root(), "hack", "helper.sh"), runtime.GOARCH, "e2e"); err != nil {
		t.Fatalf("building the native engine's helper: %v", err)
	}
	if file := filepath.Join("engine", "native", "helper", "embedded", runtime.GOARCH, "crishim-monitor"); !isFile(filepath.Join(root(), file)) {
		t.Fatalf("hack/helper.sh made no %s, without which there is no native engine: run it to see what is missing", file)
	}
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// native is what can be seen of the native engine from outside: its files.
type native struct{ shim *Shim }

func (e native) root(parts ...string) string {
	return filepath.Join(append([]string{e.shim.RootDir, "native"}, parts...)...)
}

func (e native) run(parts ...string) string {
	return filepath.Join(append([]string{e.shim.RunDir, "native"}, parts...)...)
}

// runcState is what libcontainer keeps of a container.
type runcState struct {
	PID     int               `json:"init_process_pid"`
	Start   uint64            `json:"init_process_start"`
	Cgroups map[string]string `json:"cgroup_paths"`
}

func (e native) state(id string) (state runcState, err error) {
	data, err := os.ReadFile(e.run("runc", id, "state.json"))
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	return state, err
}

// hostPID is the first process of a container, or the pause process of a pod that has one.
func (e native) hostPID(id string) (int, error) {
	if _, err := os.Stat(e.root("pods", id)); err == nil {
		id = "pause-" + id
	}
	state, err := e.state(id)
	if err != nil || StartTime(state.PID) != strconv.FormatUint(state.Start, 10) || isZombie(state.PID) {
		return 0, nil //nolint:nilerr // no state, no process
	}
	return state.PID, nil
}

func (e native) netns(pod string) (string, error) { return e.run("ns", pod, "net"), nil }

func isZombie(pid int) bool {
	stat := readString("/proc/" + strconv.Itoa(pid) + "/stat")
	return strings.HasPrefix(stat[strings.LastIndexByte(stat, ')')+1:], " Z")
}

// objects are the pods and containers on record, and whether they run.
func (e native) objects() (map[string]bool, error) {
	all := map[string]bool{}
	for _, id := range recordNames(e.root("pods")) {
		all[id] = len(e.monitorsOf(id)) > 0
	}
	for _, id := range recordNames(e.root("records")) {
		pid, err := e.hostPID(id)
		if err != nil {
			return nil, err
		}
		all[id] = pid != 0
	}
	return all, nil
}

// objectsOfPod describes the pods and containers on record of a pod by its uid.
func (e native) objectsOfPod(uid string) ([]string, error) {
	var list []string
	for _, kind := range []string{"pods", "records"} {
		for _, id := range recordNames(e.root(kind)) {
			if strings.Contains(readString(e.root(kind, id)), uid) {
				list = append(list, kind+"/"+id)
			}
		}
	}
	return list, nil
}

func recordNames(dir string) []string {
	entries, _ := os.ReadDir(dir) // absent before the first start
	var names []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") { // what is being written, or was set aside
			names = append(names, entry.Name())
		}
	}
	return names
}

// layer is where the host sees a container's writable layer and its whole root file system.
func (e native) layer(id string) (upper, merged string, err error) {
	return e.root("roots", "containers", id, "upper"), e.run("roots", "containers", id, "rootfs"), nil
}

// monitors are the processes whose messages go to a file in the daemon's run folder, also where that is gone.
func (e native) monitors() []int { return e.monitorsOf("") }

func (e native) monitorsOf(pod string) []int {
	dir := e.run("monitors", pod) + "/"
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range files {
		if !strings.HasPrefix(readString(file), "crishim-monitor") && !strings.HasPrefix(readString(filepath.Join(filepath.Dir(file), "cmdline")), "crishim-monitor") {
			continue
		}
		log, _ := os.Readlink(filepath.Join(filepath.Dir(file), "fd", "2"))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && strings.HasPrefix(log, dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Monitor is the process that holds a pod ("namespace/name") of the native engine.
type Monitor struct {
	Pod   string
	pid   int
	start string
}

// Monitors are those that run.
func (n *Node) Monitors() (list []Monitor) {
	for _, pid := range (native{n.Shim}).monitors() {
		argv := strings.Split(readString(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00")
		if len(argv) > 2 {
			list = append(list, Monitor{argv[2], pid, StartTime(pid)})
		}
	}
	return list
}

// Signal says whether the monitor was there to get it.
func (m Monitor) Signal(signal syscall.Signal) bool {
	return StartTime(m.pid) == m.start && syscall.Kill(m.pid, signal) == nil
}

// ownCgroups are those of pods for which no cgroup was asked: in one of the host's, where other daemons have theirs too.
func (e native) ownCgroups() []string {
	list := Cgroups(nativeCgroup)
	list = slices.DeleteFunc(list, func(name string) bool { return !strings.HasPrefix(name, "/pod") })
	if len(list) == 0 {
		return nil
	}
	log := readString(e.shim.LogFile)
	return slices.DeleteFunc(list, func(name string) bool {
		pod, _, _ := strings.Cut(strings.TrimPrefix(name, "/pod"), "/")
		return !strings.Contains(log, pod)
	})
}

// nativeCgroup is the daemon's own cgroup, in which the monitors are.
const nativeCgroup = "/crishim"

// lists are what a pod could leave: see footprint. Mounts, and the files that the daemon has, are looked at for every engine.
func (e native) lists() map[string][]string {
	lists := map[string][]string{"cgroup": e.ownCgroups(), "folder": folders(e.root("roots"), e.root("exits"))}
	for _, pid := range e.monitors() {
		lists["monitor"] = append(lists["monitor"], fmt.Sprintf("%d %q", pid, readString(fmt.Sprintf("/proc/%d/cmdline", pid))))
	}
	return lists
}

// ownMount recognizes the mounts that the engine makes outside the daemon's folders.
func (native) ownMount(string) bool { return false }

// keptImages says that a folder holds images, which outlive pods.
func keptImages(dir string) bool {
	images, name := filepath.Split(dir)
	return strings.HasSuffix(images, "/native/images/") && slices.Contains([]string{"blobs", "parts", "layers", "inherited", "records"}, name)
}

// keptFilters says that a folder holds compiled seccomp profiles, a cache of a bounded size.
func keptFilters(dir string) bool { return strings.HasSuffix(dir, "/native/seccomp") }

// cleanup ends what is left of pods once the daemon has ended; where none may be left, that is an error.
func (e native) cleanup(t T, cgroup string, noneLeft bool) {
	t.Helper()
	pids := e.monitors()
	if noneLeft && len(pids) > 0 {
		t.Errorf("monitors %v were left", pids)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	states, _ := os.ReadDir(e.run("runc"))
	for _, entry := range states {
		state, err := e.state(entry.Name())
		if err != nil {
			continue
		}
		if StartTime(state.PID) == strconv.FormatUint(state.Start, 10) {
			_ = syscall.Kill(state.PID, syscall.SIGKILL)
		}
		for _, path := range state.Cgroups {
			for _, root := range cgroupRoots() {
				if name, found := strings.CutPrefix(path, root+"/"); found {
					removeCgroup("/" + name)
				}
			}
		}
	}
	Eventually(t, 20*time.Second, "the end of everything in the pods", func() error {
		removeCgroup(cgroup)
		for _, name := range e.ownCgroups() {
			removeCgroup(nativeCgroup + name)
		}
		if left := Cgroups(filepath.Dir(cgroup)); containsUnder(left, cgroup) {
			return fmt.Errorf("cgroup %s is left", cgroup)
		}
		if left := e.monitors(); len(left) > 0 {
			return fmt.Errorf("monitors %v are left", left)
		}
		return nil
	})
	// The daemon's own cgroup stays on a node. Another daemon's is not empty.
	for _, root := range cgroupRoots() {
		for _, name := range []string{"monitors", ""} {
			_ = syscall.Rmdir(filepath.Join(root, nativeCgroup, name))
		}
	}
}
