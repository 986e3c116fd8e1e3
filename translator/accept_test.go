package translator

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

func TestWhatPeopleUseIsAccepted(t *testing.T) {
	for _, a := range []struct {
		what string
		ask  func(Defaults) error
	}{
		{"a label with any text", pod(func(c *runtimeapi.PodSandboxConfig) { c.Labels = map[string]string{"x/y": "a\nb ü"} })},
		{"labels of 512 KiB together", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Labels = map[string]string{"a": strings.Repeat("x", 512<<10-1)}
		})},
		{"a static pod's uid", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "0e3b5f2a9c1d4e6f8a7b6c5d4e3f2a1b" })},
		{"a link-local DNS server", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"fe80::1%eth0"}, Searches: []string{"."}}
		})},
		{"one host port for two protocols and two addresses", pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{
				{ContainerPort: 53, HostPort: 53}, {ContainerPort: 53, HostPort: 53, Protocol: runtimeapi.Protocol_UDP},
				{ContainerPort: 53, HostPort: 53, HostIp: "127.0.0.1"}}
		})},
		{"the users root and the highest", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{}, &runtimeapi.Int64Value{Value: 1<<32 - 2}
		})},
		{"a user name of letters and digits", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "3proxy_a.b-c$" })},
		{"a group with a user name", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUsername, s.RunAsGroup = "nobody", &runtimeapi.Int64Value{Value: 5}
		})},
		{"the root of the host as a volume", mount(&runtimeapi.Mount{ContainerPath: "/host", HostPath: "/"})},
		{"a volume with a colon", mount(&runtimeapi.Mount{ContainerPath: "/a:b", HostPath: "/dev/pci-0000:00:1f"})},
		{"a whole image as a volume", mount(&runtimeapi.Mount{ContainerPath: "/a", Readonly: true, RecursiveReadOnly: true, Image: &runtimeapi.ImageSpec{Image: "x"}, ImageSubPath: "./"})},
		{"an image spec without a name beside a host path", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Image: &runtimeapi.ImageSpec{}})},
		{"unlimited swap", limits(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: -1})},
		{"a variable of several lines", container(func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "a.b-c d", Value: []byte("x\n\xff")}}
		})},
		{"an AppArmor profile with dots", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Apparmor = localhost("k8s-apparmor.v1_x") })},
		{"a cgroup with the driver unknown", pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "kubepods.slice" })},
		{"a seccomp profile anywhere where the operator allows it", func(d Defaults) error {
			d.SeccompRoot = "/"
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("/tmp/critest/block.json") })(d)
		}},
	} {
		if err := a.ask(testDefaults()); err != nil {
			t.Errorf("%s: %v", a.what, err)
		}
	}
}

