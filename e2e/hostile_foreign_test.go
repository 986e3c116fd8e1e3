package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/e2e/testimage"
)

// Containers that somebody made with docker, with our labels and names like ours, are left alone whatever the daemon does;
// ours that somebody removed are seen, and their networks given back.
//
// Rows: S67
func TestForeignContainersAreLeftAlone(t *testing.T) {
	harness.AboutDocker(t)
	n := node(t)
	image := n.Registry.Ref(harness.Busybox)
	pod := n.RunPod(t, "ours")
	labels := map[string][]string{
		"plain":               nil,
		"with our labels":     {"io.kubernetes.docker.type=container", "io.kubernetes.sandbox.id=" + pod.ID, "io.kubernetes.container.name=c"},
		"as a sandbox":        {"io.kubernetes.docker.type=podsandbox", "io.kubernetes.container.name=POD"},
		"as a probe":          {"io.crishim.probe=" + n.Shim.RootDir, "io.kubernetes.docker.type="},
		"as a holder":         {"io.crishim.holder=" + n.Shim.RootDir, "io.crishim.mounts=AAAAAAAAAAAAAAAAAAAAAAAAAA"},
		"with a name of ours": {"app=other"},
	}
	foreign := map[string]string{}
	for what, list := range labels {
		args := []string{"create", "--network", "none"}
		if what == "with our labels" || what == "as a sandbox" { // the others stay created, as what a sweep looks for
			args = []string{"run", "-d", "--network", "none"}
		}
		for _, label := range list {
			args = append(args, "--label", label)
		}
		if what == "with a name of ours" {
			args = append(args, "--name", "k8s_c_other_e2e_"+harness.ID()+"_0")
		}
		foreign[what] = strings.TrimSpace(n.Docker.CLI(t, append(args, image, "sleep", "1000")...))
	}
	t.Cleanup(func() {
		for _, id := range foreign {
			n.Docker.Delete("/containers/" + id + "?force=1&v=1")
		}
	})
	state := func(id string) string {
		return strings.TrimSpace(n.Docker.CLI(t, "inspect", "-f", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}}", id))
	}
	before := map[string]string{}
	for what, id := range foreign {
		before[what] = state(id)
	}
	check := func(when string) {
		t.Helper()
		pods, err := n.Shim.Runtime.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		containers, err := n.Shim.Runtime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for what, id := range foreign {
			if now := state(id); now != before[what] {
				t.Errorf("%s, a container %s was %q and is %q", when, what, before[what], now)
			}
			if slices.ContainsFunc(pods.Items, func(p *runtimeapi.PodSandbox) bool { return p.Id == id }) ||
				slices.ContainsFunc(containers.Containers, func(c *runtimeapi.Container) bool { return c.Id == id }) {
				t.Errorf("%s, a container %s is listed", when, what)
			}
			_, serr := n.Shim.Runtime.StopContainer(ctx(t), &runtimeapi.StopContainerRequest{ContainerId: id})
			_, rerr := n.Shim.Runtime.RemoveContainer(ctx(t), &runtimeapi.RemoveContainerRequest{ContainerId: id})
			_, perr := n.Shim.Runtime.StopPodSandbox(ctx(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
			_, qerr := n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			if err := errors.Join(serr, rerr, perr, qerr); err != nil && harness.Code(err) != codes.NotFound {
				t.Logf("%s, asked to end a container %s: %v", when, what, err)
			}
			if now := state(id); now != before[what] {
				t.Errorf("%s, a container %s was %q and is %q after it was asked to be ended", when, what, before[what], now)
			}
		}
	}
	check("at first")
	for i := range 5 {
		churn := n.RunPod(t, fmt.Sprintf("churn%d", i))
		churn.Run("c", image, []string{"true"}).WaitExit()
		churn.Remove()
	}
	check("after churn")
	n.Shim.Restart()
	check("after a restart of the daemon")

	given := n.CNI.Addresses()
	c := pod.Run("c", image, forever)
	n.Docker.Delete("/containers/" + c.ID + "?force=1")
	n.Docker.Delete("/containers/" + pod.ID + "?force=1")
	harness.Eventually(t, 10*time.Second, "the pod to be not ready", func() error {
		reply, err := n.Shim.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID})
		if harness.Code(err) == codes.NotFound || err == nil && reply.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return nil
		}
		return fmt.Errorf("%v, %v", reply, err)
	})
	pod.Remove()
	if left := n.CNI.Addresses(); len(left) != len(given)-1 {
		t.Errorf("addresses %v became %v", given, left)
	}
	check("at the end")
}

// A USER that is no number in range is no other's number, nor a name that the image makes root.
//
// Rows: S14
func TestUsersOfAnImageThatAreNone(t *testing.T) {
	n, _ := attacked(t)
	pod := n.RunPod(t, "user")
	names := []string{"4294967296", "-1", "4294967295", "2147483648:0", "0x0", "+0", " 0", "0 ", "１", "00000000000", "toor\nx", "-", "4294967296:4294967296", ":0", "0:-1"}
	for _, user := range names {
		image := hostileImage(t, n, v1.Config{User: user}, func(tree *testimage.Tree) {
			lines := "root:x:0:0:root:/root:/bin/sh\n"
			for _, name := range names {
				lines += strings.ReplaceAll(name, ":", "") + ":x:0:0::/:/bin/sh\n"
			}
			tree.File("etc/passwd", 0o644, []byte(lines))
			tree.File("etc/group", 0o644, []byte("root:x:0:\n-1:x:0:\n4294967296:x:0:\n"))
		})
		c, err := attempt(t, pod, pod.ContainerConfig("c"+harness.ID(), image, forever...))
		if err == nil {
			// Only what says root in so many words may be it.
			if got := c.Output("id -u"); user != ":0" {
				t.Errorf("USER %q runs as %s", user, got)
			}
			c.Remove()
			continue
		}
		if code := harness.Code(err); code != codes.InvalidArgument {
			t.Errorf("USER %q: %v", user, err)
		}
	}
}
