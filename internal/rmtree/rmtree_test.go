package rmtree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mkdirs(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATreeIsRemovedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	victim, canary := filepath.Join(dir, "victim"), filepath.Join(dir, "canary")
	mkdirs(t, filepath.Join(victim, "a", "b"), filepath.Join(victim, "locked"), canary)
	for i := range 3 * batch {
		if err := os.WriteFile(filepath.Join(victim, "a", strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept := filepath.Join(canary, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": canary, "rel": "../../canary", "file": kept, "dangling": "/no/such", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(victim, "a", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(victim, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(victim); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what a link led to: %v", err)
	}
	for _, absent := range []string{victim, filepath.Join(dir, "no", "such")} {
		if err := Remove(t.Context(), absent); err != nil {
			t.Errorf("absent: %v", err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(canary, link); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), link); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what the link was to: %v", err)
	}
}

// deep makes a chain of folders, which is longer than any path can be.
func deep(t *testing.T, dir string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; i < levels && err == nil; i++ {
		var next int
		if err = unix.Mkdirat(fd, "d", 0o755); err == nil {
			next, err = unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			_ = unix.Close(fd)
			fd = next
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
}

// Rows: S13 (part)
func TestADeepTreeIsRemovedWithFewDescriptors(t *testing.T) {
	levels := 20000
	if n, err := strconv.Atoi(os.Getenv("E2E_DEPTH")); err == nil {
		levels = n
	}
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	mkdirs(t, victim)
	deep(t, victim, levels)
	most := make(chan int)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		n := 0
		for ctx.Err() == nil {
			if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
				n = max(n, len(fds))
			}
			time.Sleep(time.Millisecond)
		}
		most <- n
	}()
	start := time.Now()
	err := Remove(t.Context(), victim)
	cancel()
	if n := <-most; err != nil || n > maxDepth+50 {
		t.Errorf("%v, with %d descriptors", err, n)
	}
	if _, err := os.Lstat(victim); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	t.Logf("%d levels in %v", levels, time.Since(start))
}

// Rows: S13 (part)
func TestAMountInTheTreeStaysWithWhatIsInIt(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	victim, canary := filepath.Join(dir, "victim"), filepath.Join(dir, "canary")
	target := filepath.Join(victim, "a", "mount")
	mkdirs(t, target, filepath.Join(victim, "b"), filepath.Join(canary, "kept"))
	if err := unix.Mount(canary, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := Remove(t.Context(), victim)
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(canary, "kept")); err != nil {
		t.Errorf("the mount was emptied: %v", err)
	}
	if _, err := os.Stat(filepath.Join(victim, "b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is beside the mount is left: %v", err)
	}
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), victim); err != nil {
		t.Error(err)
	}
}

// A caller forgets what Remove says is gone, and would never come back for a file that could not be unlinked.
func TestAFileThatStaysIsAnError(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, file, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), file); !errors.Is(err, unix.EBUSY) {
		t.Errorf("%v", err)
	}
	if err := unix.Unmount(file, unix.UMOUNT_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), file); err != nil {
		t.Error(err)
	}
}

func TestAnEndedContextLeavesTheRest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	mkdirs(t, filepath.Join(dir, "y"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Remove(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := Remove(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

func BenchmarkRemove(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		dir := filepath.Join(b.TempDir(), "x")
		for i := range 50 {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i)), 0o755); err != nil {
				b.Fatal(err)
			}
			for j := range 100 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i), fmt.Sprint(j)), nil, 0o600); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.StartTimer()
		if err := Remove(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
	}
}
