package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// holdsUpOnlyItself checks that calls about a container that cannot be ended end at their callers' deadlines, that all others
// are answered meanwhile, and that everything can be finished once free was called.
func holdsUpOnlyItself(t *testing.T, n *harness.Node, pod *harness.Pod, all []*harness.Container, free func()) {
	t.Helper()
	beside := n.RunPod(t, "beside")
	other := beside.Run("other", n.Registry.Ref(harness.Busybox), forever)
	stuck := make(chan error, len(all)+1)
	brief, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for _, c := range all {
		go func() {
			_, err := n.Shim.Runtime.StopContainer(brief, &runtimeapi.StopContainerRequest{ContainerId: c.ID})
			stuck <- err
		}()
	}
	go func() {
		_, err := n.Shim.Runtime.StopPodSandbox(brief, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
		stuck <- err
	}()
	for brief.Err() == nil {
		listsAreQuick(t, n)
		if state := all[0].Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the stuck container is %v", state)
		}
		if got := other.Output("echo alive"); got != "alive\n" {
			t.Errorf("exec says %q", got)
		}
	}
	for range cap(stuck) {
		wantCode(t, "stopping what cannot be stopped", <-stuck, codes.DeadlineExceeded)
	}
	other.Stop(5)
	other.Remove()
	n.RunPod(t, "another").Remove()
	free()
	began := time.Now()
	eightAtOnce(len(all), func(i int) {
		if _, err := n.Shim.Runtime.StopContainer(ctx(t), &runtimeapi.StopContainerRequest{ContainerId: all[i].ID}); err != nil {
			t.Errorf("stopping what can be stopped again: %v", err)
		}
	})
	if took := time.Since(began); took > rowsize.Of(10*time.Second, 2*time.Second) {
		t.Errorf("once it could be stopped that took %v", took)
	}
	for _, c := range all {
		if status := c.WaitExit(); status.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", status.ExitCode)
		}
	}
	pod.Remove()
	agreed(t, n, 10*time.Second)
}

// The pod's cgroup is frozen: not even SIGKILL ends what is in it.
//
// Rows: R14
func TestFrozenPodHoldsUpOnlyItself(t *testing.T) {
	n := node(t)
	const freezer = "/sys/fs/cgroup/freezer"
	if _, err := os.Stat(freezer); err != nil {
		t.Skip("only a freezer of cgroup v1 keeps processes from being killed, and there is none")
	}
	pod := n.RunPod(t, "frozen")
	all := many(n, pod)
	set := func(state string) {
		t.Helper()
		file := filepath.Join(freezer, pod.Config.Linux.CgroupParent, "freezer.state")
		if err := os.WriteFile(file, []byte(state), 0); err != nil {
			t.Fatal(err)
		}
	}
	set("FROZEN")
	defer set("THAWED")
	holdsUpOnlyItself(t, n, pod, all, func() { set("THAWED") })
}

// The processes of some containers wait in the kernel for a disk that does not answer: SIGKILL ends them when it does.
//
// Rows: R14
func TestProcessesThatWaitForADiskHoldUpOnlyTheirPod(t *testing.T) {
	n := node(t)
	d := ext4(t, filepath.Join(harness.WorkDir(t, "z"), "disk"), 32<<20)
	pod := n.RunPod(t, "waits")
	var all []*harness.Container
	for i := range rowsize.Of(2, 20) {
		all = append(all, pod.Run(fmt.Sprintf("c%d", i), n.Registry.Ref(harness.Busybox),
			[]string{"sh", "-c", fmt.Sprintf("while echo ready; do echo written >/disk/%d; sleep 0.2; done", i)},
			func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{HostPath: d.dir, ContainerPath: "/disk"}}
			}))
		all[i].WaitLog("ready")
	}
	thaw := d.Freeze()
	for _, c := range all {
		pid := n.HostPID(t, c.ID)
		harness.Eventually(t, 30*time.Second, "a process to wait for the disk", func() error {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if _, after, _ := strings.Cut(string(stat), ") "); err == nil && !strings.HasPrefix(after, "D ") {
				err = fmt.Errorf("it does something else: %s", stat)
			}
			return err
		})
	}
	holdsUpOnlyItself(t, n, pod, all, thaw)
}

// many are the containers that cannot be ended.
func many(n *harness.Node, pod *harness.Pod) []*harness.Container {
	var all []*harness.Container
	for i := range rowsize.Of(2, 20) {
		all = append(all, pod.Run(fmt.Sprintf("c%d", i), n.Registry.Ref(harness.Busybox), forever))
		all[i].WaitLog("ready")
	}
	return all
}

