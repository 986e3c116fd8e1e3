package logpump

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crishim/crilog"
	"crishim/internal/process"
	"crishim/internal/starving"
)

// The daemon died after the kubelet had renamed the log and before it was told to reopen it. A log that cannot be opened for want
// of descriptors is not one that is gone: who took it for that would write what it has beyond the saved position once more, to a new file.
//
// Rows: R26 (part)
func TestARenamedLogThatCannotBeOpenedNowIsGoneOnWith(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	dir := t.TempDir()
	ps := newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "one\n")
	waitLog(t, k, d.expected())
	ps.Close()
	saved, err := os.ReadFile(filepath.Join(dir, "c0ffee.json"))
	must(t, err)
	ps = newTestPumps(t, dir)
	must(t, ps.Start(k.container(d)))
	d.log(crilog.Stdout, "two\n")
	waitLog(t, k, d.expected())
	ps.Close()
	must(t, os.WriteFile(filepath.Join(dir, "c0ffee.json"), saved, 0o600)) // as if it was killed before it saved that
	must(t, k.rotate(func() error { return nil }))
	ps = newTestPumps(t, dir)
	starving.Opening(t, unix.O_APPEND, unix.O_CREAT, func() {
		if err := ps.Start(k.container(d)); !process.Starved(err) {
			t.Errorf("begun with %v", err)
		}
	})
	d.log(crilog.Stdout, "three\n")
	must(t, ps.Start(k.container(d)))
	finish(t, ps, "c0ffee")
	checkLog(t, k, d.expected())
}
