package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// disk is a small file system of its own.
type disk struct {
	t   *testing.T
	dir string
}

// smallDisk mounts one at a folder; the cleanup unmounts it.
func smallDisk(t *testing.T, dir string, size ...string) *disk {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	options := "size=1m"
	if len(size) > 0 {
		options = "size=" + size[0]
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting the small file system: %v", err)
		}
	})
	return &disk{t: t, dir: dir}
}

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// Fill leaves no byte free.
func (d *disk) Fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			d.t.Fatalf("filling %s: %v", d.dir, err)
		}
	}
}

// Empty gives the space back.
func (d *disk) Empty() {
	d.t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		d.t.Fatal(err)
	}
}

// ReadOnly makes it read-only, and writable again. The daemon has a file of it open for writing, for which the kernel
// refuses a remount but by its own decision: a second, read-only mount of the folder goes on top.
func (d *disk) ReadOnly(yes bool) {
	d.t.Helper()
	if !yes {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			d.t.Fatalf("making %s writable: %v", d.dir, err)
		}
		return
	}
	err := unix.Mount(d.dir, d.dir, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", d.dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	if err != nil {
		d.t.Fatalf("making %s read-only: %v", d.dir, err)
	}
}

// rootOn is a node whose daemon keeps what survives a reboot on a small disk.
func rootOn(t *testing.T) (*harness.Node, *disk) {
	t.Helper()
	harness.Require(t)
	size := "2m"
	if harness.Native() {
		size = "64m" // images are there too
	}
	d := smallDisk(t, filepath.Join(harness.WorkDir(t, "f"), "root"), size)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"root_dir": d.dir}})
	n.Pull(t, harness.Busybox)
	return n, d
}

// runtimeReady is the RuntimeReady condition.
func runtimeReady(t *testing.T, n *harness.Node) *runtimeapi.RuntimeCondition {
	t.Helper()
	reply, err := n.Shim.Runtime.Status(ctx(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range reply.Status.Conditions {
		if c.Type == "RuntimeReady" {
			return c
		}
	}
	t.Fatal("Status has no RuntimeReady")
	return nil
}

// questions are what every kubelet asks each second or so.
func questions(n *harness.Node) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Version": func(c context.Context) error {
			_, err := n.Shim.Runtime.Version(c, &runtimeapi.VersionRequest{})
			return err
		},
		"Status": func(c context.Context) error {
			_, err := n.Shim.Runtime.Status(c, &runtimeapi.StatusRequest{})
			return err
		},
		"ListPodSandbox": func(c context.Context) error {
			_, err := n.Shim.Runtime.ListPodSandbox(c, &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ListContainers": func(c context.Context) error {
			_, err := n.Shim.Runtime.ListContainers(c, &runtimeapi.ListContainersRequest{})
			return err
		},
		"ListContainerStats": func(c context.Context) error {
			_, err := n.Shim.Runtime.ListContainerStats(c, &runtimeapi.ListContainerStatsRequest{})
			return err
		},
	}
}

