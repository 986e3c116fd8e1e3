package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Cluster is a Kubernetes control plane, v1.37, whose one node is a Kubelet with the option Cluster.
type Cluster struct {
	*Process
	// Kubeconfig is the administrator's.
	Kubeconfig string

	t       T
	dir     string
	program string
}

// StartCluster starts etcd, kube-apiserver, kube-controller-manager and kube-scheduler on the node's own network and waits until
// they answer.
func StartCluster(t T, node *Node) *Cluster {
	t.Helper()
	dir := WorkDir(t, "c")
	c := &Cluster{t: t, dir: dir, Kubeconfig: filepath.Join(dir, "admin.kubeconfig"), program: clusterProgram(t)}
	c.Process = start(t, "control plane", filepath.Join(dir, "up.log"), nil, c.program, "up", "-dir", dir, "-address", node.CNI.Gateway,
		"-node", kubeletNode, "-pod-cidr", node.CNI.Subnet+".0/24", "-etcd", etcd(t))
	t.Cleanup(func() {
		if err := c.Terminate(time.Minute); err != nil {
			t.Errorf("%v", err)
		}
		for _, pid := range processesNaming(dir) {
			t.Errorf("process %d of the control plane was left", pid)
		}
	})
	Eventually(t, 3*time.Minute, "the control plane to be ready", func() error {
		if !c.Running() {
			t.Fatalf("it ended:\n%s", c.LogTail())
		}
		if !strings.Contains(readString(c.LogFile), "ready\n") {
			return errors.New("it is not")
		}
		return nil
	})
	return c
}

// Kubectl is a kubectl command of the administrator.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, c.program, append([]string{"kubectl"}, args...)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "HOME="+c.dir, "KUBECACHEDIR="+filepath.Join(c.dir, "cache"))
	return command
}

// Run runs kubectl with a standard input and returns its standard output; its exit status is an ExitError.
func (c *Cluster) Run(t T, stdin string, args ...string) (string, error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := c.Kubectl(within(t, 3*Call), args...)
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := command.Run()
	if exit := (&exec.ExitError{}); errors.As(err, &exit) {
		return stdout.String(), fmt.Errorf("%w: %s", ExitError(exit.ExitCode()), stderr.String())
	}
	return stdout.String(), err
}

// Must is Run of what must succeed.
func (c *Cluster) Must(t T, args ...string) string {
	t.Helper()
	out, err := c.Run(t, "", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// Apply gives the cluster a manifest.
func (c *Cluster) Apply(t T, manifest string) {
	t.Helper()
	if _, err := c.Run(t, manifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("applying %s: %v", manifest, err)
	}
}

// clear deletes all workloads and their pods.
func (c *Cluster) clear() {
	c.t.Helper()
	if !c.Running() {
		c.t.Errorf("the control plane ended:\n%s", c.LogTail())
		return
	}
	if _, err := c.Run(c.t, "", "delete", "deployments,statefulsets,daemonsets,jobs,pods", "--all", "--all-namespaces", "--timeout=2m"); err != nil {
		c.t.Errorf("deleting all pods: %v", err)
	}
}

// clusterProgram builds e2e/cluster, on the host's network.
func clusterProgram(t T) string {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	binary := filepath.Join(cacheDir(), "kube-"+KubeletCurrent)
	if builds[binary] {
		return binary
	}
	err := onHostNetwork(func() error {
		return goTool(filepath.Join(root(), "e2e", "cluster"), nil, "build", "-trimpath", "-buildvcs=false",
			"-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+KubeletCurrent, "-o", binary, ".")
	})
	if err != nil {
		t.Fatalf("building the control plane: %v", err)
	}
	builds[binary] = true
	return binary
}

// etcd is this machine's, or else the one out of Debian's package, which is unpacked and not installed: that would start it.
func etcd(t T) string {
	t.Helper()
	if file, err := exec.LookPath("etcd"); err == nil {
		return file
	}
	dir := filepath.Join(cacheDir(), "etcd")
	file := filepath.Join(dir, "usr", "bin", "etcd")
	if isFile(file) {
		return file
	}
	err := onHostNetwork(func() error { return debianPackage("etcd-server", dir) })
	if err != nil {
		t.Fatalf("fetching Debian's etcd-server package: %v", err)
	}
	return file
}
