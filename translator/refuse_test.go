package translator

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

func pod(edit func(*runtimeapi.PodSandboxConfig)) func(Defaults) error {
	return func(d Defaults) error {
		cfg := podConfig()
		cfg.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}}
		edit(cfg)
		spec, err := Pod(cfg, "", d)
		if (spec == nil) != (err != nil) {
			panic("a spec and an error, or neither")
		}
		return err
	}
}

func container(edit func(*runtimeapi.ContainerConfig)) func(Defaults) error {
	return func(d Defaults) error {
		cfg := containerConfig()
		cfg.Linux = &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{}, Capabilities: &runtimeapi.Capability{}},
		}
		edit(cfg)
		pod, err := Pod(&runtimeapi.PodSandboxConfig{Metadata: podConfig().Metadata, LogDirectory: "/var/log/pods/x"}, "", d)
		if err != nil {
			panic(err)
		}
		spec, err := Container(pod, "p", cfg, d)
		if (spec == nil) != (err != nil) {
			panic("a spec and an error, or neither")
		}
		return err
	}
}

func mount(m *runtimeapi.Mount) func(Defaults) error {
	return container(func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} })
}

func limits(r *runtimeapi.LinuxContainerResources) func(Defaults) error {
	return container(func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r })
}

func security(edit func(*runtimeapi.LinuxContainerSecurityContext)) func(Defaults) error {
	return container(func(c *runtimeapi.ContainerConfig) { edit(c.Linux.SecurityContext) })
}

func podSecurityOf(edit func(*runtimeapi.LinuxSandboxSecurityContext)) func(Defaults) error {
	return pod(func(c *runtimeapi.PodSandboxConfig) { edit(c.Linux.SecurityContext) })
}

func userns(mode runtimeapi.NamespaceMode, mappings ...*runtimeapi.IDMapping) *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: mode, Uids: mappings, Gids: mappings}
}

func localhost(ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
}

// refusal is a request and the field that its refusal names.
type refusal struct {
	what  string
	ask   func(Defaults) error
	field string
}

// Rows: S01 (part), S06 (part), S09 (part), S10 (part), S14, S15, S18 (part), S21 (part), S24, S27, S28, S29, S30 (part), S52 (part)
func TestEachBadFieldIsRefusedByName(t *testing.T) {
	for _, r := range refusals() {
		t.Run(r.what, func(t *testing.T) {
			err := r.ask(testDefaults())
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("answered %v, want an invalid argument", err)
			}
			if !strings.Contains(err.Error(), r.field) {
				t.Errorf("the error %q does not name %s", err, r.field)
			}
			if lines := strings.Count(err.Error(), "\n"); lines > 1 {
				t.Errorf("one fault gives %d lines: %v", lines+1, err)
			}
		})
	}
}

