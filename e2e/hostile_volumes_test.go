package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/e2e/testimage"
	"crishim/internal/rowsize"
)

// The VOLUMEs of an image, into which is copied what the image has there, and the images that CRI mounts.
//
// Rows: S01
func TestImageVolumesShowTheirImageOnly(t *testing.T) {
	n, canary := attacked(t)
	pod := n.RunPod(t, "volumes")
	const own = "of-the-image"
	layer := func(tree *testimage.Tree) {
		tree.File("data/file", 0o644, []byte(own))
		tree.Symlink("abs", canary.Dir)
		tree.Symlink("rel", "../../../../../../.."+canary.Dir)
		tree.Symlink("proc", "/proc/1/root"+canary.Dir)
		tree.Symlink("first", "second")
		tree.Symlink("second", "abs")
		tree.Symlink("data/up", "../../../../../../../..")
		tree.Symlink("good", "data")
	}
	all := "grep -rao 'canary-[0-9a-f]*' $(ls -d /* | grep -v -e proc -e sys -e dev -e bin) 2>/dev/null; true"
	for _, volume := range []string{
		"/x/../../../../.." + canary.Dir, "/abs", "/rel", "/proc/../abs", "/proc/1/root" + canary.Dir, "/first", "/data/up" + canary.Dir, "/abs/dir", "/..", "/good",
	} {
		t.Run("VOLUME "+strings.ReplaceAll(volume, "/", "_"), func(t *testing.T) {
			image := hostileImage(t, n, v1.Config{Volumes: map[string]struct{}{volume: {}}}, layer)
			c, err := attempt(t, pod, pod.ContainerConfig("c"+harness.ID(), image, forever...))
			noCanary(t, canary, volume, err)
			if err != nil {
				t.Logf("refused: %v", err)
				return
			}
			defer c.Remove()
			noCanary(t, canary, volume, c.Output(all), c.Output("cat "+strings.Trim(volume, ".")+"/file "+volume+"/secret 2>/dev/null; true"))
			c.Output("echo overwritten > " + volume + "/file; rm -rf " + volume + "/dir; true") // the gate sees where that went
			if volume == "/good" {
				if got := c.Output("cat /data/file"); got != "overwritten\n" && got != own {
					t.Errorf("the volume has %q", got)
				}
			}
		})
	}
	image := hostileImage(t, n, v1.Config{}, layer)
	for _, sub := range []string{"abs", "rel", "proc", "first", "data/up" + canary.Dir, "abs/dir", "data", "good"} {
		t.Run("mounted at "+strings.ReplaceAll(sub, "/", "_"), func(t *testing.T) {
			config := pod.ContainerConfig("c"+harness.ID(), n.Registry.Ref(harness.Busybox), forever...)
			config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", Readonly: true, Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: sub}}
			c, err := attempt(t, pod, config)
			noCanary(t, canary, sub, err)
			if good := sub == "data" || sub == "good"; good != (err == nil) {
				t.Fatalf("it starts: %v", err)
			}
			if err != nil {
				return
			}
			defer c.Remove()
			if got := c.Output("cat /m/file; touch /m/x 2>/dev/null && echo written; true"); got != own {
				t.Errorf("the volume has %q", got)
			}
		})
	}
}

