package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Earlier is the daemon as it was at a commit (a full hash), with the native engine's helper of that time, built out of the
// history of this checkout and kept in the cache folder. Where there is no history, as in a source archive or a shallow
// clone, the test is skipped.
func Earlier(t testing.TB, commit string) (binary string) {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	target := filepath.Join(cacheDir(), "crishim-"+commit[:12])
	if isFile(target) {
		return target // a commit does not change
	}
	if out, err := exec.Command("git", "-C", root(), "cat-file", "-e", commit+"^{commit}").CombinedOutput(); err != nil {
		t.Skipf("the earlier daemon is built from commit %.12s, which this checkout does not have (a source archive, or a shallow clone?): %v %s", commit, err, out)
	}
	build := func() error {
		if isFile(target) {
			return nil // another process has just built it
		}
		return buildCommit(commit, target)
	}
	if err := onHostNetwork(func() error { return inCache(build) }); err != nil {
		t.Fatalf("building crishim of commit %.12s: %v", commit, err)
	}
	return target
}

// buildCommit builds a commit's daemon, as make does, in a folder that goes again.
func buildCommit(commit, target string) error {
	tree := target + ".tree"
	if err := os.RemoveAll(tree); err != nil { // of a run that was killed
		return err
	}
	defer func() { _ = os.RemoveAll(tree) }()
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	unpack := fmt.Sprintf("git -C '%s' archive %s | tar -x -C '%s'", root(), commit, tree)
	if out, err := exec.Command("sh", "-c", unpack).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", unpack, err, out)
	}
	if err := runIn(tree, nil, filepath.Join(tree, "hack", "helper.sh"), runtime.GOARCH, commit[:12]); err != nil {
		return err
	}
	if !isFile(filepath.Join(tree, "engine", "native", "helper", "embedded", runtime.GOARCH, "crishim-monitor")) {
		return fmt.Errorf("hack/helper.sh of that commit made no helper")
	}
	built := target + ".new"
	args := strings.Fields("build -buildvcs=false -ldflags=-X=main.version=" + commit[:12] + " -o")
	if err := runIn(tree, []string{"CGO_ENABLED=0"}, "go", append(args, built, "./cmd/shim")...); err != nil {
		return err
	}
	return os.Rename(built, target)
}