// The engine hangs in everything about some containers.
//
// Rows: R14, R08 (part)
func TestEngineHangsOnOneContainer(t *testing.T) {
	harness.AboutDocker(t)
	n, proxy := behindProxy(t)
	pod := n.RunPod(t, "hung")
	all := many(n, pod)
	proxy.Hold(func(r *http.Request) bool {
		return slices.ContainsFunc(all, func(c *harness.Container) bool { return strings.Contains(r.URL.Path, "/containers/"+c.ID) })
	})
	holdsUpOnlyItself(t, n, pod, all, proxy.Release)
}

// A root file system that is in use, or that cannot be removed, keeps neither the network nor the processes of its pod, and is
// removed when it can be.
//
// Rows: R15
func TestBusyRootFileSystem(t *testing.T) {
	n := node(t)
	start := func(name string) (pod *harness.Pod, c *harness.Container, upper, merged string) {
		pod = n.RunPod(t, name)
		c = pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
		c.WaitLog("ready")
		c.Output("mkdir /mine && echo kept >/mine/file")
		upper, merged = n.Layer(t, c.ID)
		return pod, c, upper, merged
	}
	t.Run("in use", func(t *testing.T) {
		pod, c, _, folder := start("busy")
		ip := pod.IP()
		if folder == "" {
			folder = fmt.Sprintf("/proc/%d/root", n.HostPID(t, c.ID))
		}
		held, err := os.Open(filepath.Join(folder, "mine", "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		began := time.Now()
		pod.Stop()
		if took := time.Since(began); took > rowsize.Of(20*time.Second, 2*time.Second) {
			t.Errorf("an open file held the pod's stop up for %v", took)
		}
		if slices.Contains(n.CNI.Addresses(), ip) {
			t.Errorf("an open file keeps address %s", ip)
		}
		c.WaitExit()
		pod.Remove()
		agreed(t, n, 10*time.Second)
	})
	t.Run("cannot be removed", func(t *testing.T) {
		pod, c, upper, _ := start("immutable")
		ip := pod.IP()
		if upper == "" {
			t.Skip("the engine's image store does not say where the writable layer is")
		}
		file := filepath.Join(upper, "mine", "file")
		harness.Run(t, "chattr", "+i", file)
		thaw := func() {
			if _, err := os.Stat(file); err == nil {
				harness.Run(t, "chattr", "-i", file)
			}
		}
		defer thaw()
		pod.Stop()
		if slices.Contains(n.CNI.Addresses(), ip) {
			t.Errorf("a layer that cannot be removed keeps address %s", ip)
		}
		c.WaitExit()
		_, err := n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.ID})
		listsAreQuick(t, n)
		if n.Docker != nil && n.Docker.HasContainerdStore() {
			// Docker is done when containerd knows the layer no more, whose collector removes the files, at any of its runs.
			if err != nil {
				t.Errorf("containerd's image store keeps a pod: %v", err)
			}
			agreed(t, n, 10*time.Second)
			thaw()
			harness.Eventually(t, time.Minute, "containerd to remove the layer's files", func() error {
				n.RunPod(t, "collected").Remove()
				if _, err := os.Lstat(upper); !os.IsNotExist(err) {
					return fmt.Errorf("%s: %v", upper, err)
				}
				return nil
			})
			return
		}
		if err == nil {
			t.Error("the removal of what is still there succeeded")
		}
		if status := c.WaitExit(); status.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", status.ExitCode)
		}
		thaw()
		pod.Remove()
		agreed(t, n, 10*time.Second)
	})
}

// Neither commands in containers nor plugins leave a zombie of the daemon, and the pause process reaps the orphans of a pod
// that shares its process namespace.
//
// Rows: R17
func TestNoZombieStays(t *testing.T) {
	harness.Require(t)
	// The pause process of the daemon itself: that of the other tests reaps nothing.
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"images": map[string]any{"pause": "crishim.invalid/pause:1"}}})
	n.Pull(t, harness.Busybox)
	pod := n.RunPod(t, "zombies", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	c.WaitLog("ready")
	commands := [][]string{{"true"}, {"sh", "-c", "(sleep 0.1 &); (sleep 0.1 &)"}, {"sh", "-c", "kill -9 $$"}} // the second leaves orphans
	eightAtOnce(rowsize.Of(60, 100_000), func(i int) {
		if _, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: commands[i%len(commands)]}); err != nil {
			t.Errorf("%q: %v", commands[i%len(commands)], err)
		}
	})
	for range 3 { // plugins
		n.RunPod(t, "plugins").Remove()
	}
	pause := n.HostPID(t, pod.ID)
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pause))
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "no zombie to be left", func() error {
		if left := zombies(n.Shim.PID(), namespace); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
}

// zombies are the dead children of a process, and all dead processes of a process namespace.
func zombies(parent int, namespace string) []string {
	var list []string
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) < 2 || fields[0] != "Z" {
			continue
		}
		in, _ := os.Readlink(filepath.Join(filepath.Dir(file), "ns", "pid"))
		if fields[1] == strconv.Itoa(parent) || in == namespace {
			list = append(list, strings.TrimSpace(string(data)))
		}
	}
	return list
}
