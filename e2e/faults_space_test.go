package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// FillInodes leaves no file to be made; it returns what gives them back.
func (d *disk) FillInodes() (empty func()) {
	d.t.Helper()
	dir := filepath.Join(d.dir, "many")
	if err := os.Mkdir(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	return func() {
		d.t.Helper()
		if err := os.RemoveAll(dir); err != nil {
			d.t.Fatal(err)
		}
	}
}

// A file system without a free inode is as full as one without a byte.
//
// Rows: R19 (part)
func TestNoInodeForRecords(t *testing.T) {
	harness.Require(t)
	size := "8m,nr_inodes=300"
	if harness.Native() {
		size = "64m,nr_inodes=3000" // images are there too
	}
	d := smallDisk(t, filepath.Join(harness.WorkDir(t, "i"), "root"), size)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"root_dir": d.dir}})
	busybox := n.Pull(t, harness.Busybox)
	pod := n.RunPod(t, "inodes")
	c := pod.Run("c", busybox, []string{"/bin/testserver", "on-term", "4"})
	c.WaitLog("ready")
	empty := d.FillInodes()
	config := n.PodConfig("new")
	n.PreparePod(t, config)
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a pod without an inode", err, codes.ResourceExhausted)
	listsAreQuick(t, n)
	c.Stop(10)
	if status := c.WaitExit(); status.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", status.ExitCode)
	}
	pod.Remove()
	empty()
	// Nothing is left to write, and no kubelet makes a pod before the node is ready.
	harness.Eventually(t, 10*time.Second, "the node to be ready again", func() error {
		if c := runtimeReady(t, n); !c.Status {
			return fmt.Errorf("condition %v", c)
		}
		return nil
	})
	n.RunPodConfig(t, config, "").Run("again", busybox, forever).WaitLog("ready")
	agreed(t, n, 10*time.Second)
}

// The run folder holds little, but pods must come and go when others have filled it.
//
// Rows: R19 (part)
func TestFullRunFolder(t *testing.T) {
	harness.Require(t)
	d := smallDisk(t, filepath.Join(harness.WorkDir(t, "r"), "run"), "2m,nr_inodes=300")
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"run_dir": d.dir}})
	busybox := n.Pull(t, harness.Busybox)
	pod := n.RunPod(t, "before", hostPort(18120, 80))
	pod.Run("c", busybox, forever).WaitLog("ready")
	d.Fill()
	empty := d.FillInodes()
	config := n.PodConfig("new")
	n.PreparePod(t, config)
	// The pin of its network namespace is a file there.
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a pod whose network namespace cannot be pinned", err, codes.ResourceExhausted)
	agreed(t, n, 10*time.Second) // nothing of it stays
	listsAreQuick(t, n)
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != 0 {
		t.Errorf("addresses %v are left", left)
	}
	empty()
	d.Empty()
	n.RunPodConfig(t, config, "").Run("again", busybox, forever).WaitLog("ready")
	n.Shim.KillAndRestart()
	agreed(t, n, 10*time.Second)
}