// S25: annotations are echoed and decide nothing.
//
// Rows: S25
func TestAnnotationsNeverChangeASpec(t *testing.T) {
	known := []string{
		"io.kubernetes.cri-o.Devices", "org.systemd.property.TasksMax", "run.oci.seccomp_bpf_file", "cdi.k8s.io/x", "io.kubernetes.cri.runtime-handler",
		"seccomp.security.alpha.kubernetes.io/pod", "container.apparmor.security.beta.kubernetes.io/app", "io.kubernetes.cri-o.UnifiedCgroup.app",
		"com.docker.network.driver", "run.oci.hooks.stderr", "containerd.io/restart.logpath",
	}
	annotations := map[string]string{}
	for i := range 1000 {
		annotations[fmt.Sprintf("%s/%d", known[i%len(known)], rand.Uint64())] = []string{"unconfined", "/etc/passwd", "memory.max=1", "vendor.com/gpu=all"}[i%4]
	}
	for _, key := range known {
		annotations[key] = "unconfined"
	}
	spec := func(annotations map[string]string) string {
		podCfg, cfg := podConfig(), containerConfig()
		podCfg.Annotations, cfg.Annotations, cfg.Image.Annotations = annotations, annotations, annotations
		pod, err := Pod(podCfg, "", testDefaults())
		if err != nil {
			t.Fatal(err)
		}
		c, err := Container(pod, "p", cfg, testDefaults())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(pod.Annotations, annotations) || !reflect.DeepEqual(c.Annotations, annotations) || !reflect.DeepEqual(c.Image.Annotations, annotations) {
			t.Error("annotations are not passed on unchanged")
		}
		pod.Annotations, c.Annotations, c.Image.Annotations = nil, nil, nil
		data, err := json.Marshal([]any{pod, c})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if without, with := spec(nil), spec(annotations); without != with {
		t.Errorf("annotations changed\n%s\nto\n%s", without, with)
	}
}

// Rows: S23 (part)
func TestARequestIsNotChangedByItsTranslation(t *testing.T) {
	cfg := containerConfig()
	cfg.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a/b", HostPath: "/x", MountOptions: []string{"nosuid", "nodev"}}, {ContainerPath: "/c", HostPath: "/y"}}
	before := ConfigHash(cfg)
	if _, err := Container(&engine.PodSpec{}, "p", cfg, testDefaults()); err != nil {
		t.Fatal(err)
	}
	if ConfigHash(cfg) != before {
		t.Errorf("the request is now %v", cfg)
	}
}

func TestEqualConfigsHaveEqualHashes(t *testing.T) {
	labels := func() map[string]string {
		m := map[string]string{}
		for _, i := range rand.Perm(100) {
			m[fmt.Sprint(i)] = "x"
		}
		return m
	}
	a, b := podConfig(), podConfig()
	a.Labels, b.Labels = labels(), labels()
	if ConfigHash(a, "h") != ConfigHash(b, "h") {
		t.Error("the order of a map changes the hash")
	}
	if ConfigHash(a, "h") == ConfigHash(a, "i") || ConfigHash(a, "a", "b") == ConfigHash(a, "ab") {
		t.Error("the extra texts do not count")
	}
	b.Labels["0"] = "y"
	if ConfigHash(a) == ConfigHash(b) {
		t.Error("a label does not count")
	}
}

// Rows: S61, S59 (part)
func TestWhatTheEngineCannotDoIsRefusedByName(t *testing.T) {
	all := engine.Features{
		SupplementalGroupsPolicy: true, UserNamespaces: true, RecursiveReadonlyMounts: true, MountOptions: true, IDMappedMounts: true,
		ImageVolumes: true, AmbientCapabilities: true, Unified: true, Hugepages: true, CDI: true, Swap: true,
	}
	spec := func() *engine.ContainerSpec { return &engine.ContainerSpec{} }
	for _, c := range []struct {
		field string
		drop  func(*engine.Features)
		spec  func(*engine.ContainerSpec)
	}{
		{"userns_options", func(f *engine.Features) { f.UserNamespaces = false }, func(s *engine.ContainerSpec) { s.Namespaces.User = &engine.UserNamespace{} }},
		{"supplemental_groups_policy", func(f *engine.Features) { f.SupplementalGroupsPolicy = false }, func(s *engine.ContainerSpec) { s.Security.GroupsPolicy = engine.GroupsStrict }},
		{"add_ambient_capabilities", func(f *engine.Features) { f.AmbientCapabilities = false }, func(s *engine.ContainerSpec) { s.Security.CapAmbient = []string{"KILL"} }},
		{"CDI_devices", func(f *engine.Features) { f.CDI = false }, func(s *engine.ContainerSpec) { s.CDIDevices = []string{"a/b=c"} }},
		{"image", func(f *engine.Features) { f.ImageVolumes = false }, func(s *engine.ContainerSpec) { s.Mounts = []engine.Mount{{Image: &engine.ImageRef{}}} }},
		{"RROUnsupported", func(f *engine.Features) { f.RecursiveReadonlyMounts = false }, func(s *engine.ContainerSpec) { s.Mounts = []engine.Mount{{RecursiveReadonly: true}} }},
		{"mount_options", func(f *engine.Features) { f.MountOptions = false }, func(s *engine.ContainerSpec) { s.Mounts = []engine.Mount{{Options: []string{"nodev"}}} }},
		{"uidMappings", func(f *engine.Features) { f.IDMappedMounts = false }, func(s *engine.ContainerSpec) { s.Mounts = []engine.Mount{{UIDMappings: make([]engine.IDMapping, 1)}} }},
		{"unified", func(f *engine.Features) { f.Unified = false }, func(s *engine.ContainerSpec) { s.Resources.Unified = map[string]string{"memory.max": "1"} }},
		{"hugepage_limits", func(f *engine.Features) { f.Hugepages = false }, func(s *engine.ContainerSpec) {
			s.Resources.Hugepages = []engine.HugepageLimit{{PageSize: "2MB", Limit: 1}}
		}},
		{"memory_swap_limit_in_bytes", func(f *engine.Features) { f.Swap = false }, func(s *engine.ContainerSpec) { s.Resources.MemoryLimit, s.Resources.MemorySwap = 1, 2 }},
	} {
		s, f := spec(), all
		c.spec(s)
		if err := CheckContainer(s, f); err != nil {
			t.Errorf("%s is refused by an engine that can do it: %v", c.field, err)
		}
		c.drop(&f)
		if err := CheckContainer(s, f); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: answered %v", c.field, err)
		}
	}

	// What the kubelet always sends asks for nothing.
	s := spec()
	s.Resources = engine.Resources{MemoryLimit: 5, MemorySwap: 5, Hugepages: []engine.HugepageLimit{{PageSize: "2MB"}}}
	s.Mounts = []engine.Mount{{RecursiveReadonly: true, Image: &engine.ImageRef{}}}
	if err := CheckContainer(s, engine.Features{ImageVolumes: true}); err != nil {
		t.Errorf("refused: %v", err)
	}
	for field, pod := range map[string]engine.PodSpec{
		"userns_options":             {Namespaces: engine.Namespaces{User: &engine.UserNamespace{}}},
		"supplemental_groups_policy": {Security: engine.Security{GroupsPolicy: engine.GroupsStrict}},
	} {
		if err := CheckPod(&pod, engine.Features{}); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), field) {
			t.Errorf("a pod with %s without the feature: %v", field, err)
		}
		if err := CheckPod(&pod, all); err != nil {
			t.Errorf("a pod with %s is refused by an engine that can do it: %v", field, err)
		}
	}
	for field, update := range map[string]*runtimeapi.LinuxContainerResources{
		"unified":                    {Unified: map[string]string{"memory.max": "1"}},
		"hugepage_limits":            {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}},
		"memory_swap_limit_in_bytes": {MemoryLimitInBytes: 1, MemorySwapLimitInBytes: 2},
	} {
		if err := CheckUpdate(update, engine.Features{}); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "linux."+field) {
			t.Errorf("an update of %s without the feature: %v", field, err)
		}
		if err := CheckUpdate(update, all); err != nil {
			t.Errorf("an update of %s is refused by an engine that can do it: %v", field, err)
		}
	}
	// What a kubelet sends to change something else.
	for _, update := range []*runtimeapi.LinuxContainerResources{
		{CpusetCpus: "0-1"}, {MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}, {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}},
	} {
		if err := CheckUpdate(update, engine.Features{}); err != nil {
			t.Errorf("an update of %v is refused: %v", update, err)
		}
	}
}

