package docker

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"

	"crishim/engine"
)

func TestFilesOfAPod(t *testing.T) {
	files, f := podFiles{t.TempDir()}, &facts{api: "1.41"}
	id := engine.PodID(testPod)
	spec := &engine.ContainerSpec{Pod: id}
	if mounts, err := files.mounts(spec, false, f); err != nil || len(mounts) != 0 {
		t.Errorf("a pod whose files Docker has: %v, %v", mounts, err)
	}
	if mounts, err := files.mounts(spec, true, f); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a pod whose files are gone: %v, %v", mounts, err)
	}

	dir := filepath.Join(files.dir, testPod)
	defer syscall.Umask(syscall.Umask(0o077))    // no user's of a container
	for _, name := range []string{"", "web-0"} { // repeating it makes them anew
		if err := files.write(id, &engine.PodSpec{Hostname: name, DNS: &engine.DNS{Servers: []string{"10.0.0.10"}}}); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			name = testPod[:12]
		}
		for file, want := range map[string]string{"hostname": name + "\n", "resolv.conf": "nameserver 10.0.0.10\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", file, got, err)
			}
			if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode() != 0o644 {
				t.Errorf("%s: %v, %v", file, info, err)
			}
		}
	}

	spec.Mounts = []engine.Mount{{ContainerPath: "/etc//hosts", HostPath: "/kubelet/etc-hosts"}}
	spec.Security.ReadonlyRootfs = true
	mounts, err := files.mounts(spec, true, f)
	if err != nil || len(mounts) != 2 || mounts[0].Target != "/etc/hostname" || mounts[1].Target != "/etc/resolv.conf" ||
		mounts[1].Source != filepath.Join(dir, "resolv.conf") || !mounts[1].ReadOnly {
		t.Fatalf("%+v, %v", mounts, err)
	}
	for _, row := range []struct {
		source, destination string
		want                bool
	}{
		{mounts[1].Source, mounts[1].Target, true},
		{"/kubelet/etc-hosts", "/etc/hosts", false},
		{filepath.Join(files.dir, otherContainer, "hosts"), "/etc/hosts", false},
		{mounts[1].Source, "/resolv.conf", false},
		{"/", "/host", false},
	} {
		if got := isPodFile(&container.MountPoint{Source: row.source, Destination: row.destination}, testPod); got != row.want {
			t.Errorf("%s at %s is a file of the pod: %v", row.source, row.destination, got)
		}
	}

	in := &container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{HostConfig: &container.HostConfig{Mounts: mounts}},
		Config:            &container.Config{Labels: map[string]string{labelSandbox: testPod}},
		Mounts: []container.MountPoint{
			{Type: mount.TypeBind, Source: mounts[1].Source, Destination: mounts[1].Target},
			{Type: mount.TypeBind, Source: "/kubelet/etc-hosts", Destination: "/etc/hosts"},
		},
	}
	if shown := mountsOf(in); len(shown) != 1 || shown[0].HostPath != "/kubelet/etc-hosts" {
		t.Errorf("of a container's mounts %+v are shown", shown)
	}

	for range 2 {
		if err := files.remove(id); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(files.dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestWhosePodsHaveFilesOfOurs(t *testing.T) {
	var cni, node engine.PodSpec
	node.Namespaces.Network = engine.NamespaceNode
	for what, row := range map[string]struct {
		spec  *engine.PodSpec
		facts facts
		want  bool
	}{
		"CNI's network":             {&cni, facts{}, true},
		"the host's network":        {&node, facts{}, false},
		"Docker's network":          {&cni, facts{bridge: true}, false},
		"an old shim may come back": {&cni, facts{giveBack: true}, false},
	} {
		if got := ownFiles(row.spec, &row.facts); got != row.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
