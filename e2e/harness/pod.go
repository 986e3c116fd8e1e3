package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Call is long enough for any single call of a test.
const Call = time.Minute

// Pod is a running pod sandbox of a test.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig
	node   *Node
	t      T
}

// PodConfig is a sandbox configuration as the kubelet makes it: labels, annotations, log directory, cgroup parent, all
// namespaces the pod's, the runtime's default seccomp profile.
func (n *Node) PodConfig(name string) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprintf("%s-0000-4000-8000-%s%s", ID(), ID(), ID()[:4])
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "e2e", Attempt: 0},
		Hostname:     name,
		LogDirectory: filepath.Join(n.Shim.PodLogs, "e2e_"+name+"_"+uid),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"e2e.svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"}},
		Labels: map[string]string{
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "e2e", "io.kubernetes.pod.uid": uid, "app": name,
		},
		Annotations: map[string]string{"kubernetes.io/config.seen": "2024-01-01T00:00:00Z", "kubernetes.io/config.source": "api"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.CgroupParent() + "/kubepods/besteffort/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
			Sysctls: map[string]string{},
		},
	}
}

// RunPod runs a pod with the changes made to its configuration; the cleanup stops and removes it and its cgroup.
func (n *Node) RunPod(t T, name string, changes ...func(*runtimeapi.PodSandboxConfig)) *Pod {
	t.Helper()
	config := n.PodConfig(name)
	for _, change := range changes {
		change(config)
	}
	return n.RunPodConfig(t, config, "")
}

// RunPodConfig runs a pod of exactly that configuration, under a runtime handler ("" is the default one).
func (n *Node) RunPodConfig(t T, config *runtimeapi.PodSandboxConfig, handler string) *Pod {
	t.Helper()
	n.PreparePod(t, config)
	reply, err := n.Shim.Runtime.RunPodSandbox(within(t, Call), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("running pod %s: %v", config.Metadata.GetName(), err)
	}
	pod := &Pod{ID: reply.PodSandboxId, Config: config, node: n, t: t}
	t.Cleanup(pod.Remove)
	return pod
}

// PreparePod makes what the kubelet makes before RunPodSandbox, the log directory and the pod's cgroup, and has the cleanup
// remove them.
func (n *Node) PreparePod(t T, config *runtimeapi.PodSandboxConfig) {
	t.Helper()
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatalf("making the pod's log directory: %v", err)
	}
	parent := config.GetLinux().GetCgroupParent()
	if !strings.HasPrefix(parent, n.CgroupParent()+"/") {
		return
	}
	makeCgroup(t, parent)
	t.Cleanup(func() { removeCgroup(parent) })
}

// Stop stops the pod.
func (p *Pod) Stop() {
	p.t.Helper()
	if _, err := p.node.Shim.Runtime.StopPodSandbox(within(p.t, Call), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Errorf("stopping pod %s: %v", p.Config.Metadata.Name, err)
	}
}

// Remove stops and removes it; again is fine.
func (p *Pod) Remove() {
	p.t.Helper()
	p.Stop()
	if _, err := p.node.Shim.Runtime.RemovePodSandbox(within(p.t, Call), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Errorf("removing pod %s: %v", p.Config.Metadata.Name, err)
	}
}

// Status is PodSandboxStatus.
func (p *Pod) Status() *runtimeapi.PodSandboxStatus {
	p.t.Helper()
	reply, err := p.node.Shim.Runtime.PodSandboxStatus(within(p.t, Call), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		p.t.Fatalf("status of pod %s: %v", p.Config.Metadata.Name, err)
	}
	return reply.Status
}

// IP is the pod's first address.
func (p *Pod) IP() string {
	p.t.Helper()
	ip := p.Status().GetNetwork().GetIp()
	if ip == "" {
		p.t.Fatalf("pod %s has no address", p.Config.Metadata.Name)
	}
	return ip
}

// Container is a container of a test.
type Container struct {
	ID     string
	Config *runtimeapi.ContainerConfig
	// Log is its log file.
	Log string
	pod *Pod
	t   T
}

// ContainerConfig is a configuration as the kubelet makes it, for an image named by reference, which the kubelet resolves.
func (p *Pod) ContainerConfig(name, image string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: 0},
		Image:    &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: image},
		Command:  command,
		Envs:     []*runtimeapi.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("192.0.2.1")}},
		Labels: map[string]string{
			"io.kubernetes.container.name": name, "io.kubernetes.pod.name": p.Config.Metadata.Name,
			"io.kubernetes.pod.namespace": p.Config.Metadata.Namespace, "io.kubernetes.pod.uid": p.Config.Metadata.Uid,
		},
		Annotations: map[string]string{
			"io.kubernetes.container.hash": "1234abcd", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath": "/dev/termination-log", "io.kubernetes.pod.terminationGracePeriod": "30",
		},
		LogPath: filepath.Join(name, "0.log"),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

