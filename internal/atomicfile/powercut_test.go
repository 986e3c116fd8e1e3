package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// machine is a disk whose power can be cut: an image with ext4, where the kernel writes nothing back unless it is told to.
type machine struct {
	t          *testing.T
	image, dir string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cutting the power of a file system needs root")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("cutting the power of a file system needs mkfs.ext4")
	}
	m := &machine{t: t, image: filepath.Join(t.TempDir(), "image")}
	must(t, os.WriteFile(m.image, nil, 0o600))
	must(t, os.Truncate(m.image, 16<<20))
	if out, err := exec.Command(mkfs, "-q", "-J", "size=4", m.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	// Without auto_da_alloc ext4 does not repair by itself what is renamed before it was synced.
	m.dir = m.mount(m.image, "loop,commit=3600,noauto_da_alloc")
	return m
}

func (m *machine) mount(image, options string) string {
	m.t.Helper()
	dir := m.t.TempDir()
	if out, err := exec.Command("mount", "-t", "ext4", "-o", options, image, dir).CombinedOutput(); err != nil {
		m.t.Skipf("cutting the power of a file system needs loop devices: %v: %s", err, out)
	}
	m.t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("not mounted")) {
			m.t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// afterPowerCut calls look with the folder as the next boot finds it, were the power cut now.
func (m *machine) afterPowerCut(look func(dir string)) {
	m.t.Helper()
	data, err := os.ReadFile(m.image)
	must(m.t, err)
	copied := m.image + ".cut"
	must(m.t, os.WriteFile(copied, data, 0o600))
	dir := m.mount(copied, "loop")
	look(dir)
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		m.t.Fatalf("umount: %v: %s", err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// content is of a length that does not fit blocks.
func content(round int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("round %d\n", round)), 700+round)
}

// Rows: R22 (part)
func TestAPowerCutLeavesOldOrNew(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(m.dir, "record.json")
	read := func(dir string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "record.json"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return data
	}
	must(t, Write(path, content(0), 0o600))
	last := content(0) // what is durable for sure
	for round := 1; round <= 12; round++ {
		next := content(round)
		switch round % 3 {
		case 0:
			must(t, Write(path, next, 0o600))
			last = next
			m.afterPowerCut(func(dir string) {
				if !bytes.Equal(read(dir), next) {
					t.Errorf("round %d: what Write wrote is not there", round)
				}
			})
		case 1:
			must(t, Swap(path, next, 0o600))
			m.afterPowerCut(func(dir string) {
				if got := read(dir); !bytes.Equal(got, next) && !bytes.Equal(got, last) {
					t.Errorf("round %d: after Swap there are %d bytes, neither the old %d nor the new %d", round, len(got), len(last), len(next))
				}
			})
			must(t, SyncDir(m.dir))
			last = next
		case 2:
			must(t, Place(path, next, 0o600))
			must(t, Settle(path))
			last = next
			m.afterPowerCut(func(dir string) {
				if !bytes.Equal(read(dir), next) {
					t.Errorf("round %d: what was settled is not there", round)
				}
			})
		}
	}
	must(t, Remove(path))
	m.afterPowerCut(func(dir string) {
		if got := read(dir); got != nil {
			t.Errorf("what was removed is back with %d bytes", len(got))
		}
	})
}

// The machine of the test above loses what was not synced: else it would prove nothing.
func TestAPowerCutLosesWhatWasNotSynced(t *testing.T) {
	m := newMachine(t)
	must(t, os.WriteFile(filepath.Join(m.dir, "unsynced"), content(1), 0o600))
	must(t, Write(filepath.Join(m.dir, "synced"), content(2), 0o600))
	m.afterPowerCut(func(dir string) {
		if data, _ := os.ReadFile(filepath.Join(dir, "unsynced")); bytes.Equal(data, content(1)) {
			t.Error("a file that nobody synced is whole")
		}
		if data, err := os.ReadFile(filepath.Join(dir, "synced")); err != nil || !bytes.Equal(data, content(2)) {
			t.Errorf("a file that was synced has %d bytes, %v", len(data), err)
		}
	})
}
