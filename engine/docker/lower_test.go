package docker

import (
	"encoding/json"
	"flag"
	"fmt"
	"github.com/docker/docker/api/types/container"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/system"

	"crishim/engine"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares value as JSON with testdata/NAME.json.
func golden(t *testing.T, name string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("differs from %s (run with -update and look at the diff):\n%s", file, got)
	}
}

func ptr[T any](v T) *T { return &v }

const (
	testPod       = "67681a4c9e02a90fdac81006c72e8c2138cc1ae0a0771b2ba9bf11737dd7ee42"
	testContainer = "1111111111111111111111111111111111111111111111111111111111111111"
	testImage     = engine.ImageID("sha256:d3b523c3c3c4ff551c3f1d6654546787407167b2e881ac3c97e14982cd6cccbc")
)

func oldEngine() *facts {
	return &facts{
		api: "1.41", rootDir: "/var/lib/docker", cgroupDriver: engine.CgroupfsDriver, swapLimit: true, seccomp: true,
		oomScoreAdjMin: oomScoreAdjLowest, log: logOptions{maxSize: 50 << 20, maxFiles: 3},
	}
}

func newEngine() *facts {
	f := oldEngine()
	f.api, f.cgroupDriver, f.cgroupV2, f.cdi = "1.51", engine.SystemdDriver, true, true
	f.recursiveReadonly = map[string]bool{"crun": true}
	return f
}

// preparingEngine is an old one on a host where mounts can be prepared.
func preparingEngine() *facts {
	f := oldEngine()
	f.prepares, f.storageDriver = true, "overlay2"
	return f
}

const testMounts = "/run/crishim/docker/mounts/ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func fullPod() *engine.PodSpec {
	return &engine.PodSpec{
		Key:          engine.PodKey{Name: "web", Namespace: "default", UID: "47af9bf5-9e47-56c6", Attempt: 3},
		Handler:      "crun",
		Hostname:     "web-host",
		Labels:       map[string]string{"app": "web", "io.kubernetes.pod.name": "web"},
		Annotations:  map[string]string{"note": "kept <as> it is", "io.kubernetes.docker.type": "only an annotation"},
		LogDirectory: "/var/log/pods/default_web_47af",
		CgroupParent: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod47af.slice",
		Ports: []engine.PortMapping{
			{Protocol: "tcp", ContainerPort: 80, HostPort: 8080, HostIP: "127.0.0.1"},
			{Protocol: "SCTP", ContainerPort: 99, HostPort: 9999},
			{Protocol: "udp", ContainerPort: 53},
		},
		Namespaces: engine.Namespaces{Network: engine.NamespacePod, IPC: engine.NamespacePod, PID: engine.NamespacePod},
		Sysctls:    map[string]string{"net.ipv4.ip_local_port_range": "1024 65000"},
		Security: engine.Security{
			UID: ptr(int64(1000)), GID: ptr(int64(2000)), SupplementalGroups: []int64{3000}, ReadonlyRootfs: true, Privileged: true,
			SELinux: &engine.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c1,c2"},
		},
		PauseImage: "registry.k8s.io/pause:3.10",
	}
}

