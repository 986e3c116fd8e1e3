package native

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
	"crishim/engine/native/checkpoint"
	"crishim/engine/native/monitor"
)

// Without CRIU, or on a kernel that is none for it, the reason is said.
func TestWithoutCRIUThereAreNoCheckpoints(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	if err := checkCRIU(t.Context()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "need the program criu") {
		t.Errorf("%v", err)
	}
	criu := filepath.Join(bin, "criu")
	for script, fine := range map[string]bool{"#!/bin/sh\necho Looks good\n": true, "#!/bin/sh\necho kerndat_vdso_fill_symtable failed >&2\nexit 1\n": false} {
		if err := os.WriteFile(criu, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		err := checkCRIU(t.Context())
		if fine && err != nil || !fine && (!errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "kerndat_vdso")) {
			t.Errorf("%q: %v", script, err)
		}
	}
	// One that is slow may be as good as any.
	if err := os.WriteFile(criu, []byte("#!/bin/sh\nexec /bin/sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := checkCRIU(ctx); err != nil {
		t.Errorf("slow: %v", err)
	}
}

// What the engine says it can is what it does.
func TestACheckpointIsRefusedWithTheReason(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	location := filepath.Join(t.TempDir(), "c.tar")
	err := b.CheckpointContainer(t.Context(), id, location)
	if b.Info().Features.Checkpoint {
		if _, serr := os.Stat(location); err != nil || serr != nil {
			t.Errorf("%v, %v", err, serr)
		}
	} else if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "criu") {
		t.Errorf("%v", err)
	}
	if st := b.status(t, id); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// A daemon that is killed while it makes a checkpoint leaves nothing of the container's memory behind.
//
// Rows: R01 (part)
func TestWhatACrashLeavesOfACheckpointIsRemoved(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	c, client, err := b.running(id)
	if err != nil {
		t.Fatal(err)
	}
	d := &dump{c: c, client: client, location: filepath.Join(t.TempDir(), "c.tar")}
	_ = b.dumpPaused(t.Context(), []*dump{d}) // as far as this host has CRIU
	if _, err := os.Stat(filepath.Join(d.work, checkpoint.ImagesDir)); err != nil {
		t.Fatal(err)
	}
	b.die(t)
	b.back(t)
	if _, err := os.Stat(d.work); !os.IsNotExist(err) {
		t.Errorf("it is there still: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(d.location)); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v beside the location", entries, err)
	}
	if st := b.status(t, id); st.State != engine.ContainerRunning {
		t.Errorf("%+v", st)
	}
	b.removePod(t, pod)
}

// slowCRIU is a bench whose monitors have a CRIU that is at its checkpoint, which it has begun when began is there, until
// goOn is called, and fails then.
func slowCRIU(t *testing.T) (b *bench, began string, goOn func()) {
	t.Helper()
	b = serving(t)
	dir := t.TempDir()
	began, hold := filepath.Join(dir, "began"), filepath.Join(dir, "hold")
	for name, script := range map[string]string{
		"criu": "touch " + began + "\nwhile [ -e " + hold + " ]; do sleep 0.1; done\nexit 1\n",
		"run":  "PATH=" + dir + ":$PATH exec " + filepath.Join(dir, "helper") + " \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(b.helper.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{filepath.Join(dir, "helper"): program, hold: nil} {
		if err := os.WriteFile(path, content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b.program = func(t testing.TB) *os.File {
		f, err := os.Open(filepath.Join(dir, "run"))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	b.die(t)
	b.back(t)
	b.criu = nil
	return b, began, func() {
		if err := os.Remove(hold); err != nil {
			t.Fatal(err)
		}
	}
}

// Containers run on when CRIU has ended, however long after its caller has left, or the daemon was killed: they were paused for the
// checkpoint.
func TestACheckpointThatTakesLongLeavesNothingPaused(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 300 * time.Millisecond
	for name, killed := range map[string]bool{"its caller leaves": false, "the daemon is killed": true} {
		t.Run(name, func(t *testing.T) {
			b, began, goOn := slowCRIU(t)
			pod, spec := b.runPod(t)
			locations := map[engine.ContainerID]string{}
			for _, name := range []string{"c", "d"} {
				locations[b.run(t, pod, spec, name, "sleep 1000")] = filepath.Join(t.TempDir(), name)
			}
			status := func(id engine.ContainerID) monitor.Status {
				st, err := b.monitorOf(pod).State(t.Context(), string(id))
				if err != nil {
					t.Fatal(err)
				}
				return st.Status
			}
			ctx, leave := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- b.CheckpointContainers(ctx, locations) }()
			eventually(t, 20*time.Second, "CRIU is at it", func() bool { _, err := os.Stat(began); return err == nil })
			if killed {
				b.die(t)
			}
			leave()
			if err := <-done; err == nil {
				t.Error("the checkpoint was made")
			}
			if killed {
				b.back(t)
			}
			goOn()
			for id := range locations {
				eventually(t, 20*time.Second, "it runs on", func() bool { return status(id) == monitor.StatusRunning })
			}
			b.removePod(t, pod)
		})
	}
}
