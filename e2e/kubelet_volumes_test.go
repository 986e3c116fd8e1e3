package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/e2e/harness"
)

// Volumes that a kubelet prepares in more ways than a folder.
var kubeletVolumeFamily = kubeletFamily{
	pods: map[string]string{
		"projected": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    resources: {limits: {memory: 48Mi}}
    volumeMounts:
    - {name: info, mountPath: /info, readOnly: true, recursiveReadOnly: IfPossible}
    - {name: info, mountPath: /etc/one, subPath: pod/name}
  volumes:
  - name: info
    downwardAPI:
      defaultMode: 0440
      items:
      - {path: pod/name, fieldRef: {fieldPath: metadata.name}}
      - {path: limit, resourceFieldRef: {containerName: c, resource: limits.memory}}`,

		"propagation": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: both
    image: IMAGE
    command: [testserver, on-term, "0"]
    securityContext: {privileged: true}
    volumeMounts: [{name: host, mountPath: /host, mountPropagation: Bidirectional}]
  - name: in
    image: IMAGE
    command: [testserver, on-term, "0"]
    volumeMounts: [{name: host, mountPath: /host, mountPropagation: HostToContainer}]
  - name: none
    image: IMAGE
    command: [testserver, on-term, "0"]
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: DIR}}]`,
	},
	steps: []kubeletStep{
		{"a volume of the pod's own data is written like a projected one, read-only", kubeletProjected},
		{"mounts propagate to and from containers as they ask", kubeletPropagation},
	},
}

// Images are volumes since Kubernetes 1.33.
var kubeletImageVolumeFamily = kubeletFamily{
	pods: map[string]string{
		"image-volume": `
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: IMAGE
    command: [testserver, on-term, "0"]
    volumeMounts:
    - {name: files, mountPath: /files}
    - {name: files, mountPath: /sub, subPath: data/sub}
  volumes: [{name: files, image: {reference: FILES, pullPolicy: IfNotPresent}}]`,
	},
	steps: []kubeletStep{
		{"an image is a volume", kubeletImageVolume},
	},
}

// sharedMount is a folder of the host that is a mount point of its own, whose mounts containers share.
func sharedMount(t *testing.T) string {
	t.Helper()
	dir := harness.WorkDir(t, "h")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

func kubeletProjected(t *testing.T, r *kubeletRun) {
	pod := r.WaitReady(t, "projected")
	got := r.Shell(t, "projected", "c", "cat /info/pod/name /etc/one /info/limit; echo; stat -L -c %a /info/limit; echo x 2>/dev/null >/info/new || echo refused")
	name := pod.Metadata.Name
	if want := name + name + "50331648\n440\nrefused\n"; got != want {
		t.Errorf("the volume has %q, want %q", got, want)
	}
}

func kubeletPropagation(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "propagation")
	for _, name := range []string{"of-host", "of-container"} {
		if err := os.Mkdir(filepath.Join(r.host, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ofHost := filepath.Join(r.host, "of-host")
	if err := unix.Mount("crishim-e2e", ofHost, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(ofHost, unix.MNT_DETACH) })
	r.Shell(t, "propagation", "both", "mount -t tmpfs -o size=64k crishim-e2e /host/of-container && echo inside > /host/of-container/file")
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(r.host, "of-container"), unix.MNT_DETACH) })
	wantFile(t, filepath.Join(r.host, "of-container", "file"), "inside\n")
	for container, want := range map[string]string{"both": "2", "in": "2", "none": "0"} {
		if got := strings.TrimSpace(r.Shell(t, "propagation", container, "grep -c '^crishim-e2e /host/of-' /proc/mounts || :")); got != want {
			t.Errorf("container %s has %s of the mounts, want %s", container, got, want)
		}
	}
	r.Shell(t, "propagation", "both", "umount /host/of-container")
	if entries, err := os.ReadDir(filepath.Join(r.host, "of-container")); err != nil || len(entries) != 0 {
		t.Errorf("a mount that the container undid is still on the host: %v, %v", entries, err)
	}
}

func kubeletImageVolume(t *testing.T, r *kubeletRun) {
	r.WaitReady(t, "image-volume")
	got := r.Shell(t, "image-volume", "c", "cat /files/data/file; echo; cat /sub/file; echo; echo x 2>/dev/null >/files/new || echo refused")
	if want := harness.VolumeFiles + "\nin the sub-path\nrefused\n"; got != want {
		t.Errorf("the volume has %q, want %q", got, want)
	}
}