func fullContainer() *engine.ContainerSpec {
	return &engine.ContainerSpec{
		Pod:         testPod,
		PodKey:      engine.PodKey{Name: "web", Namespace: "default", UID: "47af9bf5-9e47-56c6", Attempt: 3},
		Key:         engine.ContainerKey{Name: "nginx", Attempt: 7},
		Handler:     "crun",
		Image:       engine.ImageRef{Ref: "nginx", ID: testImage},
		Command:     []string{"/bin/nginx"},
		Args:        []string{"-g", "daemon off;"},
		WorkingDir:  "/srv",
		Env:         []engine.EnvVar{{Name: "A", Value: []byte("1=2\n3")}, {Name: "EMPTY"}},
		Labels:      map[string]string{"io.kubernetes.container.name": "nginx"},
		Annotations: map[string]string{"io.kubernetes.container.hash": "76a0db39"},
		LogPath:     "/var/log/pods/default_web_47af/nginx/7.log", LogDirectory: "/var/log/pods/default_web_47af",
		Stdin: true, StdinOnce: true, TTY: true,
		StopSignal: "SIGQUIT",
		Mounts: []engine.Mount{
			{ContainerPath: "/data", HostPath: "/var/lib/data", Propagation: engine.PropagationBidirectional},
			{ContainerPath: "/conf", HostPath: "/etc/conf:with colon", Readonly: true, Propagation: engine.PropagationHostToContainer},
		},
		Devices:    []engine.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rwm"}},
		Namespaces: engine.Namespaces{Network: engine.NamespacePod, IPC: engine.NamespacePod, PID: engine.NamespaceContainer},
		Security: engine.Security{
			CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"}, NoNewPrivs: true, ReadonlyRootfs: true,
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			Seccomp:  engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: "/p.json", Content: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)},
			AppArmor: engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: "my-profile"},
			SELinux:  &engine.SELinuxOption{Level: "s0:c1,c2"},
		},
		Resources: engine.Resources{
			CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, CpusetCPUs: "0-1", CpusetMems: "0",
			MemoryLimit: 64 << 20, OOMScoreAdj: -997,
		},
		CgroupParent: "/kubepods/burstable/pod47af",
		Sysctls:      map[string]string{"kernel.shm_rmid_forced": "1"},
	}
}

func TestPodIsLowered(t *testing.T) {
	for _, test := range []struct {
		name  string
		facts *facts
		spec  func(*engine.PodSpec)
	}{
		{"pod-full-new-engine", newEngine(), func(*engine.PodSpec) {}},
		{"pod-full-old-engine", oldEngine(), func(s *engine.PodSpec) { s.CgroupParent = "/kubepods/burstable/pod47af" }},
		{"pod-host-namespaces", oldEngine(), func(s *engine.PodSpec) {
			s.CgroupParent = ""
			s.Namespaces = engine.Namespaces{Network: engine.NamespaceNode, IPC: engine.NamespaceNode, PID: engine.NamespaceNode}
		}},
		{"pod-minimal-bridge-restricted", func() *facts {
			f := oldEngine()
			f.bridge, f.oomScoreAdjMin = true, -500
			return f
		}(), func(s *engine.PodSpec) {
			*s = engine.PodSpec{Key: s.Key, PauseImage: "pause", Namespaces: s.Namespaces, Handler: "docker"}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := fullPod()
			test.spec(spec)
			body, err := lowerPod(spec, test.facts)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name, body)
		})
	}
}

// Rows: S20 (part)
func TestContainerIsLowered(t *testing.T) {
	for _, test := range []struct {
		name  string
		facts *facts
		spec  func(*engine.ContainerSpec)
	}{
		{"container-full-old-engine", oldEngine(), func(*engine.ContainerSpec) {}},
		{"container-full-new-engine", newEngine(), func(s *engine.ContainerSpec) {
			s.CgroupParent = "kubepods-pod47af.slice"
			s.CDIDevices = []string{"vendor.com/gpu=0"}
			s.Mounts = append(s.Mounts,
				engine.Mount{ContainerPath: "/rro", HostPath: "/rro", Readonly: true, RecursiveReadonly: true, Propagation: engine.PropagationPrivate},
				engine.Mount{ContainerPath: "/image", Readonly: true, Image: &engine.ImageRef{ID: testImage}, ImageSubPath: "etc"})
			s.Security.Seccomp = engine.Profile{Type: engine.ProfileRuntimeDefault}
			s.Security.AppArmor = engine.Profile{Type: engine.ProfileUnconfined}
			s.Namespaces.PID, s.Namespaces.PIDTarget = engine.NamespaceTarget, testContainer
			s.Resources.MemorySwap = 128 << 20
		}},
		{"container-minimal", oldEngine(), func(s *engine.ContainerSpec) {
			*s = engine.ContainerSpec{Pod: s.Pod, PodKey: s.PodKey, Key: s.Key, Image: s.Image, Namespaces: engine.Namespaces{PID: engine.NamespacePod}}
		}},
		{"container-prepared-mounts", preparingEngine(), func(s *engine.ContainerSpec) {
			s.Mounts = append(s.Mounts,
				engine.Mount{ContainerPath: "/rro", HostPath: "/rro", Readonly: true, RecursiveReadonly: true, Propagation: engine.PropagationPrivate},
				engine.Mount{ContainerPath: "/noexec", HostPath: "/e", Readonly: true, Options: []string{"noexec"}, Propagation: engine.PropagationHostToContainer},
				engine.Mount{ContainerPath: "/image", Readonly: true, Image: &engine.ImageRef{ID: testImage}, ImageSubPath: "etc"})
		}},
		{"container-privileged-host", newEngine(), func(s *engine.ContainerSpec) {
			s.CgroupParent = ""
			s.Security.Privileged = true
			s.Namespaces = engine.Namespaces{Network: engine.NamespaceNode, IPC: engine.NamespaceNode, PID: engine.NamespaceNode}
			s.Resources = engine.Resources{}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := fullContainer()
			test.spec(spec)
			body, err := lowerContainer(spec, processUser{User: "1000", GroupAdd: []string{"3000"}}, testMounts, test.facts)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name, body)
		})
	}
}

