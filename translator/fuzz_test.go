package translator

import (
	"path"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

func seed(f *testing.F, messages ...proto.Message) {
	for _, m := range messages {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// Rows: S53 (part), S28 (part)
func FuzzPod(f *testing.F) {
	hostile := podConfig()
	hostile.LogDirectory = "/var/log/../../etc"
	hostile.Linux = &runtimeapi.LinuxPodSandboxConfig{
		CgroupParent: "/a/../..", Sysctls: map[string]string{"net.a": "1"}, Overhead: &runtimeapi.LinuxContainerResources{},
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{Seccomp: localhost("/var/lib/kubelet/seccomp/a")},
	}
	seed(f, podConfig(), hostile)
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := &runtimeapi.PodSandboxConfig{}
		if proto.Unmarshal(data, cfg) != nil {
			t.Skip()
		}
		spec, err := Pod(cfg, "", testDefaults())
		if err != nil {
			return
		}
		wantSafe(t, "log_directory", spec.LogDirectory)
		wantSafeProfile(t, spec.Security.Seccomp)
		for _, name := range []string{spec.Key.Name, spec.Key.Namespace, spec.Key.UID} {
			wantSafeName(t, name)
		}
		if strings.Contains(spec.CgroupParent, "..") {
			t.Errorf("cgroup parent %q", spec.CgroupParent)
		}
		PodStatusReply(&PodView{Spec: spec})
		PodListItem(&PodView{Spec: spec})
	})
}

// Rows: S53 (part), S28 (part)
func FuzzContainer(f *testing.F) {
	hostile := containerConfig()
	hostile.LogPath = "../x"
	hostile.WorkingDir = "/proc/self/fd/7"
	hostile.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b/../c"}, {ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}, ImageSubPath: "a"}}
	hostile.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/a", HostPath: "/dev/a", Permissions: "r"}}
	hostile.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{MaskedPaths: []string{"/a"}, Seccomp: localhost("/b")}}
	good := proto.Clone(hostile).(*runtimeapi.ContainerConfig)
	good.LogPath, good.WorkingDir, good.Mounts[0].HostPath, good.Linux.SecurityContext.Seccomp = "a.log", "/a", "/c", nil
	seed(f, containerConfig(), hostile, good)
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := &runtimeapi.ContainerConfig{}
		if proto.Unmarshal(data, cfg) != nil {
			t.Skip()
		}
		spec, err := Container(&engine.PodSpec{LogDirectory: "/var/log/pods/x"}, "p", cfg, testDefaults())
		if err != nil {
			return
		}
		wantSafeName(t, spec.Key.Name)
		wantSafe(t, "log_path", spec.LogPath)
		if spec.LogPath != "" && !strings.HasPrefix(spec.LogPath, "/var/log/pods/x/") {
			t.Errorf("the log %q is outside its folder", spec.LogPath)
		}
		wantSafe(t, "working_dir", spec.WorkingDir)
		wantSafeProfile(t, spec.Security.Seccomp)
		for _, m := range spec.Mounts {
			wantSafe(t, "container_path", m.ContainerPath)
			wantSafe(t, "host_path", m.HostPath)
			wantSafe(t, "image_sub_path", "/"+m.ImageSubPath)
			if m.ContainerPath == "" || m.ContainerPath == "/" || (m.Image == nil) != (m.HostPath != "") {
				t.Errorf("mount %+v", m)
			}
		}
		for _, d := range spec.Devices {
			wantSafe(t, "device", d.HostPath)
			wantSafe(t, "device", d.ContainerPath)
		}
		for _, s := range append(spec.Security.MaskedPaths, spec.Security.ReadonlyPaths...) {
			wantSafe(t, "masked path", s)
		}
		if spec.Security.Privileged || spec.Namespaces.Network == engine.NamespaceNode || spec.Namespaces.PID == engine.NamespaceNode || spec.Namespaces.IPC == engine.NamespaceNode {
			t.Error("the container has more than its pod")
		}
		ContainerStatusReply(&ContainerView{Spec: spec, Resources: spec.Resources})
		ContainerListItem(&ContainerView{Spec: spec})
	})
}

// wantSafe asks for "" or a clean absolute path without control characters.
func wantSafe(t *testing.T, what, p string) {
	if p != "" && (!path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, "\x00\n\r") || len(p) > maxPath) {
		t.Errorf("%s %q is unsafe", what, p)
	}
}

func wantSafeProfile(t *testing.T, p engine.Profile) {
	if p.Type == engine.ProfileLocalhost && (path.Clean(p.LocalhostRef) != p.LocalhostRef || !strings.HasPrefix(p.LocalhostRef, "/var/lib/kubelet/seccomp/")) {
		t.Errorf("the seccomp profile %q is outside its folder", p.LocalhostRef)
	}
	if p.Type == engine.ProfileUnset {
		t.Error("the seccomp profile is undecided")
	}
}

func wantSafeName(t *testing.T, name string) {
	if name == "" || strings.ContainsAny(name, "/_\x00\n;= ") || strings.Contains(name, "..") {
		t.Errorf("the name %q is unsafe", name)
	}
}
