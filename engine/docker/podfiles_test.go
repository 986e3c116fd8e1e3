package docker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/moby/sys/mountinfo"

	"crishim/engine"
	"crishim/internal/mounttree"
)

func TestFilesOfAPod(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	files, f := podFiles{dir: t.TempDir(), mounts: t.TempDir()}, &facts{api: "1.41", seesMounts: true}
	id := engine.PodID(testPod)
	spec := &engine.ContainerSpec{Pod: id}
	if files.there(id, f) {
		t.Error("there are files")
	}
	dir := filepath.Join(files.dir, testPod)
	t.Cleanup(func() { _ = mounttree.Unmount(files.mounts) })
	for _, name := range []string{"", "web-0"} { // repeating it makes them anew
		if err := files.write(id, &engine.PodSpec{Hostname: name, DNS: &engine.DNS{Servers: []string{"10.0.0.10"}}}, f, ""); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			name = testPod[:12]
		}
		for file, want := range map[string]string{"hostname": name + "\n", "resolv.conf": "nameserver 10.0.0.10\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", file, got, err)
			}
		}
	}

	if !files.there(id, f) {
		t.Error("there are no files")
	}
	spec.Mounts = []engine.Mount{{ContainerPath: "/etc//hosts", HostPath: "/kubelet/etc-hosts"}}
	spec.Security.ReadonlyRootfs = true
	mounts, err := files.lower(spec, f)
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
	noFiles(t, &files)
}

func noFiles(t *testing.T, files *podFiles) {
	t.Helper()
	for _, dir := range []string{files.dir, files.mounts} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%v, %v", left, err)
		}
	}
	if left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(files.mounts)); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestFilesOfPodsThatAnotherVersionMadeOrRemoved(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	files, id := podFiles{dir: t.TempDir(), mounts: t.TempDir()}, engine.PodID(testPod)
	mounted, unseen := &facts{seesMounts: true}, &facts{}
	t.Cleanup(func() { _ = mounttree.Unmount(files.mounts) })
	// It had a folder where the link is, and removes that.
	if err := files.write(id, &engine.PodSpec{}, mounted, ""); err != nil {
		t.Fatal(err)
	}
	if err := files.sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(files.of(id), "hosts")); err != nil {
		t.Errorf("the files of a pod that is there are gone: %v", err)
	}
	if err := os.RemoveAll(files.of(id)); err != nil {
		t.Fatal(err)
	}
	if err := files.sweep(); err != nil {
		t.Fatal(err)
	}
	noFiles(t, &files)

	folder := func() { // also where the engine sees no mounts of ours
		t.Helper()
		if err := files.write(id, &engine.PodSpec{}, unseen, ""); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Lstat(files.of(id)); err != nil || !st.IsDir() || !files.there(id, unseen) {
			t.Errorf("%v, %v", st, err)
		}
	}
	folder()
	if err := files.remove(id); err != nil {
		t.Fatal(err)
	}
	noFiles(t, &files)
	// The engine was started anew in another mount namespace: the pod's next container needs what it sees.
	if err := files.write(id, &engine.PodSpec{}, mounted, ""); err != nil {
		t.Fatal(err)
	}
	if !files.there(id, mounted) || files.there(id, unseen) {
		t.Error("files in a mount are there for an engine that does not see it, or not for one that does")
	}
	folder()
	if _, err := os.Lstat(files.mount(id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount is left: %v", err)
	}
	// The daemon was replaced while it started a pod.
	if err := errors.Join(files.write(id, &engine.PodSpec{}, mounted, ""), files.remove(id)); err != nil {
		t.Fatal(err)
	}
	noFiles(t, &files)
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