func TestContainerThatDockerCannotMakeIsRefused(t *testing.T) {
	for name, change := range map[string]func(*engine.ContainerSpec){
		"memory below 6 MiB":             func(s *engine.ContainerSpec) { s.Resources.MemoryLimit = 5 << 20 },
		"swap below memory":              func(s *engine.ContainerSpec) { s.Resources.MemorySwap = 1 << 20 },
		"cpu quota below 1 ms":           func(s *engine.ContainerSpec) { s.Resources.CPUQuota = 999 },
		"cpu period above 1 s":           func(s *engine.ContainerSpec) { s.Resources.CPUPeriod = 1000001 },
		"unified on cgroup v1":           func(s *engine.ContainerSpec) { s.Resources.Unified = map[string]string{"memory.high": "1"} },
		"huge page size":                 func(s *engine.ContainerSpec) { s.Resources.Hugepages = []engine.HugepageLimit{{PageSize: "../2MB"}} },
		"env name with =":                func(s *engine.ContainerSpec) { s.Env = []engine.EnvVar{{Name: "A=B"}} },
		"env value that is no UTF-8":     func(s *engine.ContainerSpec) { s.Env = []engine.EnvVar{{Name: "A", Value: []byte{0xff}}} },
		"label of ours":                  func(s *engine.ContainerSpec) { s.Labels = map[string]string{labelSandbox: "x"} },
		"label that reads as annotation": func(s *engine.ContainerSpec) { s.Labels = map[string]string{"annotation.x": "y"} },
		"name with _":                    func(s *engine.ContainerSpec) { s.Key.Name = "a_b" },
		"name of the sandbox":            func(s *engine.ContainerSpec) { s.Key.Name = "POD" },
		"name with /":                    func(s *engine.ContainerSpec) { s.PodKey.UID = "../x" },
		"cgroup parent with ..":          func(s *engine.ContainerSpec) { s.CgroupParent = "/kubepods/../.." },
		"CDI without CDI":                func(s *engine.ContainerSpec) { s.CDIDevices = []string{"a.b/c=d"} },
		"recursive read-only on API 1.41": func(s *engine.ContainerSpec) {
			s.Mounts[1].RecursiveReadonly, s.Mounts[1].Propagation = true, engine.PropagationPrivate
		},
		"image volume on API 1.41": func(s *engine.ContainerSpec) {
			s.Mounts[1] = engine.Mount{ContainerPath: "/i", Readonly: true, Image: &s.Image}
		},
		"mount options":                    func(s *engine.ContainerSpec) { s.Mounts[0].Options = []string{"noexec"} },
		"id-mapped mount":                  func(s *engine.ContainerSpec) { s.Mounts[0].UIDMappings = []engine.IDMapping{{Length: 1}} },
		"relative host path":               func(s *engine.ContainerSpec) { s.Mounts[0].HostPath = "data" },
		"empty seccomp profile":            func(s *engine.ContainerSpec) { s.Security.Seccomp.Content = nil },
		"ambient capabilities":             func(s *engine.ContainerSpec) { s.Security.CapAmbient = []string{"CHOWN"} },
		"user namespace":                   func(s *engine.ContainerSpec) { s.Namespaces.User = &engine.UserNamespace{} },
		"target that is no id":             func(s *engine.ContainerSpec) { s.Namespaces.PID, s.Namespaces.PIDTarget = engine.NamespaceTarget, "x" },
		"oom_score_adj out of range":       func(s *engine.ContainerSpec) { s.Resources.OOMScoreAdj = 1001 },
		"unset AppArmor profile name":      func(s *engine.ContainerSpec) { s.Security.AppArmor.LocalhostRef = "" },
		"negative memory":                  func(s *engine.ContainerSpec) { s.Resources.MemoryLimit = -1 },
		"unknown propagation":              func(s *engine.ContainerSpec) { s.Mounts[0].Propagation = "x" },
		"container path that is no path":   func(s *engine.ContainerSpec) { s.Mounts[0].ContainerPath = "x" },
		"environment variable with a zero": func(s *engine.ContainerSpec) { s.Env = []engine.EnvVar{{Name: "A", Value: []byte{0}}} },
	} {
		t.Run(name, func(t *testing.T) {
			spec := fullContainer()
			change(spec)
			if _, err := lowerContainer(spec, processUser{}, testMounts, oldEngine()); !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v, want one of ErrInvalidArgument", err)
			}
		})
	}
}

