package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/crilog"
	"crishim/e2e/harness"
	"crishim/internal/rowsize"
)

// promptly is the longest that an answer may take while something is broken (gate LIVE): a second in `make counts`, which has the
// machine for itself, else what tells a call that hangs from a machine that is busy with other tests: longer than the 12 s after which an
// engine that hangs is away, and all that was asked of it fails.
func promptly() time.Duration { return rowsize.Of(20*time.Second, time.Second) }

// memoryOf is the resident memory of the daemon in bytes.
func memoryOf(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// A pod may cost the daemon at most so much memory, and all at once (gate MEM).
const (
	memoryPerPod  = 64 << 20
	memoryOverall = 128 << 20
)

// staysSmall is gate MEM until the test ends.
func staysSmall(t *testing.T, n *harness.Node, limit int64) {
	t.Helper()
	before, most := memoryOf(t, n.Shim.PID()), int64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			most = max(most, memoryOf(t, n.Shim.PID()))
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		if most-before > limit {
			t.Errorf("the daemon had %d MiB and grew to %d", before>>20, most>>20)
		}
		t.Logf("the daemon had %d MiB, at most %d", before>>20, most>>20)
	})
}

// Rows: S13
func TestHostileTreesAreRemoved(t *testing.T) {
	n, canary := attacked(t)
	staysSmall(t, n, memoryPerPod)
	shared := filepath.Join(harness.WorkDir(t, "o"), "outside")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "kept"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	pod := n.RunPod(t, "trees", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	for name, script := range map[string]string{
		"deep":  fmt.Sprintf("mkdir /h && cd /h && testserver deep %d", rowsize.Of(20000, 1000000)),
		"wide":  fmt.Sprintf("mkdir /h && cd /h && seq %d | xargs touch", rowsize.Of(20000, 5000000)),
		"links": "mkdir /h && cd /h && for i in $(seq 200); do ln -s " + canary.Dir + " l$i; ln -s ../../../../../../.." + canary.Dir + " r$i; done; rmdir /opt; ln -s " + canary.Dir + " /opt",
		// What the container mounts in its tree is its own, and goes with its mount namespace.
		"mounts":      "mkdir /h /h/b /h/t && mount --bind /outside /h/b && mount -t tmpfs none /h/t && touch /h/t/x && test -e /h/b/kept",
		"strange":     "mkdir /h && cd /h && mkfifo p && mknod c c 1 5 && mknod b b 7 0 && touch \"$(printf 'a\\nb')\" -- -rf && mkdir locked && touch locked/x && chmod 0 locked",
		"whiteouts":   "rm -rf /home /opt /var && mkdir /var /home && touch /var/.wh..wh..opq /var/.wh.x",
		"a full home": "mkdir /h && cd /h && for i in $(seq 300); do mkdir -p $i/$i/$i; ln -s / $i/root; done",
	} {
		t.Run(name, func(t *testing.T) {
			if name == "deep" && n.Docker != nil && n.Docker.HasContainerdStore() {
				t.Skip("containerd, which alone knows the layer's folder, holds a descriptor for each folder on its way down and never removes such a tree")
			}
			c := pod.Run("c"+harness.ID(), n.Registry.Ref(harness.Busybox), []string{"sh", "-c", script}, func(c *runtimeapi.ContainerConfig) {
				s := c.Linux.SecurityContext
				s.Privileged, s.MaskedPaths, s.ReadonlyPaths, s.Seccomp = true, nil, nil, nil
				c.Mounts = []*runtimeapi.Mount{{HostPath: shared, ContainerPath: "/outside"}}
			})
			harness.Eventually(t, 10*time.Minute, "the tree to be made", func() error {
				if status := c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED {
					return fmt.Errorf("the container is %v", status.State)
				}
				return nil
			})
			if status := c.Status(); status.ExitCode != 0 {
				t.Fatalf("the tree was not made: %v: %s", status, harness.JoinLog(c.WaitLines(0), "stderr"))
			}
			upper, _ := n.Layer(t, c.ID)
			if _, err := os.Stat(upper); err != nil {
				t.Fatalf("the writable layer: %v", err)
			}
			began := time.Now()
			tries := 0
			harness.Eventually(t, 10*time.Minute, "the container to be removed", func() error {
				tries++
				within, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // as the kubelet
				defer cancel()
				_, err := n.Shim.Runtime.RemoveContainer(within, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
				return err
			})
			if tries > 1 {
				t.Errorf("it took %d calls", tries)
			}
			t.Logf("removed in %v by %d calls", time.Since(began), tries)
			// containerd's image store removes it a moment later.
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
				if _, err := os.Lstat(upper); os.IsNotExist(err) {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("the writable layer is still there: %v", err)
				}
			}
		})
	}
	if _, err := os.Stat(filepath.Join(shared, "kept")); err != nil {
		t.Errorf("the volume was emptied: %v", err)
	}
}

// Rows: S54
func TestAFloodOfOutputIsBounded(t *testing.T) {
	n, _ := attacked(t)
	staysSmall(t, n, memoryPerPod)
	pod := n.RunPod(t, "flood")
	flood := pod.Run("flood", n.Registry.Ref(harness.Busybox), []string{"testserver", "log", "0", "-1", "200"})
	line := pod.Run("line", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "tr '\\0' x < /dev/zero"}) // one line without end
	time.Sleep(rowsize.Of(5*time.Second, time.Minute))
	for _, c := range []*harness.Container{flood, line} {
		// The kubelet's bound on disk is its rotation: it may remove the old file as soon as the new one is written to.
		harness.Eventually(t, 20*time.Second, "a flood in the log", func() error {
			before, err := os.Stat(c.Log)
			if err == nil && before.Size() < 1<<20 {
				err = fmt.Errorf("it has %d bytes", before.Size())
			}
			return err
		})
		if err := os.Rename(c.Log, c.Log+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(c.Log + ".1"); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 10*time.Second, "the new log to be written", func() error {
			info, err := os.Stat(c.Log)
			if err == nil && info.Size() == 0 {
				err = fmt.Errorf("%s is empty", c.Log)
			}
			return err
		})
		if held := deletedFiles(t, n.Shim.PID(), pod.Config.LogDirectory); held != 0 {
			t.Errorf("%d removed logs are held open", held)
		}
		if n.Docker == nil {
			continue
		}
		// Docker's own copy, from which ours is written, is bounded too: 3 files of 50 MiB by default.
		if size := sizeOf(t, filepath.Join(n.Docker.DataRoot, "containers", c.ID)); size > 160<<20 {
			t.Errorf("Docker's files have %d MiB", size>>20)
		}
	}
	for _, c := range []*harness.Container{flood, line} {
		c.Stop(0)
		c.Remove()
	}
}

