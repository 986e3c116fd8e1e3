package logpump

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"crishim/crilog"

	"github.com/containerd/errdefs"
)

// A node goes back to its old shim, which finds its link to Docker's log, and leaves it again: the log goes on where it was, also
// where the way back was cut off in the middle, and each entry is there once.
func TestALogThatWasGivenBackGoesOn(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut off %t", cut), func(t *testing.T) {
			d, k, dir := newDockerLog(t, 0, 1), newKubelet(t), t.TempDir()
			must(t, Link(k.path, k.root, d.path))
			lines := 0
			say := func() {
				for range 20 {
					d.log(crilog.Stdout, fmt.Sprintf("line %d\n", lines))
					lines++
				}
			}
			carry := func() {
				t.Helper()
				say()
				ps, err := New(t.Context(), Options{Dir: dir})
				must(t, err)
				must(t, TakeOver(k.path, k.root, d.path, ps.Knows("c0ffee")))
				must(t, ps.Start(k.container(d)))
				say()
				must(t, ps.Finish(t.Context(), "c0ffee"))
				ps.Close()
				checkLog(t, k, d.expected())
			}
			carry()
			for range 2 {
				if cut {
					must(t, os.Rename(k.path, filepath.Join(filepath.Dir(k.path), keptName("0.log"))))
				}
				for i := range 2 { // again, too
					linked, err := GiveBack(k.path, k.root, d.path)
					if target, lerr := os.Readlink(k.path); err != nil || lerr != nil || linked != (i == 0) || target != d.path {
						t.Fatalf("given back: %t, %v; a link to %q, %v", linked, err, target, lerr)
					}
				}
				carry()
			}
			if entries, err := os.ReadDir(filepath.Dir(k.path)); err != nil || len(entries) != 1 {
				t.Errorf("beside the log: %v, %v", entries, err)
			}
			if cut { // the old shim was never started
				must(t, os.Rename(k.path, filepath.Join(filepath.Dir(k.path), keptName("0.log"))))
				carry()
			}
		})
	}
}

// A container that has said nothing has no position, and its kept log has nothing in it: that one must not stay beside the new one, or the
// next way back finds it in its way.
func TestTheLogOfASilentContainerIsGivenBackAgainAndAgain(t *testing.T) {
	d, k, dir := newDockerLog(t, 0, 1), newKubelet(t), t.TempDir()
	must(t, Link(k.path, k.root, d.path))
	carry := func() {
		t.Helper()
		ps, err := New(t.Context(), Options{Dir: dir})
		must(t, err)
		must(t, TakeOver(k.path, k.root, d.path, ps.Knows("c0ffee")))
		must(t, ps.Start(k.container(d)))
		ps.Close()
	}
	for range 3 {
		carry()
		if linked, err := GiveBack(k.path, k.root, d.path); err != nil || !linked {
			t.Fatalf("given back: %t, %v", linked, err)
		}
	}
	d.log(crilog.Stdout, "at last\n") // to the old shim
	carry()
	ps, err := New(t.Context(), Options{Dir: dir})
	must(t, err)
	must(t, ps.Start(k.container(d)))
	must(t, ps.Finish(t.Context(), "c0ffee"))
	ps.Close()
	checkLog(t, k, d.expected())
	if entries, err := os.ReadDir(filepath.Dir(k.path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the log: %v, %v", entries, err)
	}
}

// What was kept of a container that the old shim has removed is none of its successor's of the same name.
func TestAKeptLogOfAnotherContainerIsLeftOut(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	must(t, os.MkdirAll(filepath.Dir(k.path), 0o700))
	must(t, os.WriteFile(filepath.Join(filepath.Dir(k.path), keptName("0.log")), []byte("of another\n"), 0o600))
	must(t, Link(k.path, k.root, d.path))
	d.log(crilog.Stdout, "its own\n")
	ps := newTestPumps(t, t.TempDir())
	must(t, TakeOver(k.path, k.root, d.path, ps.Knows("c0ffee")))
	must(t, ps.Start(k.container(d)))
	must(t, ps.Finish(t.Context(), "c0ffee"))
	checkLog(t, k, d.expected())
}

func TestWhatIsNoLogIsNotGivenBack(t *testing.T) {
	root := t.TempDir()
	const target = "/var/lib/docker/containers/a/a-json.log"
	folder, link := filepath.Join(root, "folder"), filepath.Join(root, "link")
	must(t, os.Mkdir(folder, 0o700))
	must(t, os.Symlink("/etc/passwd", link))
	if _, err := GiveBack(folder, root, target); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a folder: %v", err)
	}
	for _, path := range []string{link, filepath.Join(root, "absent"), filepath.Join(root, "no", "folder")} {
		if linked, err := GiveBack(path, root, target); linked || err != nil {
			t.Errorf("%s: %t, %v", path, linked, err)
		}
	}
	if got, err := os.Readlink(link); err != nil || got != "/etc/passwd" {
		t.Errorf("another link became %q, %v", got, err)
	}
	must(t, os.WriteFile(filepath.Join(root, "log"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(root, keptName("log")), nil, 0o600))
	if _, err := GiveBack(filepath.Join(root, "log"), root, target); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("over an older part: %v", err)
	}
}