func TestMountThatCannotBePreparedIsRefused(t *testing.T) {
	for name, change := range map[string]func(*engine.Mount){
		"recursive read-only that is not private":   func(m *engine.Mount) { m.Readonly, m.RecursiveReadonly = true, true },
		"recursive read-only without read-only":     func(m *engine.Mount) { m.RecursiveReadonly, m.Propagation = true, engine.PropagationPrivate },
		"an option that CRI does not have":          func(m *engine.Mount) { m.Options = []string{"nosuid", "bind"} },
		"an image that is to be written":            func(m *engine.Mount) { m.HostPath, m.Image = "", &engine.ImageRef{ID: testImage} },
		"an image with a host path":                 func(m *engine.Mount) { m.Readonly, m.Image = true, &engine.ImageRef{ID: testImage} },
		"an id-mapped mount with options":           func(m *engine.Mount) { m.Options, m.GIDMappings = []string{"nosuid"}, []engine.IDMapping{{Length: 1}} },
		"an unknown propagation with an option":     func(m *engine.Mount) { m.Options, m.Propagation = []string{"nosuid"}, "x" },
		"a relative host path with an option":       func(m *engine.Mount) { m.Options, m.HostPath = []string{"nosuid"}, "data" },
		"a container path that is none, of a image": func(m *engine.Mount) { m.ContainerPath, m.Options = "x", []string{"nodev"} },
	} {
		t.Run(name, func(t *testing.T) {
			spec := fullContainer()
			change(&spec.Mounts[0])
			if _, err := lowerContainer(spec, processUser{}, testMounts, preparingEngine()); !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v, want one of ErrInvalidArgument", err)
			}
		})
	}
}

func TestFeaturesFollowTheHost(t *testing.T) {
	info := system.Info{Driver: "overlay2", DefaultRuntime: "runc", Runtimes: map[string]system.RuntimeWithStatus{"runc": {}}}
	able := newFacts(&info, "1.41", &Options{}, 0, nil).info()
	if f := able.Features; !f.RecursiveReadonlyMounts || !f.MountOptions || !f.ImageVolumes || !able.Handlers["runc"].RecursiveReadonlyMounts || !able.Handlers[""].RecursiveReadonlyMounts {
		t.Errorf("features %+v, handlers %v", f, able.Handlers)
	}
	unable := newFacts(&info, "1.41", &Options{}, 0, fmt.Errorf("%w: here is why", errUnseen)).info()
	if f := unable.Features; f.RecursiveReadonlyMounts || f.MountOptions || f.ImageVolumes || unable.Handlers["runc"].RecursiveReadonlyMounts {
		t.Errorf("features %+v, handlers %v", f, unable.Handlers)
	}
	if said := strings.Join(unable.Warnings, "\n"); !strings.Contains(said, "here is why") || !strings.Contains(said, "/etc/hosts") {
		t.Errorf("warnings %q do not say why", unable.Warnings)
	}
	info.Driver = "btrfs"
	if newFacts(&info, "1.41", &Options{}, 0, nil).info().Features.ImageVolumes {
		t.Error("image volumes on a storage whose layers are no folders")
	}
}

