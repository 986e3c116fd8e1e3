package crilog

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// kubeletRotates is what rotateLog of the kubelet's container log manager (pkg/kubelet/logs) does to the files, with MaxFiles 5.
func kubeletRotates(t *testing.T, log string, n int, reopen func() error) {
	t.Helper()
	logs, err := filepath.Glob(log + ".*")
	must(t, err)
	var inUse []string
	for _, l := range logs {
		_, gz := os.Stat(l + ".gz")
		if strings.HasSuffix(l, ".tmp") || !strings.HasSuffix(l, ".gz") && gz == nil {
			must(t, os.Remove(l)) // "already been compressed"
			continue
		}
		inUse = append(inUse, l)
	}
	sort.Strings(inUse)
	for len(inUse) > 3 {
		must(t, os.Remove(inUse[0]))
		inUse = inUse[1:]
	}
	for _, l := range inUse {
		if !strings.HasSuffix(l, ".gz") {
			must(t, os.Rename(l, l+".gz")) // compressed, for the test as it is
		}
	}
	must(t, os.Rename(log, fmt.Sprintf("%s.20240229-1200%02d", log, n)))
	must(t, reopen())
}

// Rows: S54 (part)
func TestTheKubeletKeepsTheNewestOverflow(t *testing.T) {
	path := t.TempDir() + "/0.log"
	w, err := Open(filepath.Dir(path), path, 1000)
	must(t, err)
	defer func() { _ = w.Close() }()
	line := 0
	write := func(n int) {
		for range n {
			w.WriteText(noon, Stdout, fmt.Appendf(nil, "line %d\n", line))
			line++
		}
	}
	write(40) // set aside once
	kubeletRotates(t, path, 1, w.Reopen)
	write(40) // set aside again: lines in 0.log.overflow that are nowhere else
	newest, err := os.ReadFile(path + OverflowSuffix)
	must(t, err)
	kubeletRotates(t, path, 2, w.Reopen)
	all, err := filepath.Glob(path + "*")
	must(t, err)
	for _, name := range all {
		if data, err := os.ReadFile(name); err == nil && string(data) == string(newest) {
			return
		}
	}
	t.Errorf("the newest overflow is gone, and there are %v", all)
}

// The answer to ReopenContainerLog does not reach the kubelet, which takes its rename back.
//
// Rows: R29 (part)
func TestAReopenThatTheKubeletTakesBack(t *testing.T) {
	w, path := open(t)
	w.WriteText(noon, Stdout, []byte("one\n"))
	must(t, os.Rename(path, path+".1"))
	must(t, w.Reopen())
	must(t, os.Rename(path+".1", path))
	w.WriteText(noon, Stdout, []byte("two\n"))
	must(t, os.Rename(path, path+".2")) // the next round
	must(t, w.Reopen())
	w.WriteText(noon, Stdout, []byte("three\n"))
	var all []byte
	for _, n := range []string{path + ".2", path} {
		data, err := os.ReadFile(n)
		must(t, err)
		all = append(all, data...)
	}
	if got := string(decode(t, all)); got != "one\ntwo\nthree\n" || w.Stats().DroppedBytes != 0 {
		t.Errorf("the logs have %q, and counted is %+v", got, w.Stats())
	}
}

// The kubelet takes a reopen back after something was written, and the container writes nothing before the next round or its end.
//
// Rows: R29 (part)
func TestAReopenThatIsTakenBackFromAQuietContainer(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, w *Writer, path string){
		"and rotated again": func(t *testing.T, w *Writer, path string) {
			must(t, os.Rename(path, path+".2"))
			must(t, w.Reopen())
		},
		"and ends":             func(_ *testing.T, w *Writer, _ string) {},
		"asked twice, goes on": func(_ *testing.T, w *Writer, _ string) { w.WriteText(noon, Stdout, []byte("three\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			w, path := open(t)
			w.WriteText(noon, Stdout, []byte("one\n"))
			must(t, os.Rename(path, path+".1"))
			must(t, w.Reopen())
			w.WriteText(noon, Stdout, []byte("two\n"))
			if strings.HasPrefix(name, "asked twice") {
				must(t, w.Reopen())
			}
			must(t, os.Rename(path+".1", path))
			next(t, w, path)
			must(t, w.Close())
			var all []byte
			for _, n := range []string{path + ".2", path} {
				data, err := os.ReadFile(n)
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				all = append(all, data...)
			}
			if got := string(decode(t, all)); !strings.HasPrefix(got, "one\ntwo\n") {
				t.Errorf("the logs have %q, and counted is %+v", got, w.Stats())
			}
		})
	}
}

// Who removes a log wants its space back: it does not come again, neither when the kubelet has it reopened nor at the end.
func TestALogThatWasRemovedStaysSo(t *testing.T) {
	w, path := open(t)
	must(t, os.WriteFile(path+".0", []byte("rotated long ago"), 0o600))
	w.WriteText(noon, Stdout, []byte("one\n"))
	must(t, os.Rename(path, path+".1"))
	must(t, w.Reopen())
	w.WriteText(noon, Stdout, []byte("two\n"))
	must(t, os.Remove(path))
	must(t, w.Reopen()) // as the kubelet does where it finds no log
	if data, err := os.ReadFile(path); err != nil || len(data) > 0 {
		t.Errorf("it has %q again (%v)", data, err)
	}
	must(t, os.Remove(path))
	must(t, w.Close())
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is there again: %v", err)
	}
}

// What is at the path by now is another log, which nobody may lose for the one before it.
func TestOnlyTheFullLogIsSetAside(t *testing.T) {
	path := t.TempDir() + "/0.log"
	full, err := OpenFile(filepath.Dir(path), path)
	must(t, err)
	defer func() { _ = full.Close() }()
	must(t, os.Rename(path, path+".1"))
	must(t, os.WriteFile(path, []byte("another"), 0o600))
	must(t, os.WriteFile(path+OverflowSuffix, []byte("older"), 0o600))
	must(t, SetAside(filepath.Dir(path), path, full))
	for name, want := range map[string]string{path: "another", path + OverflowSuffix: "older"} {
		if data, err := os.ReadFile(name); err != nil || string(data) != want {
			t.Errorf("%s has %q, %v", name, data, err)
		}
	}
}