// Two containers share a volume: one swaps, as fast as it can, a folder and a link to the host's, while others are started
// with mounts onto and out of it.
//
// Rows: S05, S01 (part)
func TestMountTargetsThatAreSwapped(t *testing.T) {
	n, canary := attacked(t)
	volume := harness.WorkDir(t, "v")
	source := harness.WorkDir(t, "o")
	if err := os.WriteFile(filepath.Join(source, "mark"), []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(volume, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"a/b", "c"} {
		if err := os.Mkdir(filepath.Join(volume, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The link leads to a folder of the host that is not the canary's: see emptyFoldersOfOldRunc.
	decoy := harness.WorkDir(t, "y")
	if err := os.WriteFile(filepath.Join(decoy, "file"), []byte(canary.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(decoy, filepath.Join(volume, "link")); err != nil {
		t.Fatal(err)
	}
	pod := n.RunPod(t, "swapped")
	// A volume of the image, too, is mounted where the swaps are.
	image := hostileImage(t, n, v1.Config{Volumes: map[string]struct{}{"/v/a/own": {}}}, func(tree *testimage.Tree) {
		tree.File("v/a/own/file", 0o644, []byte("of-the-image"))
	})
	try := func() error {
		config := pod.ContainerConfig("c"+harness.ID(), image, forever...)
		config.Mounts = []*runtimeapi.Mount{
			{HostPath: volume, ContainerPath: "/v"},
			{HostPath: source, ContainerPath: "/v/a/b"},
			{HostPath: source, ContainerPath: "/v/a/new-" + harness.ID()},
		}
		c, err := attempt(t, pod, config)
		noCanary(t, canary, "swapped", err)
		if err != nil {
			return err
		}
		noCanary(t, canary, "swapped", c.Output("cat /v/a/b/* /v/a/*/* 2>/dev/null; true"))
		c.Remove()
		return nil
	}
	if err := try(); err != nil {
		t.Fatalf("undisturbed: %v", err)
	}
	// The swapper is outside, because it is faster there; what it does a container with the volume could do.
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, volume+"/a", unix.AT_FDCWD, volume+"/link", unix.RENAME_EXCHANGE) // again and again
			}
		}
	})
	defer func() { close(stop); swapper.Wait() }()
	rounds, ran, least := 0, 0, rowsize.Of(24, 10_000)
	// On until one got past the swaps: where all are refused nothing was raced.
	for ; rounds < least || rounds < 10*least && ran == 0; rounds++ {
		if try() == nil { // else it met the link: that is a refusal
			ran++
		}
	}
	t.Logf("%d of %d started", ran, rounds)
	if ran == 0 {
		t.Error("none started")
	}
	if content, err := os.ReadFile(filepath.Join(decoy, "file")); err != nil || string(content) != canary.Secret {
		t.Errorf("the file behind the link is %q, %v", content, err)
	}
	emptyFoldersOfOldRunc(t, n, decoy)
}

// emptyFoldersOfOldRunc fails where a folder of the host has more than its file, but for empty folders under a runc below
// 1.1.14: it makes mount targets by their path, so that a swap at the right moment leaves an empty folder on the host
// (CVE-2024-45310; nothing is mounted there). Nobody in front of runc can prevent that.
func emptyFoldersOfOldRunc(t *testing.T, n *harness.Node, decoy string) {
	t.Helper()
	entries, err := os.ReadDir(decoy)
	if err != nil {
		t.Fatal(err)
	}
	if n.Docker == nil {
		if len(entries) != 1 {
			t.Errorf("on the host there is %v", entries)
		}
		return
	}
	version := exec.Command("sh", "-c", "runc --version")
	version.Env = append(os.Environ(), "PATH="+n.Docker.Options.PathPrefix+":"+os.Getenv("PATH"))
	out, err := version.Output()
	if err != nil {
		t.Fatalf("the version of runc: %v", err)
	}
	var major, minor, patch int
	if _, err := fmt.Sscanf(string(out), "runc version %d.%d.%d", &major, &minor, &patch); err != nil {
		t.Fatalf("the version of runc in %q: %v", out, err)
	}
	old := major == 1 && (minor < 1 || minor == 1 && patch < 14)
	for _, entry := range entries {
		if entry.Name() == "file" {
			continue
		}
		if inside, err := os.ReadDir(filepath.Join(decoy, entry.Name())); !old || err != nil || len(inside) != 0 {
			t.Errorf("runc %d.%d.%d made %s on the host, with %v, %v", major, minor, patch, entry.Name(), inside, err)
			continue
		}
		t.Logf("runc %d.%d.%d made the empty folder %s on the host", major, minor, patch, entry.Name())
	}
}

// Rows: S59, S09 (part)
func TestMountsOfAContainerAreItsOwn(t *testing.T) {
	n, _ := attacked(t)
	volume := filepath.Join(harness.WorkDir(t, "p"), "volume")
	mountTmpfs(t, volume)
	if err := unix.Mount("", volume, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, filepath.Join(volume, "inside"))
	pod := n.RunPod(t, "propagation", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	at := func(path string, propagation runtimeapi.MountPropagation) *runtimeapi.Mount {
		return &runtimeapi.Mount{HostPath: volume, ContainerPath: path, Propagation: propagation}
	}
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths, s.Seccomp = true, nil, nil, nil
		c.Mounts = []*runtimeapi.Mount{
			at("/private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE), at("/follows", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER),
			at("/both", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL),
			{HostPath: volume, ContainerPath: "/readonly", Readonly: true},
			{HostPath: volume, ContainerPath: "/all-readonly", Readonly: true, RecursiveReadOnly: true},
		}
	})
	// From the host.
	mountTmpfs(t, filepath.Join(volume, "late"))
	if err := os.WriteFile(filepath.Join(volume, "late", "sign"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := c.Output("for m in /*; do test -e $m/late/sign && echo $m; done; true"); got != "/both\n/follows\n" {
		t.Errorf("a mount of the host is seen in %q", got)
	}
	// From the container.
	for _, m := range []string{"private", "follows", "both"} {
		c.Output("mkdir /" + m + "/" + m + " && mount -t tmpfs none /" + m + "/" + m + " && touch /" + m + "/" + m + "/sign")
	}
	for name, seen := range map[string]bool{"private": false, "follows": false, "both": true} {
		if _, err := os.Stat(filepath.Join(volume, name, "sign")); (err == nil) != seen {
			t.Errorf("a mount made in /%s is seen on the host: %v, want %v", name, err == nil, seen)
		}
	}
	// Read-only, at the mount and at the mount in it.
	for script, fails := range map[string]bool{
		"touch /readonly/x": true, "touch /readonly/inside/x": false, "touch /all-readonly/x": true, "touch /all-readonly/inside/x": true,
	} {
		if reply := c.Exec("sh", "-c", script); (reply.ExitCode != 0) != fails {
			t.Errorf("%q: exit code %d (%s), failing expected: %v", script, reply.ExitCode, reply.Stderr, fails)
		}
	}
	c.Remove()
	if _, err := os.Stat(filepath.Join(volume, "both", "sign")); err != nil {
		t.Errorf("a bidirectional mount went with its container: %v", err)
	}
	if err := unix.Unmount(filepath.Join(volume, "both"), 0); err != nil {
		t.Error(err)
	}
	for _, inside := range []string{"inside", "late"} {
		if err := unix.Unmount(filepath.Join(volume, inside), 0); err != nil {
			t.Errorf("the host's mount %s: %v", inside, err)
		}
	}
	// A private mount of the host is nobody's peer: it is refused, not served otherwise.
	alone := filepath.Join(harness.WorkDir(t, "p"), "alone")
	mountTmpfs(t, alone)
	if err := unix.Mount("", alone, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	config := pod.ContainerConfig("alone", n.Registry.Ref(harness.Busybox), forever...)
	config.Mounts = []*runtimeapi.Mount{{HostPath: alone, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
	if c, err := attempt(t, pod, config); err == nil {
		t.Error("HOST_TO_CONTAINER of a private mount is not refused")
		c.Remove()
	}
}

// mountTmpfs is a mount until the test ends.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // most tests have done so
}