// listsAreQuick checks that what every kubelet asks each second is answered at once.
func listsAreQuick(t *testing.T, n *harness.Node) {
	t.Helper()
	for name, call := range questions(n) {
		began := time.Now()
		if err := call(ctx(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > promptly() {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// With no byte free for records, what runs can be stopped and removed, what is new is refused as ResourceExhausted, and a
// daemon that is started then serves. Afterwards all works again, and no record was lost.
//
// Rows: R19
func TestFullDiskOfRecords(t *testing.T) {
	n, d := rootOn(t)
	busybox := n.Registry.Ref(harness.Busybox)
	pod, stays := n.RunPod(t, "full"), n.RunPod(t, "stays")
	ends, running := pod.Run("ends", busybox, []string{"/bin/testserver", "on-term", "9"}), pod.Run("running", busybox, forever)
	kept := stays.RunChatty(busybox, 20)
	waits := stays.Create(stays.ContainerConfig("waits", busybox, forever...))
	ends.WaitLog("ready")
	running.WaitLog("ready")
	d.Fill()

	config := n.PodConfig("new")
	n.PreparePod(t, config)
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a pod on a full disk", err, codes.ResourceExhausted)
	_, err = stays.TryCreate(stays.ContainerConfig("new", busybox, forever...))
	wantCode(t, "a container on a full disk", err, codes.ResourceExhausted)
	harness.Eventually(t, 10*time.Second, "RuntimeReady=false", func() error {
		if c := runtimeReady(t, n); c.Status || !strings.Contains(c.Message, "no space left") || !strings.Contains(c.Message, d.dir) {
			return fmt.Errorf("condition %v", c)
		}
		return nil
	})
	listsAreQuick(t, n)
	// What is answered is what happened.
	if _, err := n.Shim.Runtime.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: waits.ID}); err != nil {
		wantCode(t, "a start on a full disk", err, codes.ResourceExhausted)
		if state := waits.Status().State; state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the start failed (%v) and the container is %v", err, state)
		}
	} else if state := waits.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("it was started and is %v", state)
	}
	_, err = n.Shim.Runtime.UpdateContainerResources(ctx(t), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: running.ID, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 77},
	})
	if told := running.Status().GetResources().GetLinux().GetCpuShares(); (err == nil) != (told == 77) {
		t.Errorf("CPU shares were set to 77: %v; they are told as %d", err, told)
	}
	ends.Stop(10)
	if status := ends.WaitExit(); status.ExitCode != 9 {
		t.Errorf("exit code %d, want 9", status.ExitCode)
	}
	ends.Remove()
	if got := running.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	d.Fill() // the removals gave a little back
	n.Shim.Kill()
	n.Shim.StartWithoutWaiting()
	harness.Eventually(t, 30*time.Second, "a daemon that starts on a full disk to serve", func() error {
		_, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		if !n.Shim.Running() {
			t.Fatalf("it ended:\n%s", n.Shim.LogTail())
		}
		return err
	})
	d.Fill()
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 1 {
		t.Errorf("addresses %v, want one", left)
	}
	d.Empty()
	n.Shim.WaitReady()
	kept.CheckSurvived()
	n.RunPodConfig(t, config, "").Run("again", busybox, forever).WaitLog("ready")
	n.Shim.Restart()
	kept.CheckSurvived()
	if bad := quarantined(t, d.dir); len(bad) != 0 {
		t.Errorf("records were damaged: %v", bad)
	}
	agreed(t, n, 10*time.Second)
}

func quarantined(t *testing.T, root string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "*", "quarantine", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A root folder that becomes read-only is told in the node's condition; what runs can be stopped and removed.
//
// Rows: R20
func TestReadOnlyRootFolder(t *testing.T) {
	n, d := rootOn(t)
	busybox := n.Registry.Ref(harness.Busybox)
	pod, stays := n.RunPod(t, "read-only"), n.RunPod(t, "stays")
	c := pod.Run("c", busybox, []string{"/bin/testserver", "on-term", "2"})
	kept := stays.RunChatty(busybox, 20)
	c.WaitLog("ready")
	d.ReadOnly(true)
	told := func() {
		t.Helper()
		harness.Eventually(t, rowsize.Of(10*time.Second, 5*time.Second), "RuntimeReady=false", func() error {
			if c := runtimeReady(t, n); c.Status || !strings.Contains(c.Message, "read-only file system") || !strings.Contains(c.Message, d.dir) {
				return fmt.Errorf("condition %v", c)
			}
			return nil
		})
	}
	told()
	config := n.PodConfig("new")
	n.PreparePod(t, config)
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a pod with a read-only root folder", err, codes.Unavailable)
	listsAreQuick(t, n)
	// A daemon that starts then serves what runs.
	n.Shim.Kill()
	n.Shim.StartWithoutWaiting()
	harness.Eventually(t, 30*time.Second, "a daemon that starts with a read-only root folder to serve", func() error {
		_, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		if !n.Shim.Running() {
			t.Fatalf("it ended:\n%s", n.Shim.LogTail())
		}
		return err
	})
	told()
	if status := c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a start the container is %v", status.State)
	}
	if got := c.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	c.Stop(10)
	if status := c.WaitExit(); status.ExitCode != 2 {
		t.Errorf("exit code %d, want 2", status.ExitCode)
	}
	pod.Stop()
	d.ReadOnly(false)
	n.Shim.WaitReady()
	pod.Remove()
	kept.CheckSurvived()
	n.RunPodConfig(t, config, "").Run("again", busybox, forever).WaitLog("ready")
	agreed(t, n, 10*time.Second)
}

// A full disk of logs tears nothing, loses nothing that Docker has kept, and holds up only those who write to it.
//
// Rows: R19 (part), R28
func TestFullDiskOfLogs(t *testing.T) {
	n := ownNode(t, harness.DockerOptions{})
	busybox := n.Registry.Ref(harness.Busybox)
	d := smallDisk(t, filepath.Join(harness.WorkDir(t, "l"), "logs"))
	pod := n.RunPod(t, "logs", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = filepath.Join(d.dir, "pod") })
	beside := n.RunPod(t, "beside")
	chatty := pod.RunChatty(busybox, 200)
	short := pod.Run("short", busybox, []string{"/bin/testserver", "on-term", "5"})
	short.WaitLog("ready")
	other := beside.RunChatty(busybox, 50)
	if harness.Native() {
		chatty.MayLackLines() // Docker's own file keeps them meanwhile; without one the container would have to wait
	}
	d.Fill()
	time.Sleep(500 * time.Millisecond) // time to write what does not fit
	listsAreQuick(t, n)
	other.CheckSurvived()
	if got := chatty.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	began := time.Now()
	short.Stop(5)
	if status := short.WaitExit(); status.ExitCode != 5 {
		t.Errorf("exit code %d, want 5", status.ExitCode)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a log that cannot be written held the exit up for %v", took)
	}
	d.Empty()
	chatty.WaitLines(1) // the entry that the disk took a part of is whole again
	chatty.CheckSurvived()
	short.WaitLog("bye")
	d.Fill()
	time.Sleep(200 * time.Millisecond) // time to write a part of an entry
	pod.Remove()
	d.Empty()
	chatty.CheckLog()
}

