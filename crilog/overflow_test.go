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
