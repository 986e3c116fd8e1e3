package hostpath

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/internal/starving"
)

func TestTheMissingEndOfAPathIsMade(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o027)) // as the daemon's is
	dir := t.TempDir()
	want := filepath.Join(dir, "a", "b")
	for range 2 {
		if err := Make(want); err != nil {
			t.Fatal(err)
		}
	}
	for _, made := range []string{filepath.Dir(want), want} {
		if st, err := os.Stat(made); err != nil || !st.IsDir() || st.Mode().Perm() != 0o755 {
			t.Errorf("%v, %v", st, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Make(file); err != nil {
		t.Errorf("what exists is left alone: %v", err)
	}
	if err := Make(filepath.Join(file, "x")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("below a file: %v", err)
	}
}

// Rows: S09 (part)
func TestNothingIsMadeBehindALinkThatAPodCanHaveMade(t *testing.T) {
	dir := t.TempDir()
	canary, volume := filepath.Join(dir, "canary"), filepath.Join(dir, "volume")
	for _, d := range []string{canary, volume} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": canary, "rel": "../canary", "dangling": filepath.Join(dir, "none"), "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
		if err := Make(filepath.Join(volume, name, "made")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(canary); err != nil || len(entries) != 0 {
		t.Errorf("in the canary: %v, %v", entries, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("the end of a dangling link was made: %v", err)
	}
	if os.Getuid() != 0 {
		return
	}
	// Root's own link in root's own folder is followed, as /var/run is.
	if err := os.Chmod(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Make(filepath.Join(volume, "rel", "made")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(canary, "made")); err != nil {
		t.Error(err)
	}
}

// These descriptors are plain numbers that no collector closes: a leak of one per call would end the daemon.
func TestNoDescriptorIsLeft(t *testing.T) {
	dir := t.TempDir()
	count := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	const calls = 50
	before := count()
	for i := range calls {
		if err := Make(filepath.Join(dir, strconv.Itoa(i), "x")); err != nil {
			t.Fatal(err)
		}
	}
	if after := count(); after >= before+calls {
		t.Errorf("%d descriptors before, %d after %d calls", before, after, calls)
	}
}

// Without a descriptor nothing is known of what is in the way.
func TestNothingIsTakenForNoFolderForWantOfDescriptors(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a", "b")
	var err error
	starving.Opening(t, unix.O_PATH|unix.O_NOFOLLOW, 0, func() { err = Make(name) })
	if !errors.Is(err, unix.EMFILE) || errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