func TestUpdatesOfResources(t *testing.T) {
	type cri = runtimeapi.LinuxContainerResources
	current := engine.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 100, MemorySwap: 100, OOMScoreAdj: 900,
		Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "5"},
	}
	for _, c := range []struct {
		what   string
		update *cri
		want   func(*engine.Resources)
	}{
		{"nothing changes nothing", &cri{}, func(*engine.Resources) {}},
		{"nil changes nothing", nil, func(*engine.Resources) {}},
		{"the CPU manager's cpuset leaves the limits", &cri{CpusetCpus: "1"}, func(r *engine.Resources) { r.CpusetCPUs = "1" }},
		{"a period without a quota takes the quota away", &cri{CpuPeriod: 100000, CpuShares: 2}, func(r *engine.Resources) { r.CPUQuota, r.CPUShares = 0, 2 }},
		{"a quota of -1 takes it away", &cri{CpuQuota: -1}, func(r *engine.Resources) { r.CPUQuota = 0 }},
		{"a quota keeps the period", &cri{CpuQuota: 2000}, func(r *engine.Resources) { r.CPUQuota = 2000 }},
		{"more memory still has no swap", &cri{MemoryLimitInBytes: 200}, func(r *engine.Resources) { r.MemoryLimit, r.MemorySwap = 200, 200 }},
		{"less memory still has no swap", &cri{MemoryLimitInBytes: 50}, func(r *engine.Resources) { r.MemoryLimit, r.MemorySwap = 50, 50 }},
		{"memory with swap", &cri{MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 300}, func(r *engine.Resources) { r.MemoryLimit, r.MemorySwap = 200, 300 }},
		{"memory of -1 takes the limit away", &cri{MemoryLimitInBytes: -1}, func(r *engine.Resources) { r.MemoryLimit, r.MemorySwap = 0, 0 }},
		{"page sizes are joined", &cri{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 7}, {PageSize: "1GB", Limit: 8}}},
			func(r *engine.Resources) {
				r.Hugepages = []engine.HugepageLimit{{PageSize: "2MB", Limit: 7}, {PageSize: "1GB", Limit: 8}}
			}},
		{"cgroup files are joined", &cri{Unified: map[string]string{"memory.low": "1"}}, func(r *engine.Resources) {
			r.Unified = map[string]string{"memory.high": "5", "memory.low": "1"}
		}},
	} {
		want := current
		c.want(&want)
		got, err := UpdateResources(current, c.update)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", c.what, got, err, want)
		}
	}
	if len(current.Unified) != 1 || current.Hugepages[0].Limit != 1 {
		t.Error("the current resources were changed")
	}
	if got, err := UpdateResources(current, &cri{MemorySwapLimitInBytes: 50}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("memory plus swap below memory: %+v, %v", got, err)
	}
	if got, _ := UpdateResources(engine.Resources{MemoryLimit: 100, MemorySwap: 150}, &cri{MemoryLimitInBytes: 200}); got.MemorySwap != 250 {
		t.Errorf("50 bytes of swap became %d", got.MemorySwap-got.MemoryLimit)
	}
}

