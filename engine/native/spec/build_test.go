package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/host"
)

var update = flag.Bool("update", false, "write the golden files")

// allCapabilities are those of a host that has all that these tests name.
var allCapabilities = append([]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_TIME"}, defaultCapabilities...)

// nodes by what they can.
func v2Host() *host.Host {
	return &host.Host{
		CgroupV2: true, CgroupDriver: engine.SystemdDriver, Controllers: []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"},
		Swap: true, HugePageSizes: []string{"1GB", "2MB"}, Capabilities: allCapabilities, OOMScoreAdjMin: -1000, Seccomp: true,
		CPUs: "0-3", MemoryNodes: "0", Mqueue: true,
		AppArmor: true, AppArmorDefault: "crishim-default",
		Kernel: host.Kernel{Release: "6.12", RecursiveReadonly: true, IDMappedMounts: true, UserNamespaces: true},
	}
}

func v1Host() *host.Host {
	return &host.Host{
		CgroupDriver: engine.CgroupfsDriver, Controllers: []string{"cpu", "cpuset", "memory"}, Swap: true, Capabilities: allCapabilities,
		HardLimits: map[string]uint64{"RLIMIT_NOFILE": 20000}, Seccomp: true, CPUs: "0-1", MemoryNodes: "0",
		Kernel: host.Kernel{Release: "6.18", RecursiveReadonly: true, IDMappedMounts: true, UserNamespaces: true},
	}
}

func podContainer() *Container {
	return &Container{
		Spec: &engine.ContainerSpec{
			Namespaces: engine.Namespaces{Network: engine.NamespacePod, IPC: engine.NamespacePod, PID: engine.NamespaceContainer},
			Security: engine.Security{
				Seccomp: engine.Profile{Type: engine.ProfileRuntimeDefault}, MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			},
			// Neither reaches a spec.
			Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"},
		},
		Image: imagespec.ImageConfig{
			Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, Env: []string{"PATH=/bin", "A=image", "bad", "B=image"}, WorkingDir: "work",
			Labels: map[string]string{"image": "label"},
		},
		User: engine.User{UID: 0, GID: 0}, Rootfs: "/run/rootfs",
		Pins:     Pins{Net: "/run/ns/net", IPC: "/run/ns/ipc", UTS: "/run/ns/uts"},
		Hostname: "pod", Shm: "/run/shm", CgroupsPath: "/pods/c",
		Files: Files{Hosts: "/run/hosts", Hostname: "/run/hostname", ResolvConf: "/run/resolv.conf"},
	}
}

func mapping() *engine.UserNamespace {
	m := []engine.IDMapping{{HostID: 100000, Length: 65536}}
	return &engine.UserNamespace{UIDs: m, GIDs: m}
}

// goldens are containers by what they show.
var goldens = map[string]func() (*host.Host, *Container){
	"plain": func() (*host.Host, *Container) { return v2Host(), podContainer() },
	"v1":    func() (*host.Host, *Container) { return v1Host(), podContainer() },
	"process": func() (*host.Host, *Container) {
		c := podContainer()
		s := c.Spec
		s.Command, s.Args, s.WorkingDir, s.TTY = []string{"sh"}, []string{"-c", "true"}, "/tmp", true
		s.Env = []engine.EnvVar{{Name: "A", Value: []byte("cri")}, {Name: "N", Value: []byte("a\nb")}}
		s.Security.NoNewPrivs, s.Security.ReadonlyRootfs = true, true
		s.Security.CapAdd, s.Security.CapDrop, s.Security.CapAmbient = []string{"NET_ADMIN", "SYS_MODULE"}, []string{"ALL"}, []string{"NET_BIND_SERVICE"}
		s.Security.AppArmor = engine.Profile{Type: engine.ProfileUnconfined}
		s.Resources.OOMScoreAdj = -998
		c.User, c.Home = engine.User{UID: 1000, GID: 2000, Groups: []int64{3000, 2000}}, "/home/app"
		c.Labels = host.Labels{Process: "u:r:container_t:s0:c1,c2", Mount: "u:r:container_file_t:s0:c1,c2"}
		c.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 1048576}, {Type: "RLIMIT_CORE"}}
		return v1Host(), c
	},
	"privileged": func() (*host.Host, *Container) {
		c := podContainer()
		s := c.Spec
		s.Security = engine.Security{Privileged: true, CapDrop: []string{"KILL"}, Seccomp: engine.Profile{Type: engine.ProfileRuntimeDefault}, AppArmor: engine.Profile{Type: engine.ProfileUnconfined}}
		mode := os.FileMode(0o600)
		sda := specs.LinuxDevice{Path: "/dev/sda", Type: "b", Major: 8, FileMode: &mode}
		c.Devices = []host.Device{{LinuxDevice: sda, Access: "rwm"}, {LinuxDevice: sda, Access: "r"}}
		return v2Host(), c
	},
	"mounts": func() (*host.Host, *Container) {
		c := podContainer()
		c.Spec.Mounts = []engine.Mount{
			{ContainerPath: "/etc/hosts", HostPath: "/kubelet/hosts", Propagation: engine.PropagationPrivate},
			{ContainerPath: "/dev", HostPath: "/dev", Propagation: engine.PropagationHostToContainer},
			{ContainerPath: "/b", HostPath: "/b", Readonly: true, Propagation: engine.PropagationBidirectional, Options: []string{"noexec"}},
			{ContainerPath: "/r", HostPath: "/r", Readonly: true, RecursiveReadonly: true, Propagation: engine.PropagationPrivate},
			{ContainerPath: "/image", Image: &engine.ImageRef{}, Readonly: true, Propagation: engine.PropagationPrivate, Options: []string{"nosuid"}},
			{ContainerPath: "/b/deeper/", HostPath: "/d"},
		}
		c.ImageVolumes = map[int]string{4: "/run/volume-4"}
		return v2Host(), c
	},
	"userns": func() (*host.Host, *Container) {
		c := podContainer()
		c.Spec.Namespaces.User = mapping()
		c.Pins.User = "/run/ns/user"
		m := mapping()
		c.Spec.Mounts = []engine.Mount{
			{ContainerPath: "/v", HostPath: "/v", UIDMappings: m.UIDs, GIDMappings: m.GIDs},
			{ContainerPath: "/w", HostPath: "/w", UIDMappings: []engine.IDMapping{{HostID: 5, Length: 1}}, GIDMappings: m.GIDs},
		}
		return v2Host(), c
	},
	"userns-small-node": func() (*host.Host, *Container) {
		c := podContainer()
		c.Spec.Namespaces = engine.Namespaces{Network: engine.NamespaceNode, IPC: engine.NamespaceNode, PID: engine.NamespaceNode, User: &engine.UserNamespace{
			UIDs: []engine.IDMapping{{HostID: 7, Length: 1}}, GIDs: []engine.IDMapping{{HostID: 7, Length: 5}}}}
		c.Pins = Pins{User: "/run/ns/user"}
		return v2Host(), c
	},
	"node": func() (*host.Host, *Container) {
		c := podContainer()
		c.Spec.Namespaces = engine.Namespaces{Network: engine.NamespaceNode, IPC: engine.NamespaceNode, PID: engine.NamespaceNode}
		c.Pins, c.Files = Pins{}, Files{}
		return v2Host(), c
	},
	"target": func() (*host.Host, *Container) {
		c := podContainer()
		c.Spec.Namespaces.PID, c.Spec.Namespaces.PIDTarget = engine.NamespaceTarget, "t"
		c.Pins.PID = "/run/ns/target"
		return v2Host(), c
	},
	"resources": func() (*host.Host, *Container) {
		c := podContainer()
		c.Spec.Resources = allResources()
		mode, id := os.FileMode(0o660), uint32(6)
		c.Devices = []host.Device{{LinuxDevice: specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 10, Minor: 1, FileMode: &mode, GID: &id}, Access: "rw"}}
		return v2Host(), c
	},
}