func refusals() []refusal {
	const (
		options = "linux.security_context.namespace_options"
		ctx     = "linux.security_context"
	)
	node := runtimeapi.NamespaceMode_NODE
	long := strings.Repeat("x", 254)
	all := []refusal{
		{"a pod without metadata", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }), "metadata is required"},
		{"a container without metadata", container(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }), "metadata is required"},
		{"a pod without a namespace", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "" }), "metadata.namespace"},
		{"a uid that is a path", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "../../x" }), "metadata.uid"},
		{"a windows pod", pod(func(c *runtimeapi.PodSandboxConfig) { c.Windows = &runtimeapi.WindowsPodSandboxConfig{} }), "windows"},
		{"a windows container", container(func(c *runtimeapi.ContainerConfig) { c.Windows = &runtimeapi.WindowsContainerConfig{} }), "windows"},
		{"a hostname of two lines (S15)", pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a\nroot::0:0" }), "hostname"},
		{"a hostname of 65 letters", pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = long[:65] }), "hostname"},
		{"too many labels (S52)", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Labels = map[string]string{"a": strings.Repeat("x", 400<<10)}
			c.Annotations = map[string]string{"a": strings.Repeat("x", 200<<10)}
		}), "labels and annotations"},
		{"too many labels of a container (S52)", container(func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{"a": strings.Repeat("x", 513<<10)}
		}), "labels and annotations"},
		{"an empty label key", pod(func(c *runtimeapi.PodSandboxConfig) { c.Labels = map[string]string{"": "x"} }), "labels"},
		{"a config of 5 MiB", container(func(c *runtimeapi.ContainerConfig) {
			for range 50 {
				c.Args = append(c.Args, strings.Repeat("x", 100<<10))
			}
		}), "config"},

		{"a relative log directory (S10)", pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "var/log" }), "log_directory"},
		{"a log directory with .. (S10)", pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var/log/pods/../../etc" }), "log_directory"},
		{"the root as log directory (S10)", pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "//" }), "log_directory"},

		{"a DNS server that is a name", pod(func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"dns"}} }), "dns_config.servers"},
		{"a search domain of two lines", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 1.2.3.4"}}
		}), "dns_config.searches"},
		{"a DNS option of two words", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{"a b"}}
		}), "dns_config.options"},

		{"an unknown protocol", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{Protocol: 9, ContainerPort: 1}}
		}), "port_mappings[0].protocol"},
		{"a host port without a container port", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 80}}
		}), "port_mappings[0].container_port"},
		{"host port 65536", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 65536, ContainerPort: 1}}
		}), "port_mappings[0].host_port"},
		{"one host port twice", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 1}, {HostPort: 80, ContainerPort: 2}}
		}), "port_mappings[1].host_port"},
		{"a host ip that is a name", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 1, HostIp: "localhost"}}
		}), "port_mappings[0].host_ip"},

		{"a pod's network CONTAINER", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = 1 }), options + ".network"},
		{"a pod's pid TARGET", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = 3 }), options + ".pid"},
		{"a pod's ipc CONTAINER", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.NamespaceOptions.Ipc = 1 }), options + ".ipc"},
		{"a namespace mode unknown to CRI", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = 17 }), options + ".pid"},
		{"a pod's target", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.NamespaceOptions.TargetId = "a" }), options + ".target_id"},
		{"a user namespace with two mappings", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(0, &runtimeapi.IDMapping{HostId: 1000, Length: 10}, &runtimeapi.IDMapping{HostId: 2000, ContainerId: 10, Length: 10})
			s.NamespaceOptions.UsernsOptions.Gids = s.NamespaceOptions.UsernsOptions.Gids[:1]
		}), "userns_options.uids"},
		{"a user namespace without id 0", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(0, &runtimeapi.IDMapping{HostId: 1, ContainerId: 1, Length: 9})
		}), "userns_options.uids"},
		{"a user namespace of mode CONTAINER", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(1, &runtimeapi.IDMapping{HostId: 1, Length: 9})
		}), "userns_options.mode"},
		{"a user namespace of mode TARGET", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(3, &runtimeapi.IDMapping{HostId: 1, Length: 9})
		}), "userns_options.mode"},
		{"mappings into the host's user namespace", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(node, &runtimeapi.IDMapping{HostId: 1, Length: 9})
		}), "userns_options"},
		{"a mapping beyond the ids", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(0, &runtimeapi.IDMapping{HostId: 1 << 31, Length: 1 << 31})
		}), "userns_options"},
		{"a user namespace on the host's network", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, UsernsOptions: userns(0, &runtimeapi.IDMapping{HostId: 9, Length: 9})}
		}), "userns_options"},

		{"the host's network for one container", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions.Network = node }), options + ".network"},
		{"the host's pids for one container", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = node }), options + ".pid"},
		{"the host's ipc for one container", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions.Ipc = node }), options + ".ipc"},
		{"TARGET without a target", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = 3 }), options + ".target_id"},
		{"a target without TARGET", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions.TargetId = "a" }), options + ".target_id"},
		{"a target that is a path", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = 3, "../a"
		}), options + ".target_id"},
		{"another user namespace than the pod's", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions.UsernsOptions = userns(0, &runtimeapi.IDMapping{HostId: 5, Length: 9})
		}), options + ".userns_options"},

		{"a privileged container in an ordinary pod", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), ctx + ".privileged"},
		{"a group without a user", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }), ctx + ".run_as_group"},
		{"a pod's group without a user", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }), ctx + ".run_as_group"},
		{"a user by number and by name", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &runtimeapi.Int64Value{Value: 1}, "a"
		}), ctx},
		{"a supplemental group of -1", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{-1} }), ctx + ".supplemental_groups"},
		{"65537 supplemental groups", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = make([]int64, 65537) }), ctx + ".supplemental_groups"},
		{"an unknown groups policy", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 2 }), ctx + ".supplemental_groups_policy"},
		{"an unknown capability (S18)", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities.AddCapabilities = []string{"CAP_SUPER"}
		}), ctx + ".capabilities.add_capabilities"},
		{"a relative masked path", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc"} }), ctx + ".masked_paths[0]"},
		{"a readonly path with ..", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/a/.."} }), ctx + ".readonly_paths[0]"},
		{"an SELinux type with a space", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a b"}
		}), ctx + ".selinux_options.type"},
		{"a profile type unknown to CRI", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 7}
		}), ctx + ".seccomp.profile_type"},
		{"a reference without Localhost", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/var/lib/kubelet/seccomp/a"}
		}), ctx + ".seccomp.localhost_ref"},
		//lint:ignore SA1019 the deprecated field is what is refused
		{"an unknown profile by text", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SeccompProfilePath = "strict" }), ctx + ".seccomp_profile_path"},
		//lint:ignore SA1019 the deprecated field is what is refused
		{"an unknown AppArmor profile by text", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ApparmorProfile = "strict" }), ctx + ".apparmor_profile"},
		//lint:ignore SA1019 the deprecated field is what is refused
		{"an empty profile by text (S21)", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/" }), ctx + ".seccomp"},

		{"an image without a name", container(func(c *runtimeapi.ContainerConfig) { c.Image = nil }), "image.image"},
		{"an image with a line break", container(func(c *runtimeapi.ContainerConfig) { c.Image.Image = "a\nb" }), "image.image"},
		{"a handler that is a path", container(func(c *runtimeapi.ContainerConfig) { c.Image.RuntimeHandler = "/bin/sh" }), "image.runtime_handler"},
		{"a NUL in the command", container(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"a\x00b"} }), "command"},
		{"an argument of 128 KiB (S30)", container(func(c *runtimeapi.ContainerConfig) { c.Args = []string{strings.Repeat("x", 128<<10)} }), "args"},
		{"2 MiB of environment (S30)", container(func(c *runtimeapi.ContainerConfig) {
			for i := range 20 {
				c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: strings.Repeat("x", i+1), Value: []byte(strings.Repeat("x", 120<<10))})
			}
		}), "command, args and envs"},
		{"a variable with = in its name (S30)", container(func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}}
		}), "envs[0].key"},
		{"a variable with a NUL in its value (S30)", container(func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("a\x00")}}
		}), "envs[0].value"},
		{"a relative working directory", container(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "a" }), "working_dir"},
		{"an open file as working directory (S06)", container(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/proc/self/fd/7" }), "working_dir"},
		{"another process's open file (S06)", container(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "//proc/1/task/1/fd/7/a" }), "working_dir"},
		{"a device without permissions", container(func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/a", HostPath: "/dev/a"}}
		}), "devices[0].permissions"},
		{"a device with ..", container(func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/a", HostPath: "/dev/../etc", Permissions: "r"}}
		}), "devices[0].host_path"},
		{"a CDI device that is a path (S27)", container(func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "/dev/a"}}
		}), "CDI_devices[0].name"},
		{"a signal unknown to CRI", container(func(c *runtimeapi.ContainerConfig) { c.StopSignal = 99 }), "stop_signal"},

		{"a mount without a container path", mount(&runtimeapi.Mount{HostPath: "/a"}), "mounts[0].container_path"},
		{"a mount over the root", mount(&runtimeapi.Mount{HostPath: "/a", ContainerPath: "//"}), "mounts[0].container_path"},
		{"a mount of nothing", mount(&runtimeapi.Mount{ContainerPath: "/a"}), "mounts[0].host_path"},
		{"a host path with .. (S09)", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/srv/../etc"}), "mounts[0].host_path"},
		{"an unknown propagation", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Propagation: 7}), "mounts[0].propagation"},
		{"recursive read-only but writable", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true}), "mounts[0].recursive_read_only"},
		{"recursive read-only with propagation", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true, Readonly: true, Propagation: 1}), "mounts[0].recursive_read_only"},
		{"a mount option other than CRI's", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"bind"}}), "mounts[0].mount_options"},
		{"uid mappings alone", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}}), "gidMappings"},
		{"mappings that overlap", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b",
			UidMappings: []*runtimeapi.IDMapping{{HostId: 5, Length: 5}, {HostId: 9, ContainerId: 50, Length: 5}}, GidMappings: []*runtimeapi.IDMapping{{Length: 1}}}), "uidMappings"},
		{"a mapping of length 0", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b",
			UidMappings: []*runtimeapi.IDMapping{{}}, GidMappings: []*runtimeapi.IDMapping{{Length: 1}}}), "uidMappings"},
		{"one container path twice", container(func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b"}, {ContainerPath: "/a/", HostPath: "/c"}}
		}), "mounts[1].container_path"},
		{"a writable image volume", mount(&runtimeapi.Mount{ContainerPath: "/a", Image: &runtimeapi.ImageSpec{Image: "x"}}), "mounts[0].readonly"},
		{"an image volume with a host path", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}}), "mounts[0].host_path"},
		{"a sub-path out of the image (S01)", mount(&runtimeapi.Mount{ContainerPath: "/a", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}, ImageSubPath: "a/../../etc"}), "mounts[0].image_sub_path"},
		{"an absolute sub-path", mount(&runtimeapi.Mount{ContainerPath: "/a", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}, ImageSubPath: "/etc"}), "mounts[0].image_sub_path"},
		{"a sub-path of no image", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", ImageSubPath: "etc"}), "mounts[0].image_sub_path"},

		{"a quota below 1 ms", limits(&runtimeapi.LinuxContainerResources{CpuQuota: 999}), "linux.resources.cpu_quota"},
		{"a period above 1 s", limits(&runtimeapi.LinuxContainerResources{CpuPeriod: 1000001}), "linux.resources.cpu_period"},
		{"negative shares", limits(&runtimeapi.LinuxContainerResources{CpuShares: -5}), "linux.resources.cpu_shares"},
		{"a cpu list with a space", limits(&runtimeapi.LinuxContainerResources{CpusetCpus: "0, 1"}), "linux.resources.cpuset_cpus"},
		{"a descending range", limits(&runtimeapi.LinuxContainerResources{CpusetMems: "3-1"}), "linux.resources.cpuset_mems"},
		{"negative memory", limits(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -2}), "linux.resources.memory_limit_in_bytes"},
		{"memory plus swap below memory", limits(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 10}), "memory_swap_limit_in_bytes"},
		{"swap without memory", limits(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 10}), "memory_swap_limit_in_bytes"},
		{"an OOM score of 1001", limits(&runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}), "linux.resources.oom_score_adj"},
		{"a page size that is a path", limits(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}}), "hugepage_limits[0].page_size"},
		{"one page size twice", limits(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2MB"}}}), "hugepage_limits[1].page_size"},
		{"a cgroup file that moves processes", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.procs": "1"}}), "linux.resources.unified"},
		{"a cgroup file that is a path", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.x/../../y": "1"}}), "linux.resources.unified"},
		{"a cgroup value of two lines", limits(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.max": "1\n2"}}), "linux.resources.unified"},
		{"bad overhead", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Overhead = &runtimeapi.LinuxContainerResources{CpuShares: 1}
		}), "linux.overhead.cpu_shares"},
	}
	for _, name := range []string{"a/b", "..", ".a", "a..b", "a\x00b", "a\nb", "a_b", "a;K8S_POD_UID=x", "a=b", "a b", "ünïcode", "-a", long} {
		all = append(all,
			refusal{"the pod name " + clip(name) + " (S28)", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = name }), "metadata.name"},
			refusal{"the container name " + clip(name) + " (S28)", container(func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = name }), "metadata.name"})
	}
	for _, name := range []string{"../x.log", "a/../../x", "/etc/passwd", "a/", ".", "a/.", "a\x00", "a\n", strings.Repeat("x", 4100)} {
		all = append(all, refusal{"the log path " + clip(name) + " (S10)", container(func(c *runtimeapi.ContainerConfig) { c.LogPath = name }), "log_path"})
	}
	for _, id := range []int64{-1, 1<<32 - 1, 1 << 32, 1 << 62} {
		all = append(all,
			refusal{"a user out of range (S14)", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: id} }), ctx + ".run_as_user"},
			refusal{"a group out of range (S14)", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{}, &runtimeapi.Int64Value{Value: id}
			}), ctx + ".run_as_group"},
			refusal{"a pod's user out of range (S14)", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: id} }), ctx + ".run_as_user"})
	}
	for _, name := range []string{"0", "4294967296", "-1", "4294967295", "2147483648:0", "0x0", "+0", " 0", "１", "08", "0xffffffffffffffffff", "a:b", "a/b", "a\nb", "$", long} {
		all = append(all, refusal{"the user name " + clip(name) + " (S14)", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = name }), ctx + ".run_as_username"})
	}
	for _, ref := range []string{"", "a.json", "/etc/passwd", "/var/lib/kubelet/seccomp", "/var/lib/kubelet/seccomp/../pki/a", "/var/lib/kubelet/seccomp-x/a", "/dev/zero", "/var/lib/kubelet/seccomp/a\x00"} {
		all = append(all,
			refusal{"the seccomp profile " + clip(ref) + " (S21)", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost(ref) }), ctx + ".seccomp"},
			refusal{"the pod's seccomp profile " + clip(ref) + " (S21)", podSecurityOf(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.Seccomp = localhost(ref) }), ctx + ".seccomp"})
	}
	for _, ref := range []string{"", "a/b", "..", "/x", "a b", "a\n", "unconfined", "-a", long} {
		all = append(all, refusal{"the AppArmor profile " + clip(ref) + " (S21)", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Apparmor = localhost(ref) }), ctx + ".apparmor"})
	}
	for _, key := range []string{"", "net", "net.", "+kernel.core_pattern", "kernel.core_pattern", "kernel.hostname", "vm.overcommit_memory", "net.ipv4.a=b", "net/ipv4/../../kernel/x",
		"net.ipv4/../x", "net..x", "fs.file-max", "kernel.shm_next_id ", "net.a\nb", "user.max_user_namespaces"} {
		all = append(all, refusal{"the sysctl " + clip(key) + " (S24)", pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{key: "1"} }), "linux.sysctls"})
	}
	for _, value := range []string{"", " ", "1\n2", "1\x00", "ü"} {
		all = append(all, refusal{"the sysctl value " + clip(value) + " (S24)", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": value}
		}), "linux.sysctls"})
	}
	for key, option := range map[string]*runtimeapi.NamespaceOption{
		"net.core.somaxconn": {Network: node}, "kernel.sem": {Ipc: node}, "fs.mqueue.msg_max": {Ipc: node},
	} {
		all = append(all, refusal{key + " on the host (S24)", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls, c.Linux.SecurityContext.NamespaceOptions = map[string]string{key: "1"}, option
		}), "linux.sysctls"})
	}
	for _, parent := range []string{"../..", "/", "//", "/a/../..", "a/b", "/a b", "/a\n", "/" + strings.Repeat("x", 4096), "."} {
		all = append(all, refusal{"the cgroup parent " + clip(parent) + " (S29)", func(d Defaults) error {
			d.CgroupDriver = engine.CgroupfsDriver
			return pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })(d)
		}, "linux.cgroup_parent"})
	}
	for _, parent := range []string{"/kubepods/pod1", "-.slice", ".slice", "/a.slice/.slice", "a--b.slice", "a-.slice", "../a.slice", "a.scope"} {
		all = append(all, refusal{"the slice " + clip(parent) + " (S29)", func(d Defaults) error {
			d.CgroupDriver = engine.SystemdDriver
			return pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })(d)
		}, "linux.cgroup_parent"})
	}
	return all
}