// Create creates a container of exactly that configuration.
func (p *Pod) Create(config *runtimeapi.ContainerConfig) *Container {
	p.t.Helper()
	c, err := p.TryCreate(config)
	if err != nil {
		p.t.Fatalf("creating container %s: %v", config.Metadata.GetName(), err)
	}
	return c
}

// TryCreate is Create for a test that expects a refusal.
func (p *Pod) TryCreate(config *runtimeapi.ContainerConfig) (*Container, error) {
	p.t.Helper()
	log := filepath.Join(p.Config.LogDirectory, config.LogPath)
	if config.LogPath == filepath.Join(config.Metadata.GetName(), "0.log") {
		if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil { // the kubelet makes it
			p.t.Fatalf("making the container's log directory: %v", err)
		}
	}
	reply, err := p.node.Shim.Runtime.CreateContainer(within(p.t, Call), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}
	return &Container{ID: reply.ContainerId, Config: config, Log: log, pod: p, t: p.t}, nil
}

// Run creates and starts a container of a pulled image.
func (p *Pod) Run(name, image string, command []string, changes ...func(*runtimeapi.ContainerConfig)) *Container {
	p.t.Helper()
	config := p.ContainerConfig(name, image, command...)
	for _, change := range changes {
		change(config)
	}
	c := p.Create(config)
	c.Start()
	return c
}

// Start starts it.
func (c *Container) Start() {
	c.t.Helper()
	if _, err := c.pod.node.Shim.Runtime.StartContainer(within(c.t, Call), &runtimeapi.StartContainerRequest{ContainerId: c.ID}); err != nil {
		c.t.Fatalf("starting container %s: %v", c.Config.Metadata.Name, err)
	}
}

// Stop stops it with a grace period in seconds.
func (c *Container) Stop(grace int64) {
	c.t.Helper()
	if _, err := c.pod.node.Shim.Runtime.StopContainer(within(c.t, Call), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: grace}); err != nil {
		c.t.Fatalf("stopping container %s: %v", c.Config.Metadata.Name, err)
	}
}

// Remove removes it.
func (c *Container) Remove() {
	c.t.Helper()
	if _, err := c.pod.node.Shim.Runtime.RemoveContainer(within(c.t, Call), &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		c.t.Fatalf("removing container %s: %v", c.Config.Metadata.Name, err)
	}
}

// Status is ContainerStatus.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	c.t.Helper()
	reply, err := c.pod.node.Shim.Runtime.ContainerStatus(within(c.t, Call), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		c.t.Fatalf("status of container %s: %v", c.Config.Metadata.Name, err)
	}
	return reply.Status
}

// WaitExit waits until it has exited and returns its status.
func (c *Container) WaitExit() *runtimeapi.ContainerStatus {
	c.t.Helper()
	var status *runtimeapi.ContainerStatus
	Eventually(c.t, 30*time.Second, "container "+c.Config.Metadata.Name+" to exit", func() error {
		status = c.Status()
		if status.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %v", status.State)
		}
		return nil
	})
	return status
}

// Exec is ExecSync with fifty seconds; any failure of the call ends the test.
func (c *Container) Exec(command ...string) *runtimeapi.ExecSyncResponse {
	c.t.Helper()
	reply, err := c.pod.node.Shim.Runtime.ExecSync(within(c.t, Call), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: 50})
	if err != nil {
		c.t.Fatalf("running %q in container %s: %v", command, c.Config.Metadata.Name, err)
	}
	return reply
}

// Output is the standard output of a shell command in it, which must succeed.
func (c *Container) Output(script string) string {
	c.t.Helper()
	reply := c.Exec("sh", "-c", script)
	if reply.ExitCode != 0 {
		c.t.Fatalf("%q in container %s: exit status %d: %s", script, c.Config.Metadata.Name, reply.ExitCode, reply.Stderr)
	}
	return string(reply.Stdout)
}

// WaitLog waits until its log has a line with the text.
func (c *Container) WaitLog(text string) {
	c.t.Helper()
	Eventually(c.t, 20*time.Second, fmt.Sprintf("%q in the log of %s", text, c.Config.Metadata.Name), func() error {
		lines, err := ReadLog(c.Log)
		if err != nil {
			return err
		}
		for _, line := range lines {
			if strings.Contains(line.Text, text) {
				return nil
			}
		}
		return fmt.Errorf("its %d lines have it not", len(lines))
	})
}

// WaitLines waits until its log has n lines, and returns them.
func (c *Container) WaitLines(n int) []LogLine {
	c.t.Helper()
	var lines []LogLine
	Eventually(c.t, 30*time.Second, fmt.Sprintf("%d lines in the log of %s", n, c.Config.Metadata.Name), func() (err error) {
		if lines, err = ReadLog(c.Log); err == nil && len(lines) < n {
			err = fmt.Errorf("it has %d", len(lines))
		}
		return err
	})
	return lines
}