func TestResourcesSurviveTheWayThereAndBack(t *testing.T) {
	want := engine.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, CpusetCPUs: "0-1", CpusetMems: "0", MemoryLimit: 100, MemorySwap: 150, OOMScoreAdj: -5,
		Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "5"},
	}
	var p problems
	if got := resources(&p, "linux.resources", ResourcesToCRI(want)); p.err("resources") != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, p.err("resources"), want)
	}
	if o, r, err := PodResources(nil, &runtimeapi.LinuxContainerResources{CpuShares: 2}); o != nil || r == nil || err != nil {
		t.Errorf("a pod's resources: %v, %v, %v", o, r, err)
	}
}

// As containerd and CRI-O tell it.
func TestALimitOfMemoryAloneIsToldWithThatOfSwap(t *testing.T) {
	for _, c := range []struct{ memory, swap, told int64 }{{100, 0, 100}, {100, 100, 100}, {100, 150, 150}, {100, -1, -1}, {0, 0, 0}, {0, -1, -1}} {
		if got := ResourcesToCRI(engine.Resources{MemoryLimit: c.memory, MemorySwap: c.swap}); got.MemoryLimitInBytes != c.memory || got.MemorySwapLimitInBytes != c.told {
			t.Errorf("%d and %d are told as %d and %d", c.memory, c.swap, got.MemoryLimitInBytes, got.MemorySwapLimitInBytes)
		}
	}
}

// What an interface of the network has is set by none who makes the pod before it.
func TestSysctlsOfInterfacesAreToldApart(t *testing.T) {
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Uid: "u", Namespace: "n"}, Linux: &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{
		"net.ipv4.conf.eth0.arp_ignore": "1", "net.ipv6.neigh.net1.gc_stale_time": "30",
		"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.default.arp_ignore": "1", "net.ipv6.conf.lo.disable_ipv6": "1",
		"net.core.somaxconn": "1024", "kernel.sem": "1 2 3 4",
	}}}
	spec, err := Pod(config, "", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"net.ipv4.conf.eth0.arp_ignore": "1", "net.ipv6.neigh.net1.gc_stale_time": "30"}; !maps.Equal(spec.InterfaceSysctls, want) {
		t.Errorf("of interfaces: %v", spec.InterfaceSysctls)
	}
	if len(spec.Sysctls) != 5 || spec.Sysctls["net.ipv4.conf.all.arp_ignore"] != "1" {
		t.Errorf("of the namespaces: %v", spec.Sysctls)
	}
}