// Where the operator bounds a log, output that outruns the kubelet's rotation takes no more of the disk than twice that, and
// what is there are the last lines, whole and in order.
//
// Rows: S54
func TestALogOutgrowsItsBound(t *testing.T) {
	const bound, lines = 1 << 20, 100_000
	harness.Require(t)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Settings: map[string]any{"container_log_max_size": "1MiB"}})
	n.Pull(t, harness.Busybox)
	n.NoLeaks(t)
	pod := n.RunPod(t, "bounded")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", fmt.Sprintf("seq 1 %d | sed 's/^/line /'", lines)})
	c.WaitExit()
	overflow := c.Log + crilog.OverflowSuffix
	var there []byte
	harness.Eventually(t, 20*time.Second, "the last line", func() error {
		there = nil
		for _, name := range []string{overflow, c.Log} {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if len(data) > bound+bound/2 {
				t.Fatalf("%s has %d bytes", name, len(data))
			}
			there = append(there, data...)
		}
		if !strings.HasSuffix(string(there), fmt.Sprintf(" line %d\n", lines)) {
			return fmt.Errorf("the log ends with %q", there[max(0, len(there)-100):])
		}
		return nil
	})
	if len(there) < bound {
		t.Errorf("only %d bytes of the log are there", len(there))
	}
	next := 0
	for line := range strings.Lines(string(there)) {
		var number int
		_, text, _ := strings.Cut(line, " stdout F ")
		if _, err := fmt.Sscanf(text, "line %d\n", &number); err != nil || next != 0 && number != next {
			t.Fatalf("%q comes where line %d should", line, next)
		}
		next = number + 1
	}
	if entries, err := os.ReadDir(filepath.Dir(c.Log)); err != nil || len(entries) != 2 {
		t.Errorf("beside the log there is %v, %v", entries, err)
	}
	c.Remove()
}

// deletedFiles counts the open files of a process below dir that have no name any more.
func deletedFiles(t *testing.T, pid int, dir string) int {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) && strings.HasSuffix(target, " (deleted)") {
			count++
		}
	}
	return count
}

func sizeOf(t *testing.T, dir string) (size int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			size += info.Size()
		}
	}
	return size
}
