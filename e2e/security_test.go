package e2e

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

type securityContext = runtimeapi.LinuxContainerSecurityContext

func id(value int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: value} }

// Rows: S16 (part), S18 (part), S19, S20 (part)
func TestContainerHasTheRightsItWasGiven(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "rights")
	for name, row := range map[string]struct {
		change func(*securityContext)
		want   []string // of `testserver identity`
		not    []string
	}{
		"default": {func(*securityContext) {}, []string{"uid=0 gid=0 ", "NoNewPrivs:\t0", "Seccomp:\t2", "CapAmb:\t0000000000000000", "CapInh:\t0000000000000000"}, nil},
		"user and group": {func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1234), id(5678) },
			[]string{"uid=1234 gid=5678 ", "CapEff:\t0000000000000000"}, nil},
		"user by name": {func(s *securityContext) { s.RunAsUsername = "www-data" }, []string{"uid=33 gid=33 "}, nil},
		"supplemental groups": {func(s *securityContext) { s.RunAsUser, s.SupplementalGroups = id(1000), []int64{4000, 4001} },
			[]string{"uid=1000 ", "4000", "4001", "50000"}, nil},
		"strict groups": {func(s *securityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = id(1000), []int64{4000}, runtimeapi.SupplementalGroupsPolicy_Strict
		}, []string{"uid=1000 ", "4000"}, []string{"50000"}},
		"no new privileges": {func(s *securityContext) { s.NoNewPrivs = true }, []string{"NoNewPrivs:\t1"}, nil},
		"seccomp unconfined": {func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}, []string{"Seccomp:\t0"}, nil},
		"seccomp unset": {func(s *securityContext) { s.Seccomp = nil }, []string{"Seccomp:\t0"}, nil},
		"all capabilities dropped": {func(s *securityContext) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}} },
			[]string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"}, nil},
		"all dropped, one added": {func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}, []string{"CapEff:\t0000000000000400"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := pod.Run("c"+harness.ID(), n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) { row.change(c.Linux.SecurityContext) })
			// S19: an exec has the container's rights.
			own := c.Output("testserver identity")
			for _, want := range row.want {
				if !strings.Contains(own, want) {
					t.Errorf("no %q in\n%s", want, own)
				}
			}
			for _, not := range row.not {
				if strings.Contains(own, not) {
					t.Errorf("%q in\n%s", not, own)
				}
			}
			c.Stop(0)
			c.Remove()
		})
	}
}

// Rows: S20 (part)
func TestPathsAreMaskedAndReadOnly(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "paths")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.MaskedPaths, s.ReadonlyPaths = []string{"/bin/ls", "/etc/group"}, []string{"/opt"}
	})
	for script, fails := range map[string]bool{"ls": true, "touch /opt/x": true, "touch /tmp/x": false, "test -s /etc/group": true, "cat /proc/kcore | head -c 0": false} {
		if reply := c.Exec("sh", "-c", script); (reply.ExitCode != 0) != fails {
			t.Errorf("%q: exit code %d (%s), failing expected: %v", script, reply.ExitCode, reply.Stderr, fails)
		}
	}
	readonly := pod.Run("readonly", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true })
	if reply := readonly.Exec("touch", "/file"); reply.ExitCode == 0 {
		t.Error("the read-only root can be written")
	}
}

// Rows: S24 (part)
func TestSysctlsAreThePods(t *testing.T) {
	n := node(t)
	n.HostUnchanged(t)
	pod := n.RunPod(t, "sysctls", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "99", "kernel.shm_rmid_forced": "1", "net.ipv4.conf.eth0.arp_ignore": "2"}
	})
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	got := c.Output("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/conf/eth0/arp_ignore")
	if got != "99\n1\n2\n" {
		t.Errorf("sysctls %q", got)
	}
}

// Rows: S20 (part)
func TestPrivilegedContainer(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "privileged", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths, s.Seccomp = true, nil, nil, nil
	})
	if got := c.Output("testserver identity"); !strings.Contains(got, "Seccomp:\t0") {
		t.Errorf("seccomp on a privileged container:\n%s", got)
	}
	c.Output("mkdir /mnt && mount -t tmpfs none /mnt")
	// S20: a privileged sandbox does not make its containers privileged.
	plain := pod.Run("plain", n.Registry.Ref(harness.Busybox), forever)
	if got := plain.Output("testserver identity"); !strings.Contains(got, "Seccomp:\t2") {
		t.Errorf("no seccomp on a plain container of a privileged sandbox:\n%s", got)
	}
	if reply := plain.Exec("sh", "-c", "mkdir /mnt && mount -t tmpfs none /mnt"); reply.ExitCode == 0 {
		t.Error("a plain container can mount")
	}
}

// The kernel has one sysfs for all mounts of a network namespace, and what mounts it first decides whether it can be written to.
func TestPrivilegedContainerCanWriteToSysfs(t *testing.T) {
	n := node(t)
	// What is written is what it says already.
	const write = `file=/sys/class/net/lo/tx_queue_len; read -r old <$file && echo "$old" >$file`
	pod := n.RunPod(t, "sysfs", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	plain := pod.Run("plain", n.Registry.Ref(harness.Busybox), forever)
	c := pod.Run("privileged", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	if reply := c.Exec("sh", "-c", write); reply.ExitCode != 0 {
		t.Errorf("a privileged container: %s%s", reply.Stderr, c.Output("grep ' /sys ' /proc/self/mountinfo"))
	}
	if plain.Exec("sh", "-c", write).ExitCode == 0 {
		t.Error("a container that is not privileged can write to /sys")
	}
	if later := pod.Run("later", n.Registry.Ref(harness.Busybox), forever); later.Exec("sh", "-c", write).ExitCode == 0 {
		t.Error("one that is not privileged and came later can write to /sys")
	}
}