func TestEverySignalSurvivesTheWayThereAndBack(t *testing.T) {
	for value, name := range runtimeapi.Signal_name {
		var p problems
		spec := stopSignal(&p, runtimeapi.Signal(value))
		if back := signalToCRI(spec); p.err("") != nil || int32(back) != value {
			t.Errorf("%s became %q and then %s", name, spec, back)
		}
	}
	for name, want := range map[string]runtimeapi.Signal{
		"15": runtimeapi.Signal_SIGNAL_SIGTERM, "term": runtimeapi.Signal_SIGNAL_SIGTERM, "SIGQUIT": runtimeapi.Signal_SIGNAL_SIGQUIT,
		"37": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "RTMAX-1": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1, "64": runtimeapi.Signal_SIGNAL_SIGRTMAX,
		"50": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, "34": runtimeapi.Signal_SIGNAL_SIGRTMIN,
		"": 0, "99": 0, "SIGFOO": 0, "-3": 0,
	} {
		if got := signalToCRI(name); got != want {
			t.Errorf("%q is %s, want %s", name, got, want)
		}
	}
}

func TestRegistryCredentials(t *testing.T) {
	full := &runtimeapi.AuthConfig{Username: "u", Password: "p", Auth: "eDp5", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}
	if got, err := Auth(full); err != nil || *got != (engine.Auth{Username: "u", Password: "p", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Auth(&runtimeapi.AuthConfig{Auth: "dXNlcjpwYTpzcw=="}); err != nil || got.Username != "user" || got.Password != "pa:ss" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, empty := range []*runtimeapi.AuthConfig{nil, {}} {
		if got, err := Auth(empty); got != nil || err != nil {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for _, bad := range []string{"secret!", "c2VjcmV0"} { // the second is "secret" without a colon
		if _, err := Auth(&runtimeapi.AuthConfig{Auth: bad}); !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestWhoAsksForNoNamespacesSharesNoPIDsInAPodThatDoesNot(t *testing.T) {
	for pod, want := range map[engine.NamespaceMode]engine.NamespaceMode{
		engine.NamespaceContainer: engine.NamespaceContainer, engine.NamespacePod: engine.NamespacePod, engine.NamespaceNode: engine.NamespaceNode,
	} {
		if got := containerNamespaces(new(problems), nil, &engine.Namespaces{PID: pod}).PID; got != want {
			t.Errorf("in a pod of %s it is %s, want %s", pod, got, want)
		}
	}
}

// What an update leaves at zero stays: the memory limit that a swap limit needs may be the one that is there.
func TestAnUpdateOfSwapAlone(t *testing.T) {
	in := &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 300}
	got, err := UpdateResources(engine.Resources{MemoryLimit: 200, MemorySwap: 200}, in)
	if err != nil || got.MemoryLimit != 200 || got.MemorySwap != 300 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := UpdateResources(engine.Resources{}, in); err == nil {
		t.Error("swap without any memory limit is accepted")
	}
	if err := CheckUpdate(in, engine.Features{}); err == nil {
		t.Error("swap without swap accounting is accepted")
	}
}

// The kubelet takes the overhead off what it sends (subtractOverheadFromResourceConfig), also off a limit that there is not: a pod
// without a CPU limit and 250m of overhead comes with a quota of -25001. An error would be the end of the resize.
func TestResourcesOfAPodLessItsOverheadAreTaken(t *testing.T) {
	for _, c := range []struct{ quota, memory, wantQuota, wantMemory int64 }{
		{-1, -1, 0, 0},
		{-1 - 25000, -1 - 128<<20, 0, 0},
		{25500 - 25000, 64 << 20, minCFSMicros, 64 << 20},
		{50000, 0, 50000, 0},
	} {
		o, r, err := PodResources(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 25000, CpuShares: 256},
			&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: c.quota, CpuShares: 2, MemoryLimitInBytes: c.memory})
		if err != nil {
			t.Errorf("quota %d, memory %d: %v", c.quota, c.memory, err)
			continue
		}
		if o.CPUQuota != 25000 || r.CPUQuota != c.wantQuota || r.MemoryLimit != c.wantMemory {
			t.Errorf("quota %d, memory %d: %+v, overhead %+v", c.quota, c.memory, r, o)
		}
	}
	if _, _, err := PodResources(nil, &runtimeapi.LinuxContainerResources{CpuShares: 1}); err == nil {
		t.Error("what no kubelet sends is taken")
	}
}
