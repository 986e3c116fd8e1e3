package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// logShapes put something else in a log's place, each at a path that is free and whose folder is there.
func logShapes(canary *harness.Canary) map[string]func(path string) error {
	file := filepath.Join(canary.Dir, "file")
	link := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	return map[string]func(string) error{
		"a link to a file":     link(file),
		"a relative link":      link("../../../../../../../.." + file),
		"a link to nothing":    link(filepath.Join(canary.Dir, "new")),
		"a link through /proc": link("/proc/self/root" + file),
		"a link to its pod's":  link("other.log"),
		"a second name (a hard link)": func(path string) error {
			other := path + ".other"
			return errors.Join(os.WriteFile(other, nil, 0o600), os.Link(other, path))
		},
		"a FIFO":   func(path string) error { return unix.Mkfifo(path, 0o666) },
		"a device": func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		"a socket": func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o666, 0) },
		"a folder": func(path string) error { return os.Mkdir(path, 0o755) },
	}
}

// Rows: S10
func TestLogsThatAreSomethingElse(t *testing.T) {
	n, canary := attacked(t)
	pod := n.RunPod(t, "logs")
	image := n.Registry.Ref(harness.Busybox)
	for what, put := range logShapes(canary) {
		t.Run(what+" before the start", func(t *testing.T) {
			config := pod.ContainerConfig("c"+harness.ID(), image, "sh", "-c", "echo text; sleep 1000")
			path := filepath.Join(pod.Config.LogDirectory, config.LogPath)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), put(path)); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c, err := attempt(t, pod, config)
			if err == nil {
				t.Error("it starts")
				c.Remove()
				return
			}
			wantRefusal(t, err, began.Add(2*time.Second)) // a create and a start
			noCanary(t, canary, what, err)
		})
		t.Run(what+" at a rotation", func(t *testing.T) {
			c := pod.Run("c"+harness.ID(), image, []string{"sh", "-c", "while :; do echo text; sleep 0.1; done"})
			c.WaitLines(2)
			if err := errors.Join(os.Rename(c.Log, c.Log+".1"), put(c.Log)); err != nil {
				t.Fatal(err)
			}
			reopen := func() error {
				_, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
				return err
			}
			if err := reopen(); err == nil {
				t.Error("it is taken for a log")
			}
			if status := c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container: %v", status)
			}
			// The old file goes on until a rotation works.
			before, err := os.Stat(c.Log + ".1")
			if err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, 10*time.Second, "the old log to grow", func() error {
				now, err := os.Stat(c.Log + ".1")
				if err == nil && now.Size() == before.Size() {
					err = fmt.Errorf("%d bytes", now.Size())
				}
				return err
			})
			if err := errors.Join(os.Remove(c.Log), reopen()); err != nil {
				t.Fatal(err)
			}
			c.WaitLines(2)
			c.Stop(0)
			c.Remove()
		})
	}
	t.Run("a folder on the way becomes a link while the container runs", func(t *testing.T) {
		c := pod.Run("moved", image, []string{"sh", "-c", "while :; do echo text; sleep 0.1; done"})
		c.WaitLines(2)
		folder := filepath.Dir(c.Log)
		if err := errors.Join(os.Rename(folder, folder+"-old"), os.Symlink(canary.Dir, folder)); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err == nil {
			t.Error("it is followed")
		}
		if err := errors.Join(os.Remove(folder), os.Rename(folder+"-old", folder)); err != nil {
			t.Fatal(err)
		}
		c.Stop(0)
		c.Remove()
	})
}
