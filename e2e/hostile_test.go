package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/e2e/testimage"
)

// attacked is the shared node under attack: the gates HOST0 (the canary, the host's mounts and sysctls), LIVE (others are
// served meanwhile) and MEM (the daemon lives in 512 MiB), and that nothing is left.
func attacked(t *testing.T) (*harness.Node, *harness.Canary) {
	t.Helper()
	n := node(t)
	canary := n.HostUnchanged(t)
	n.BoundMemory(t, 512<<20)
	staysLive(t, n)
	return n, canary
}

// staysLive asks as a kubelet does, until the test ends, and fails it where an answer is late.
func staysLive(t *testing.T, n *harness.Node) {
	t.Helper()
	neighbour := n.RunPod(t, "neighbour").Run("c", n.Registry.Ref(harness.Busybox), forever)
	calls := map[string]func(context.Context) error{
		"Version": func(c context.Context) error {
			_, err := n.Shim.Runtime.Version(c, &runtimeapi.VersionRequest{})
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
		"ExecSync in a neighbour": func(c context.Context) error {
			_, err := n.Shim.Runtime.ExecSync(c, &runtimeapi.ExecSyncRequest{ContainerId: neighbour.ID, Cmd: []string{"true"}, Timeout: 10})
			return err
		},
	}
	done := make(chan struct{})
	var all sync.WaitGroup
	for name, call := range calls {
		late := promptly()
		if strings.HasPrefix(name, "ExecSync") {
			late = 20 * time.Second // a process is started for each, whatever else the machine is made to do
		}
		all.Go(func() {
			for {
				began := time.Now()
				c, cancel := context.WithTimeout(context.Background(), harness.Call)
				err := call(c)
				cancel()
				if took := time.Since(began); err != nil || took > late {
					t.Errorf("%s during the attack: %v after %v", name, err, took)
				}
				select {
				case <-done:
					return
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
	}
	t.Cleanup(func() { close(done); all.Wait() })
}

// hostileImage is an image of one test: busybox with what layer adds. The cleanup removes it.
func hostileImage(t *testing.T, n *harness.Node, config v1.Config, layer func(*testimage.Tree)) string {
	t.Helper()
	tree := &testimage.Tree{}
	tree.File("hostile/"+harness.ID(), 0o644, nil) // an image of its own, whatever else it shares with others
	if layer != nil {
		layer(tree)
	}
	if config.Cmd == nil {
		config.Cmd = forever
	}
	repository := "hostile-" + harness.ID() + ":1"
	n.Registry.Push(t, repository, harness.Build(t, config, tree))
	ref := n.Registry.Ref(repository)
	spec := &runtimeapi.ImageSpec{Image: ref}
	if _, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		t.Fatalf("pulling %s: %v", ref, err)
	}
	t.Cleanup(func() {
		c, cancel := context.WithTimeout(context.Background(), harness.Call)
		defer cancel()
		if _, err := n.Shim.Images.RemoveImage(c, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
			t.Errorf("removing %s: %v", ref, err)
		}
	})
	return ref
}

// attempt creates and starts a container as the kubelet does. It returns nil and why where that fails; a failure is soon.
func attempt(t *testing.T, pod *harness.Pod, config *runtimeapi.ContainerConfig) (*harness.Container, error) {
	t.Helper()
	began := time.Now()
	c, err := pod.TryCreate(config)
	if err == nil {
		if err = tryStart(t, c); err != nil {
			c.Remove()
			c = nil
		}
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the answer (%v) took %v", err, took)
	}
	return c, err
}

// tryStart is StartContainer.
func tryStart(t *testing.T, c *harness.Container) error {
	t.Helper()
	_, err := harness.Shared(t).Shim.Runtime.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
	return err
}

// noCanary fails where the canary's content is in an answer.
func noCanary(t *testing.T, canary *harness.Canary, what string, answers ...any) {
	t.Helper()
	for _, answer := range answers {
		if strings.Contains(fmt.Sprint(answer), canary.Secret) {
			t.Errorf("%s: the canary's content is in %v", what, answer)
		}
	}
}

// hostsFile is the file that the kubelet mounts at /etc/hosts.
func hostsFile(t *testing.T) (*runtimeapi.Mount, string) {
	t.Helper()
	const text = "192.0.2.7 of-the-kubelet\n"
	file := filepath.Join(harness.WorkDir(t, "h"), "etc-hosts")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return &runtimeapi.Mount{HostPath: file, ContainerPath: "/etc/hosts"}, text
}
