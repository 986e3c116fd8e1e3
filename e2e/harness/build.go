package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// root is the checkout.
var root = sync.OnceValue(func() string {
	_, file, _, _ := runtime.Caller(0)
	if dir := filepath.Dir(filepath.Dir(filepath.Dir(file))); dirHas(dir, "go.mod") {
		return dir
	}
	// Built with -trimpath: tests run in their package's folder.
	dir, err := os.Getwd()
	for err == nil && !dirHas(dir, "go.mod") && dir != "/" {
		dir = filepath.Dir(dir)
	}
	return dir
})

func dirHas(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil && filepath.IsAbs(dir)
}

// cacheDir keeps what is built or fetched for the tests from run to run; git ignores it.
func cacheDir() string {
	dir := filepath.Join(root(), ".cache", "e2e")
	_ = os.MkdirAll(dir, 0o755) // the first use says what is wrong
	return dir
}

// program is a command of this repository as the tests want it built.
type program struct {
	pkg  string
	file string
	// args are further arguments of go build.
	args []string
	cgo  bool
}

// build builds a program unless this process did already; Go's own cache makes it quick where nothing changed.
func (p program) build(t T) string {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	target := filepath.Join(cacheDir(), p.file)
	if builds[target] {
		return target
	}
	cgo := "CGO_ENABLED=0"
	if p.cgo {
		cgo = "CGO_ENABLED=1"
	}
	args := append([]string{"build", "-buildvcs=false", "-o", target}, p.args...)
	if err := goTool(root(), []string{cgo}, append(args, p.pkg)...); err != nil {
		t.Fatalf("building %s: %v", p.pkg, err)
	}
	builds[target] = true
	return target
}

var (
	buildsMu sync.Mutex
	builds   = map[string]bool{}
)

// goTool runs the go command.
func goTool(dir string, env []string, args ...string) error { return locked(dir, env, "go", args...) }

// locked runs a command that builds, as inCache does.
func locked(dir string, env []string, name string, args ...string) error {
	return inCache(func() error { return runIn(dir, env, name, args...) })
}

// runIn runs a command in a folder.
func runIn(dir string, env []string, name string, args ...string) error {
	command := exec.Command(name, args...)
	command.Dir, command.Env = dir, append(os.Environ(), env...)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// inCache calls a function that writes to the cache folder. Test packages of several processes may want the same file of it:
// one builds or fetches at a time. It does not nest.
func inCache(write func() error) error {
	lock, err := os.OpenFile(filepath.Join(cacheDir(), "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	return write()
}

// debianPackage unpacks Debian's package, without installing it, into a folder of the cache, unless it is there.
func debianPackage(name, dir string) error {
	return inCache(func() error {
		if dirHas(dir, "usr") { // what both packages here have; the folder gets its name when it is whole
			return nil
		}
		unpacked := dir + ".new"
		for _, stale := range []string{unpacked, dir} { // of a run that was killed
			if err := os.RemoveAll(stale); err != nil {
				return err
			}
		}
		if err := os.Mkdir(unpacked, 0o755); err != nil {
			return err
		}
		script := fmt.Sprintf("apt-get download %[1]s >&2; dpkg-deb -x %[1]s_*.deb .; rm %[1]s_*.deb", name)
		if err := runIn(unpacked, nil, "sh", "-ec", script); err != nil {
			return err
		}
		return os.Rename(unpacked, dir)
	})
}

func testServer(t T) string {
	return program{pkg: "./e2e/testserver", file: "testserver", args: []string{"-trimpath", "-ldflags=-s -w"}}.build(t)
}

func ociWrapper(t T) string {
	return program{pkg: "./e2e/ociwrap", file: "ociwrap", args: []string{"-trimpath", "-ldflags=-s -w"}}.build(t)
}

// crishim builds the daemon: as it ships, or with the race detector, or with failpoints.
func crishim(t T, race, failpoints bool) string {
	t.Helper()
	if file := os.Getenv("E2E_CRISHIM"); file != "" && !failpoints {
		return file
	}
	p := program{pkg: "./cmd/shim", file: "crishim"}
	if race {
		p.file, p.cgo, p.args = p.file+"-race", true, append(p.args, "-race")
	}
	if failpoints {
		p.file, p.args = p.file+"-failpoint", append(p.args, "-tags=failpoint")
	}
	return p.build(t)
}

// pluginVersion is the one that e2e/tools/cni/go.mod names.
const pluginVersion = "v1.9.1"

// cniPlugins builds the CNI plugins of e2e/tools/cni and returns their folder.
func cniPlugins(t T) string {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	dir := filepath.Join(cacheDir(), "cni-"+pluginVersion)
	if builds[dir] {
		return dir
	}
	version := "-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=" + pluginVersion
	err := goTool(filepath.Join(root(), "e2e", "tools", "cni"), []string{"CGO_ENABLED=0"},
		"build", "-trimpath", "-ldflags=-s -w "+version, "-o", dir+"/", "tool")
	if err != nil {
		t.Fatalf("building the CNI plugins: %v", err)
	}
	builds[dir] = true
	return dir
}

// BusyboxFile is the busybox of the test images, one whose shell looks applets up on PATH: this machine's, or else the one out of Debian's package.
func BusyboxFile(t T) string {
	t.Helper()
	dir := filepath.Join(cacheDir(), "busybox")
	for _, file := range []string{os.Getenv("E2E_BUSYBOX"), "/bin/busybox", filepath.Join(dir, "bin", "busybox"), filepath.Join(dir, "usr", "bin", "busybox")} {
		if file != "" && findsAppletsOnPath(file) {
			return file
		}
	}
	if err := debianPackage("busybox", dir); err != nil {
		t.Fatalf("fetching Debian's busybox package for the test images: %v", err)
	}
	for _, file := range []string{filepath.Join(dir, "bin", "busybox"), filepath.Join(dir, "usr", "bin", "busybox")} {
		if findsAppletsOnPath(file) {
			return file
		}
	}
	t.Fatalf("Debian's busybox package has no busybox that looks applets up on PATH")
	return ""
}

func findsAppletsOnPath(busybox string) bool {
	shell := exec.Command(busybox, "sh", "-c", "PATH=/nonexistent; ls /")
	if _, err := os.Stat(busybox); err != nil {
		return false
	}
	return shell.Run() != nil
}