// ext4 mounts a file system with a journal, which can be frozen, of so many bytes; the cleanup unmounts it.
func ext4(t *testing.T, dir string, size int64) *disk {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := dir + ".img"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("a file system of its own needs mkfs.ext4 and loop devices: %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting the file system: %v", err)
		}
	})
	return &disk{t: t, dir: dir}
}

// Freeze has no write to it return before the returned function is called, which the cleanup does too.
func (d *disk) Freeze() (thaw func()) {
	d.t.Helper()
	dir, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	const freeze, thawing = 0xc0045877, 0xc0045878 // FIFREEZE and FITHAW of linux/fs.h
	thaw = sync.OnceFunc(func() {
		if err := unix.IoctlSetInt(int(dir.Fd()), thawing, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			d.t.Errorf("thawing %s: %v", d.dir, err)
		}
		_ = dir.Close()
	})
	d.t.Cleanup(thaw)
	if err := unix.IoctlSetInt(int(dir.Fd()), freeze, 0); err != nil {
		d.t.Fatalf("freezing %s: %v", d.dir, err)
	}
	return thaw
}

// A disk of logs on which no write returns holds up only those who write to it: their containers can be stopped and removed, what
// happens to others is told, and once it answers nothing is left of who went meanwhile.
//
// Rows: R28
func TestFrozenDiskOfLogs(t *testing.T) {
	harness.Require(t)
	d := ext4(t, filepath.Join(harness.WorkDir(t, "z"), "logs"), 32<<20)
	n := ownNode(t, harness.DockerOptions{})
	busybox := n.Registry.Ref(harness.Busybox)
	pod := n.RunPod(t, "frozen", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = filepath.Join(d.dir, "pod") })
	beside := n.RunPod(t, "beside")
	chatty := pod.RunChatty(busybox, 200)
	short := pod.Run("short", busybox, []string{"/bin/testserver", "on-term", "5"})
	short.WaitLog("ready")
	waits := pod.Create(pod.ContainerConfig("waits", busybox, forever...))
	other := beside.RunChatty(busybox, 50)
	if harness.Native() {
		chatty.MayLackLines()
	}
	thaw := d.Freeze()
	time.Sleep(500 * time.Millisecond) // time to write
	listsAreQuick(t, n)
	other.CheckSurvived()
	if got := chatty.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	soon, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := n.Shim.Runtime.StartContainer(soon, &runtimeapi.StartContainerRequest{ContainerId: waits.ID}); err == nil {
		t.Error("one was started whose log cannot be begun")
	}
	chatty.Stop(1)
	chatty.WaitExit()
	if _, err := n.Shim.Runtime.RemoveContainer(ctx(t), &runtimeapi.RemoveContainerRequest{ContainerId: chatty.ID}); err != nil {
		t.Errorf("removing it: %v", err)
	}
	ends := beside.Run("ends", busybox, []string{"sh", "-c", "sleep 1; exit 7"}) // of which no call of ours tells
	harness.Eventually(t, 30*time.Second, "its end in the list", func() error {
		reply, err := n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: ends.ID}})
		if err == nil && (len(reply.Containers) != 1 || reply.Containers[0].State != runtimeapi.ContainerState_CONTAINER_EXITED) {
			err = fmt.Errorf("it has %v", reply.Containers)
		}
		return err
	})
	if status := ends.WaitExit(); status.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", status.ExitCode)
	}
	ends.Remove()
	listsAreQuick(t, n)
	other.CheckSurvived()
	thaw()
	short.Stop(10)
	if status := short.WaitExit(); status.ExitCode != 5 {
		t.Errorf("exit code %d, want 5", status.ExitCode)
	}
	short.WaitLog("bye")
	chatty.Remove()
	chatty.CheckLog()
	pod.Remove()
	agreed(t, n, 10*time.Second)
	harness.Eventually(t, 10*time.Second, "its log's position to go", func() error {
		left, err := filepath.Glob(filepath.Join(n.Shim.RootDir, "docker", "logs", chatty.ID+"*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v is left", left)
		}
		return err
	})
}

