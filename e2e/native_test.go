package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// What the native engine can and the API of a Docker Engine has no words for.

// firstUserID is where the pod's users begin on the host.
const firstUserID = 500000

func inUserNamespace(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ownUsers()
}

func ownUsers() *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{HostId: firstUserID, ContainerId: 0, Length: 65536}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// In a pod of a user namespace root is nobody on the host, in the process, its files and its volumes; an id-mapped volume
// keeps the owners that it has on the host.
//
// Rows: S61 (part)
func TestNativePodsOfAUserNamespace(t *testing.T) {
	harness.AboutNative(t)
	n := node(t)
	status, err := n.Shim.Runtime.Status(ctx(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(status.RuntimeHandlers) == 0 || !status.RuntimeHandlers[0].GetFeatures().GetUserNamespaces() {
		t.Skipf("this host has no user namespaces for pods: %v", status.RuntimeHandlers)
	}
	volume := harness.WorkDir(t, "u")
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "old"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(filepath.Join(volume, "old"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	pod := n.RunPod(t, "users", inUserNamespace)
	ids := []*runtimeapi.IDMapping{{HostId: firstUserID, ContainerId: 0, Length: 65536}}
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ownUsers()
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: volume, ContainerPath: "/mapped", UidMappings: ids, GidMappings: ids},
			{HostPath: volume, ContainerPath: "/plain"},
		}
	})
	if got := strings.Fields(c.Output("cat /proc/self/uid_map")); len(got) != 3 || got[0] != "0" || got[1] != "500000" || got[2] != "65536" {
		t.Errorf("uid_map %v", got)
	}
	if uid := ownerOf(t, fmt.Sprintf("/proc/%d", n.HostPID(t, c.ID))); uid != firstUserID {
		t.Errorf("its process is user %d's on the host", uid)
	}
	if got := c.Output("id -u; stat -c %u /etc/hosts /bin/busybox"); got != "0\n0\n0\n" {
		t.Errorf("root and the owners of files: %q", got)
	}
	if got := c.Output("stat -c %u /mapped/old /plain/old"); got != "1000\n65534\n" {
		t.Errorf("the owners of a volume's file are %q", got)
	}
	c.Output("echo x >/mapped/new; echo x >/plain/new2; echo x >/own")
	upper, _ := n.Layer(t, c.ID)
	for file, want := range map[string]uint32{filepath.Join(volume, "new"): 0, filepath.Join(volume, "new2"): firstUserID, filepath.Join(upper, "own"): firstUserID} {
		if uid := ownerOf(t, file); uid != want {
			t.Errorf("%s is user %d's on the host, want %d", file, uid, want)
		}
	}
}

func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// A bind mount has the options that were asked for.
func TestNativeMountOptions(t *testing.T) {
	harness.AboutNative(t)
	n := node(t)
	volume := harness.WorkDir(t, "o")
	pod := n.RunPod(t, "options")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v", MountOptions: []string{"noexec", "nodev", "nosuid"}}}
	})
	options := c.Output("awk '$5 == \"/v\" {print $6}' /proc/self/mountinfo")
	for _, want := range []string{"noexec", "nodev", "nosuid"} {
		if !strings.Contains(options, want) {
			t.Errorf("the mount's options %q have no %s", options, want)
		}
	}
	c.Output("cp /bin/testserver /v/x")
	if reply := c.Exec("sh", "-c", "/v/x identity"); reply.ExitCode == 0 {
		t.Error("a program of a noexec mount runs")
	}
}

// A running daemon verifies its images beside pods that use them, and mends what is damaged: not under a container.
//
// Rows: R21 (part)
func TestNativeImagesAreVerifiedAndMended(t *testing.T) {
	harness.AboutNative(t)
	n := node(t)
	small := n.Pull(t, harness.Small)
	files, err := filepath.Glob(filepath.Join(n.Shim.RootDir, "native", "images", "layers", "*", "fs", "small"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the file of %s: %v, %v", small, files, err)
	}
	verify := func(wantCode int, says string, args ...string) {
		t.Helper()
		out, code := n.Shim.Command(append([]string{"images", "verify", "--config", n.Shim.ConfigFile}, args...)...)
		if code != wantCode || !strings.Contains(out, says) {
			t.Errorf("crishim images verify %v: status %d, want %d and %q in:\n%s", args, code, wantCode, says, out)
		}
	}
	pod := n.RunPod(t, "verified")
	c := pod.Create(pod.ContainerConfig("c", small))
	verify(0, small+": whole\n")
	if err := os.WriteFile(files[0], []byte("SMALL:latest"), 0o644); err != nil {
		t.Fatal(err)
	}
	verify(1, "1 damaged\n")
	verify(1, "in use by container "+c.ID, "--fix", small)
	c.Remove()
	verify(0, small+": mended\n", "--fix", small)
	verify(0, ": 0 damaged\n")
	if data, err := os.ReadFile(files[0]); err != nil || string(data) != harness.Small {
		t.Errorf("the mended file has %q, %v", data, err)
	}
	if image := imageStatus(t, n, small); image == nil {
		t.Errorf("%s is not there after it was mended", small)
	}
}

// A running daemon does for the command line what crishim images does with the store while the daemon is down.
func TestNativeImagesOfARunningDaemon(t *testing.T) {
	harness.AboutNative(t)
	n := node(t)
	small, busybox := n.Pull(t, harness.Small), n.Pull(t, harness.Busybox)
	images := func(wantCode int, says string, args ...string) {
		t.Helper()
		out, code := n.Shim.Command(append([]string{"images", "--config", n.Shim.ConfigFile}, args...)...)
		if code != wantCode || !strings.Contains(out, says) {
			t.Fatalf("crishim images %v: status %d, want %d and %q in:\n%s", args, code, wantCode, says, out)
		}
	}
	id := imageStatus(t, n, busybox).Id
	dir := t.TempDir()
	archive, layout := filepath.Join(dir, "archive.tar"), filepath.Join(dir, "layout")
	images(0, small, "ls")
	images(0, id, "ls", "--json", busybox)
	images(0, "", "export", "-o", archive, busybox)
	images(0, "", "export", "-o", layout+"/", busybox)
	pod := n.RunPod(t, "used")
	c := pod.Run("c", busybox, forever)
	images(1, "in use by container "+c.ID, "rm", busybox)
	c.Remove()
	for _, from := range []string{archive, layout} {
		images(0, id, "rm", busybox)
		if image := imageStatus(t, n, busybox); image != nil {
			t.Fatalf("%s is there after it was removed", busybox)
		}
		images(0, id+" "+busybox, "import", from)
	}
	images(0, id, "rm", busybox)
	images(0, id, "pull", busybox)
	images(0, " example.org/renamed:v1", "import", "-t", "example.org/renamed:v1", archive)
	pod.Run("again", "example.org/renamed:v1", forever).Exec("/bin/testserver", "identity")
	images(1, "there is no image ", "rm", "example.org/absent:v1")
	images(1, "no such file", "import", filepath.Join(dir, "absent.tar"))
	if err := os.WriteFile(archive, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	images(1, "import from "+archive, "import", archive)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
}
