package native

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
)

// small is a bench whose root folder, or run folder, is a file system of its own that can be filled and made read-only.
func small(t *testing.T, sub string) (b *bench, mount string) {
	t.Helper()
	b = newBench(t)
	b.die(t)
	mount = filepath.Join(b.dir, sub)
	if err := errors.Join(mounttree.Unmount(mount), os.RemoveAll(mount), os.MkdirAll(mount, 0o711)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "mode=0711,size=48m"); err != nil {
		t.Fatal(err)
	}
	b.back(t)
	if _, err := b.PullImage(t.Context(), &engine.PullSpec{Ref: b.image, NoProgress: time.Minute}); err != nil {
		t.Fatal(err)
	}
	return b, mount
}

// fill leaves no byte free on a file system; what it returns frees them.
func fill(t *testing.T, mount string) (free func()) {
	t.Helper()
	path := filepath.Join(mount, ".ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for size := len(block); size > 0; {
		if _, err := f.Write(block[:size]); err != nil {
			size /= 2
		}
	}
	freed := false
	free = func() {
		if !freed {
			freed = true
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(free)
	return free
}

// No byte is free in the root folder: what runs goes on and ends as it does, everything can be stopped and removed, nothing
// can be made and says why; then everything works again.
//
// Rows: R19 (part)
func TestTheRootFolderIsFull(t *testing.T) {
	b, mount := small(t, "root")
	pod, spec := b.runPod(t, sharedPIDs)
	kept, keptSpec := b.runPod(t)
	stays := b.run(t, kept, keptSpec, "stays", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
	ends := b.run(t, pod, spec, "ends", "trap 'exit 4' TERM; while :; do sleep 0.05; done")
	stopped := b.run(t, kept, keptSpec, "stopped", "trap 'exit 8' TERM; while :; do sleep 0.05; done")
	created, err := b.CreateContainer(t.Context(), b.containerSpec(t, kept, keptSpec, "created", "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	free := fill(t, mount)

	if _, err := b.CreatePod(t.Context(), b.podSpec(t)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("CreatePod: %v", err)
	}
	if _, err := b.CreateContainer(t.Context(), b.containerSpec(t, kept, keptSpec, "more", "exit 0")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("CreateContainer: %v", err)
	}
	if _, err := b.StartContainer(t.Context(), created.ID, nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("StartContainer: %v", err)
	}
	if err := b.UpdateContainer(t.Context(), stays, &engine.Resources{MemoryLimit: 64 << 20}); err != nil {
		t.Errorf("UpdateContainer: %v", err)
	}
	b.sh(t, stays, "true")
	for id, want := range map[engine.ContainerID]int32{ends: 4, stopped: 8} {
		if err := b.StopContainer(t.Context(), id, 10*time.Second); err != nil {
			t.Errorf("StopContainer: %v", err)
		}
		if st := b.status(t, id); st.ExitCode != want {
			t.Errorf("want %d: %+v", want, st)
		}
	}
	b.removePod(t, pod)
	if err := b.RemoveContainer(t.Context(), created.ID); err != nil {
		t.Error(err)
	}
	// The daemon is restarted while it is full: what ended then is known still.
	b.die(t)
	b.back(t)
	if st := b.status(t, stopped); st.State != engine.ContainerExited || st.ExitCode != 8 {
		t.Errorf("after a restart: %+v", st)
	}
	if st := b.status(t, stays); st.State != engine.ContainerRunning {
		t.Errorf("after a restart: %+v", st)
	}
	free()
	// Also when the pod, with its monitor, has ended.
	next, nextSpec := b.runPod(t)
	last := b.run(t, next, nextSpec, "last", "trap 'exit 2' TERM; while :; do sleep 0.05; done")
	free = fill(t, mount)
	if err := b.StopContainer(t.Context(), last, 10*time.Second); err != nil {
		t.Error(err)
	}
	if err := b.StopPod(t.Context(), next); err != nil {
		t.Error(err)
	}
	b.die(t)
	b.back(t)
	if st := b.status(t, last); st.ExitCode != 2 || b.podState(t, next) != engine.PodNotReady {
		t.Errorf("after a restart: %+v", st)
	}
	b.removePod(t, next)
	free()
	if err := b.StopContainer(t.Context(), stays, 10*time.Second); err != nil {
		t.Error(err)
	}
	if st := b.status(t, stays); st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	b.run(t, kept, keptSpec, "again", "sleep 1000")
	b.removePod(t, kept)
}

// The root folder gets read-only: what runs goes on, is stopped, and is removed once it can be written again.
//
// Rows: R20 (part)
func TestTheRootFolderIsReadOnly(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
	stays := b.run(t, pod, spec, "stays", "sleep 1000")
	// Each folder by itself: what has files open for writing cannot be made read-only as a whole.
	writable := func() {}
	for _, sub := range []string{"pods", "records", "exits", "roots/containers"} {
		dir := filepath.Join(b.opts.RootDir, sub)
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		before := writable
		writable = func() { before(); _ = unix.Unmount(dir, unix.MNT_DETACH) }
	}
	t.Cleanup(func() { writable() })
	if _, err := b.CreatePod(t.Context(), b.podSpec(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("CreatePod: %v", err)
	}
	if _, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "more", "exit 0")); !errdefs.IsUnavailable(err) {
		t.Errorf("CreateContainer: %v", err)
	}
	b.sh(t, stays, "true")
	if err := b.StopContainer(t.Context(), id, 10*time.Second); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if st := b.status(t, id); st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	if err := b.RemoveContainer(t.Context(), id); !errdefs.IsUnavailable(err) {
		t.Errorf("RemoveContainer: %v", err)
	}
	if st := b.status(t, stays); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	writable()
	b.removePod(t, pod)
}

// A daemon that is started again while the root folder is read-only takes over what runs, and stops it.
//
// Rows: R20 (part)
func TestADaemonStartsWithAReadOnlyRootFolder(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
	b.die(t)
	dir := b.opts.RootDir
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	writable := func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }
	t.Cleanup(writable)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b.back(t)
	if st := b.status(t, id); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	b.sh(t, id, "true")
	if err := b.StopContainer(t.Context(), id, 10*time.Second); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if st := b.status(t, id); st.State != engine.ContainerExited || st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	b.die(t)
	writable()
	b.back(t)
	if st := b.status(t, id); st.State != engine.ContainerExited {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// No byte is free in the run folder.
//
// Rows: R19 (part)
func TestTheRunFolderIsFull(t *testing.T) {
	b, mount := small(t, "run")
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
	free := fill(t, mount)
	failed := b.podSpec(t)
	if made, err := b.CreatePod(t.Context(), failed); err == nil {
		if _, err := b.StartPod(t.Context(), made, failed); !errdefs.IsResourceExhausted(err) {
			t.Errorf("StartPod: %v", err)
		}
		b.removePod(t, made)
	} else if !errdefs.IsResourceExhausted(err) {
		t.Errorf("CreatePod: %v", err)
	}
	if _, err := b.CreateContainer(t.Context(), b.containerSpec(t, pod, spec, "more", "exit 0")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("CreateContainer: %v", err)
	}
	b.sh(t, id, "true")
	if err := b.StopContainer(t.Context(), id, 10*time.Second); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if st := b.status(t, id); st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
	free()
	pod, spec = b.runPod(t)
	b.run(t, pod, spec, "c", "sleep 1000")
	b.removePod(t, pod)
}