// With the engine's own disk full, pods are refused as ResourceExhausted, and those that run can go.
//
// Rows: R19 (part)
func TestFullDiskOfTheEngine(t *testing.T) {
	harness.Require(t)
	d := smallDisk(t, filepath.Join(harness.WorkDir(t, "e"), "data"), "64m")
	options := harness.ShimOptions{}
	if harness.Native() {
		options.Settings = map[string]any{"root_dir": d.dir}
	}
	n := harness.NewNode(t, harness.DockerOptions{Config: map[string]any{"data-root": d.dir}}, options)
	busybox := n.Pull(t, harness.Busybox)
	n.Pull(t, harness.Small)
	pod := n.RunPod(t, "full")
	c := pod.Run("c", busybox, forever)
	c.WaitLog("ready")
	d.Fill()
	config := n.PodConfig("new")
	n.PreparePod(t, config)
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a pod on a full disk", err, codes.ResourceExhausted)
	_, err = n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Registry.Ref(harness.Web)}})
	wantCode(t, "a pull on a full disk", err, codes.ResourceExhausted)
	// dockerd with a graph driver writes its list of names anew for each image that it removes: at the last byte it cannot.
	_, err = n.Shim.Images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Registry.Ref(harness.Small)}})
	// One with containerd's store says only that its clean-up failed.
	if code := harness.Code(err); code != codes.OK && code != codes.ResourceExhausted && !strings.Contains(err.Error(), "gc failed") {
		t.Errorf("removing an image on a full disk: %v", err)
	}
	d.Fill()
	listsAreQuick(t, n)
	c.Stop(10)
	if status := c.WaitExit(); status.ExitCode != 0 {
		t.Errorf("exit code %d, want 0", status.ExitCode)
	}
	c.Remove()
	d.Fill()
	pod.Remove()
	d.Empty()
	agreed(t, n, 10*time.Second)
	n.RunPodConfig(t, config, "").Run("again", busybox, forever).WaitLog("ready")
	n.Pull(t, harness.Web)
}

// One disk has it all, as /var has on most nodes: records, the engine's data, CNI's cache and the logs. When it is full, what runs is
// listed, stopped and removed, and what is new is refused; with room again all works, and nothing is left of what went meanwhile.
//
// Rows: R19 (part)
func TestFullDiskOfEverything(t *testing.T) {
	harness.Require(t)
	d := smallDisk(t, filepath.Join(harness.WorkDir(t, "v"), "var"), "96m")
	n := harness.NewNode(t, harness.DockerOptions{Config: map[string]any{"data-root": filepath.Join(d.dir, "docker")}},
		harness.ShimOptions{Settings: map[string]any{"root_dir": filepath.Join(d.dir, "crishim")}})
	busybox := n.Pull(t, harness.Busybox)
	logs := func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = filepath.Join(d.dir, "log", c.Metadata.Uid) }
	pod, beside := n.RunPod(t, "full", logs), n.RunPod(t, "beside", logs)
	ends, dies := pod.Run("ends", busybox, []string{"/bin/testserver", "on-term", "7"}), pod.Run("dies", busybox, forever)
	runs := beside.Run("runs", busybox, forever)
	ends.WaitLog("ready")
	runs.WaitLog("ready")
	d.Fill()
	config := n.PodConfig("new")
	n.PreparePod(t, config)
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a pod on a full disk", err, codes.ResourceExhausted)
	_, err = beside.TryCreate(beside.ContainerConfig("new", busybox, forever...))
	wantCode(t, "a container on a full disk", err, codes.ResourceExhausted)
	listsAreQuick(t, n)
	ends.Stop(10)
	if status := ends.WaitExit(); status.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", status.ExitCode)
	}
	ends.Remove()
	dies.Stop(0)
	d.Fill()
	n.Shim.Kill()
	n.Shim.StartWithoutWaiting()
	harness.Eventually(t, 30*time.Second, "a daemon that starts on a full disk to serve", func() error {
		_, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		return err
	})
	d.Fill()
	pod.Remove()
	if state := runs.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container beside is %v", state)
	}
	d.Empty()
	n.Shim.WaitReady()
	if got := runs.Output("echo alive"); got != "alive\n" {
		t.Errorf("exec says %q", got)
	}
	n.RunPodConfig(t, config, "").Run("again", busybox, forever).WaitLog("ready")
	agreed(t, n, 10*time.Second)
	if bad := quarantined(t, filepath.Join(d.dir, "crishim")); len(bad) != 0 {
		t.Errorf("records were damaged: %v", bad)
	}
}