func TestNoRequestAtAllIsRefused(t *testing.T) {
	if _, err := Pod(nil, "", testDefaults()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a nil pod config: %v", err)
	}
	if _, err := Container(&engine.PodSpec{}, "p", nil, testDefaults()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a nil container config: %v", err)
	}
}

func TestAllFaultsAreNamedAtOnce(t *testing.T) {
	cfg := podConfig()
	cfg.Metadata.Name, cfg.Hostname, cfg.LogDirectory = "", "_", "x"
	_, err := Pod(cfg, "a/b", testDefaults())
	for _, field := range []string{"metadata.name", "hostname", "log_directory", "runtime_handler"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in %v", field, err)
		}
	}
}

// Rows: S52 (part)
func TestAnErrorAboutManyFaultsStaysShort(t *testing.T) {
	cfg := containerConfig()
	for range 10000 {
		cfg.Envs = append(cfg.Envs, &runtimeapi.KeyValue{Key: "=" + strings.Repeat("x", 100)})
	}
	_, err := Container(&engine.PodSpec{}, "p", cfg, testDefaults())
	if err == nil || len(err.Error()) > 5000 || !strings.Contains(err.Error(), "9980 more") {
		t.Errorf("the error has %d bytes: %.300v", len(err.Error()), err)
	}
}

// Rows: S21 (part)
func TestWithoutASeccompFolderLocalhostIsRefused(t *testing.T) {
	d := testDefaults()
	d.SeccompRoot = ""
	err := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("/a") })(d)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("answered %v", err)
	}
}
