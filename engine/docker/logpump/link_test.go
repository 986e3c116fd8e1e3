package logpump

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"crishim/crilog"

	"github.com/containerd/errdefs"
)

func TestLinkIsDockershimsAndGoesAgain(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "ctr", "0.log")
	for _, target := range []string{"/var/lib/docker/containers/a/a-json.log", "/var/lib/docker/containers/a/a-json.log", "/other/b-json.log"} {
		must(t, Link(path, root, target))
		if got, err := os.Readlink(path); err != nil || got != target {
			t.Fatalf("linked to %q, %v", got, err)
		}
	}
	for range 2 {
		must(t, Unlink(path, root))
		if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 0 {
			t.Fatalf("%v is left", entries)
		}
	}
	must(t, Unlink(filepath.Join(root, "absent", "0.log"), root))
}

// Rows: S10 (part)
func TestLinkLeavesAloneWhatIsNoLink(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	const target = "/var/lib/docker/containers/a/a-json.log"
	file, folder := filepath.Join(root, "file"), filepath.Join(root, "folder")
	must(t, os.WriteFile(file, []byte("log"), 0o600))
	must(t, os.Mkdir(folder, 0o700))
	for _, path := range []string{file, folder} {
		if err := Link(path, root, target); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("link at %s: %v", path, err)
		}
		must(t, Unlink(path, root))
		if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSymlink != 0 {
			t.Errorf("%s became %v, %v", path, info, err)
		}
	}
	must(t, os.Symlink(outside, filepath.Join(root, "ctr")))
	must(t, os.Symlink(target, filepath.Join(outside, "0.log")))
	for _, path := range []string{root + "/ctr/0.log", root + "/../0.log", "/etc/0.log"} {
		if err := Link(path, root, target); !errdefs.IsInvalidArgument(err) {
			t.Errorf("link at %s: %v", path, err)
		}
		if err := Unlink(path, root); !errdefs.IsInvalidArgument(err) {
			t.Errorf("unlink at %s: %v", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(outside, "0.log")); err != nil {
		t.Errorf("outside: %v", err)
	}
	for _, bad := range []string{"", "relative", "/a/../b"} {
		if err := Link(root+"/x", root, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("target %q: %v", bad, err)
		}
	}
}

// The log of another shim's container is a link to Docker's file. All of that is carried over once, also past crashes, and
// also where the times of its entries go back.
//
// Rows: R29 (part)
func TestALinkIsTakenOverWithItsPast(t *testing.T) {
	d, k := newDockerLog(t, 0, 1), newKubelet(t)
	for i := range 40 {
		if i%7 == 3 {
			d.clock = d.clock.Add(-3 * time.Second)
		}
		d.log(crilog.Stdout, fmt.Sprintf("of the old shim %d\n", i))
	}
	must(t, Link(k.path, k.root, d.path))
	dir := t.TempDir()
	var crash crasher
	for crashes := 0; ; crashes++ {
		if crashes == 100 {
			t.Fatal("it never ends")
		}
		must(t, TakeOver(k.path, k.root, d.path, true))
		ps, err := newPumps(t.Context(), Options{Dir: dir}, crash.hooks())
		must(t, err)
		crash.arm(700)
		if err := ps.Start(k.container(d)); err != nil {
			t.Fatal(err)
		}
		err = ps.Finish(t.Context(), "c0ffee")
		if _, died := crash.spend(0); died {
			crash.kill(ps)
			continue
		}
		must(t, err)
		if crashes < 2 {
			t.Errorf("only %d crashes on the way", crashes)
		}
		break
	}
	checkLog(t, k, d.expected())
	if entries, err := os.ReadDir(filepath.Dir(k.path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the log: %v, %v", entries, err)
	}
}

func TestTakeOverLeavesAloneWhatIsNotTheLinkToDockersFile(t *testing.T) {
	root := t.TempDir()
	const target = "/var/lib/docker/containers/a/a-json.log"
	file, link := filepath.Join(root, "file"), filepath.Join(root, "link")
	must(t, os.WriteFile(file, []byte("log"), 0o600))
	must(t, os.Symlink("/etc/passwd", link))
	for _, path := range []string{file, link, filepath.Join(root, "absent"), filepath.Join(root, "no", "folder")} {
		must(t, TakeOver(path, root, target, true))
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "log" {
		t.Errorf("a file became %q, %v", content, err)
	}
	if got, err := os.Readlink(link); err != nil || got != "/etc/passwd" {
		t.Errorf("another link became %q, %v", got, err)
	}
}
