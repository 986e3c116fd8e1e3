package helper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Rows: S55 (part)
func TestHelperCannotBeWrittenTo(t *testing.T) {
	if !Built() {
		if _, err := Open(t.TempDir()); !errors.Is(err, ErrNotBuilt) {
			t.Fatal(err)
		}
		t.Skip(ErrNotBuilt)
	}
	f, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	path := "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("written through the descriptor: %v", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncated: %v", err)
	}
	if w, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPERM) {
			t.Errorf("written through /proc: %v", err)
		}
		_ = w.Close()
	}
	out, err := exec.Command(path, "version").Output()
	if err != nil || !strings.Contains(string(out), `"runc"`) {
		t.Errorf("run: %s, %v", out, err)
	}
}

func TestFileIsTheFallback(t *testing.T) {
	if !Built() {
		t.Skip(ErrNotBuilt)
	}
	dir := t.TempDir()
	for _, left := range []string{".helper-1", "crishim-monitor"} {
		if err := os.WriteFile(filepath.Join(dir, left), nil, 0o500); err != nil {
			t.Fatal(err)
		}
	}
	sweep(dir)
	f, err := written(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o500 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := exec.Command("/proc/"+strconv.Itoa(os.Getpid())+"/fd/"+strconv.Itoa(int(f.Fd())), "version").Run(); err != nil {
		t.Errorf("run: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestTheHelperIsNotResidentInTheDaemon(t *testing.T) {
	if !Built() {
		t.Skip(ErrNotBuilt)
	}
	if relocated() {
		t.Skip("this test program was linked with relocations, as for the race detector; the daemon is not")
	}
	program, err := embedded.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	read := residentKiB(t)
	letGo()
	if left := residentKiB(t); left > read-len(program)/1024/2 {
		t.Errorf("%d KiB of files were resident, and %d still are; the helper has %d", read, left, len(program)/1024)
	}
	if again, err := embedded.ReadFile(name); err != nil || !bytes.Equal(again, program) {
		t.Errorf("the helper is another when it is read again: %v", err)
	}
}

// residentKiB is what the process has of files in memory.
func residentKiB(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
