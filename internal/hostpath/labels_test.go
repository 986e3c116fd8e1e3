package hostpath

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

const someLabel = "system_u:object_r:container_file_t:s0:c1,c2"

// labelled is the label of a file or link, "" for none.
func labelled(t *testing.T, name string) string {
	t.Helper()
	value := make([]byte, 256)
	n, err := unix.Lgetxattr(name, labelAttribute, value)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		t.Fatal(err)
	}
	return strings.TrimRight(string(value[:max(n, 0)]), "\x00")
}

// needsLabels skips where this user or file system sets none; with SELinux the kernel would not take the test's.
func needsLabels(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this host has SELinux")
	}
	probe := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lsetxattr(probe, labelAttribute, []byte(someLabel), 0); err != nil {
		t.Skipf("no labels can be set here: %v", err)
	}
}

func TestATreeIsLabelledAndWhatItsLinksMeanIsNot(t *testing.T) {
	needsLabels(t)
	dir := t.TempDir()
	outside, volume := filepath.Join(dir, "outside"), filepath.Join(dir, "volume")
	for _, folder := range []string{outside, volume, filepath.Join(volume, "a"), filepath.Join(volume, "a", "b")} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link, file, fifo := filepath.Join(volume, "link"), filepath.Join(volume, "a", "b", "file"), filepath.Join(volume, "fifo")
	if err := errors.Join(os.Symlink(outside, link), os.WriteFile(file, nil, 0), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := SetLabel(volume, someLabel, false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{volume, link, file, fifo, filepath.Join(volume, "a")} {
		if got := labelled(t, name); got != someLabel {
			t.Errorf("%s has the label %q", name, got)
		}
	}
	for _, name := range []string{dir, outside} {
		if got := labelled(t, name); got != "" {
			t.Errorf("%s has the label %q", name, got)
		}
	}
	if err := SetLabel(filepath.Join(link, "x"), someLabel, false); err == nil {
		t.Error("a link on the way was followed")
	}
	if err := SetLabel(file, "another", false); err != nil || labelled(t, file) != "another" {
		t.Errorf("a single file: %v", err)
	}
}

// A pod puts a link in a folder's place again and again while its volume is labelled.
//
// Rows: S12 (part)
func TestNoLinkThatComesMeanwhileLeadsALabelOut(t *testing.T) {
	needsLabels(t)
	dir := t.TempDir()
	canary, volume := filepath.Join(dir, "canary"), filepath.Join(dir, "volume")
	folder, link := filepath.Join(volume, "folder"), filepath.Join(volume, "link")
	for _, made := range []string{canary, volume, folder} {
		if err := os.Mkdir(made, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, in := range []string{canary, folder} {
		for _, name := range []string{"passwd", "shadow"} {
			if err := os.WriteFile(filepath.Join(in, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(canary, link); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for !done.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, folder, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 500 {
		if err := SetLabel(volume, someLabel[:len(someLabel)-i%2], false); err != nil {
			t.Error(err)
			break
		}
	}
	done.Store(true)
	swapping.Wait()
	for _, name := range []string{canary, filepath.Join(canary, "passwd"), filepath.Join(canary, "shadow")} {
		if got := labelled(t, name); got != "" {
			t.Errorf("%s has the label %q", name, got)
		}
	}
}