func TestSystemdNeedsSlice(t *testing.T) {
	spec := fullContainer()
	if _, err := lowerContainer(spec, processUser{}, testMounts, newEngine()); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "cgroupDriver") {
		t.Errorf("a path without a slice gives %v", err)
	}
}

func TestNoMasksIsAnEmptyList(t *testing.T) {
	spec := fullContainer()
	spec.Security.MaskedPaths, spec.Security.ReadonlyPaths = nil, nil
	body, err := lowerContainer(spec, processUser{}, testMounts, oldEngine())
	if err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(body.HostConfig)
	for _, want := range []string{`"MaskedPaths":[]`, `"ReadonlyPaths":[]`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("the body lacks %s: null means Docker's defaults", want)
		}
	}
}

// The pause process has the paths that Docker masks and makes read-only by itself: a container of a pod with one PID namespace
// reaches its root by /proc/1/root.
func TestPauseHasDockersMasks(t *testing.T) {
	for what, f := range map[string]*facts{"old": oldEngine(), "new": newEngine()} {
		body, err := lowerPod(fullPod(), f)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := json.Marshal(body.HostConfig)
		for _, want := range []string{`"MaskedPaths":null`, `"ReadonlyPaths":null`} {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s engine: the body lacks %s: an empty list means none", what, want)
			}
		}
	}
}

func TestNoLimitIsSaidInAnUpdate(t *testing.T) {
	had := container.Resources{CPUShares: 2, CpusetCpus: "0", CpusetMems: "0"}
	got, err := lowerUpdate(&engine.Resources{}, &had, "", oldEngine())
	if err != nil {
		t.Fatal(err)
	}
	if got.Memory != noMemoryLimit || got.MemorySwap != noMemoryLimit || got.CPUQuota != -1 || got.CPUPeriod != 100000 || got.CPUShares != 1024 || got.CpusetCpus == "" {
		t.Errorf("0 would leave a limit as it is: %+v", got)
	}
	// Kubelets with UnlimitedSwap: on cgroup v2 memory and swap as much as memory would be no swap.
	got, err = lowerUpdate(&engine.Resources{MemorySwap: -1}, &container.Resources{}, "", oldEngine())
	if err == nil && (got.CPUShares != 0 || got.CpusetCpus != "" || got.CpusetMems != "") {
		t.Errorf("what the container never had is bound to what there is now: %+v", got)
	}
	if err != nil || got.Memory != noMemoryLimit || got.MemorySwap != -1 {
		t.Errorf("unlimited swap without a limit of memory is %d of %d, %v", got.MemorySwap, got.Memory, err)
	}
}

func TestNameIsParsedBack(t *testing.T) {
	key := engine.PodKey{Name: "web-1", Namespace: "default", UID: "47af", Attempt: 3}
	name, err := containerName(key, engine.ContainerKey{Name: "c", Attempt: 9})
	if err != nil || name != "k8s_c_web-1_default_47af_9" {
		t.Fatalf("name %q, %v", name, err)
	}
	container, pod, attempt, ok := parseName("/" + name + "_0a1b2c3d")
	if !ok || container != "c" || pod.Name != "web-1" || pod.Namespace != "default" || pod.UID != "47af" || attempt != 9 {
		t.Errorf("parsed %q %+v %d %v", container, pod, attempt, ok)
	}
	for _, bad := range []string{"/x", "/k8s_a_b_c_d", "/k8s_a_b_c_d_x", "/k8s_a_b_c_d_-1", "/k9s_a_b_c_d_1"} {
		if _, _, _, ok := parseName(bad); ok {
			t.Errorf("%q was parsed", bad)
		}
	}
}