func allResources() engine.Resources {
	return engine.Resources{
		CPUPeriod: 50000, CPUQuota: 25000, CPUShares: 512, CpusetCPUs: "0", CpusetMems: "0", MemoryLimit: 64 << 20, MemorySwap: 96 << 20, OOMScoreAdj: 900,
		Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "64KB"}}, Unified: map[string]string{"memory.high": "50000000"},
	}
}

type golden struct {
	Warnings []string `json:"warnings,omitempty"`
	// Seccomp stands for the list of system calls, which is the library's.
	Seccomp specs.LinuxSeccompAction `json:"seccompDefault,omitempty"`
	Spec    any                      `json:"spec"`
}

// Rows: S20 (part), S25 (part)
func TestContainersAreLoweredAsTheGoldenFilesSay(t *testing.T) {
	for name, makeOne := range goldens {
		t.Run(name, func(t *testing.T) {
			h, c := makeOne()
			s, warnings, err := Build(h, c)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, name, s, warnings)
		})
	}
}

// Other programs than libcontainer do not read the mapping in the namespace that they join, or not all of it.
func TestOCIRuntimesAreToldTheMappingOfUsers(t *testing.T) {
	for _, other := range []bool{false, true} {
		h, c := goldens["userns"]()
		c.OCIRuntime = other
		s, _, err := Build(h, c)
		if err != nil {
			t.Fatal(err)
		}
		var want []specs.LinuxIDMapping
		if other {
			want = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
		}
		if uids, gids := s.Linux.UIDMappings, s.Linux.GIDMappings; !slices.Equal(uids, want) || !slices.Equal(gids, want) {
			t.Errorf("another program: %v: uids %v, gids %v", other, uids, gids)
		}
		if !slices.Contains(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: c.Pins.User}) {
			t.Errorf("another program: %v: namespaces %v", other, s.Linux.Namespaces)
		}
	}
	c := podContainer()
	c.OCIRuntime = true
	if s, _, err := Build(v2Host(), c); err != nil || s.Linux.UIDMappings != nil || s.Linux.GIDMappings != nil {
		t.Errorf("a pod with the host's users: %v, %v, %v", s.Linux.UIDMappings, s.Linux.GIDMappings, err)
	}
}

func compare(t *testing.T, name string, s *specs.Spec, warnings []string) {
	t.Helper()
	g := golden{Warnings: warnings, Spec: s}
	if s.Linux.Seccomp != nil {
		g.Seccomp = s.Linux.Seccomp.DefaultAction
		copied := *s
		linux := *s.Linux
		linux.Seccomp = nil
		copied.Linux = &linux
		g.Spec = &copied
	}
	got, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what is made (%v): go test ./engine/native/spec -update, and read the difference\n%s", path, err, got)
	}
}

func TestThePauseProcessHasARootOfItsOwnAndNoRights(t *testing.T) {
	s, err := BuildPause(v2Host(), &Pause{
		Rootfs: "/root/pause", Namespaces: engine.Namespaces{PID: engine.NamespacePod}, Pins: Pins{Net: "/n", IPC: "/i", UTS: "/u"},
		Security: &engine.Security{Privileged: true, CapAdd: []string{"SYS_ADMIN"}, AppArmor: engine.Profile{Type: engine.ProfileUnconfined}},
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "pause", s, nil)
}
