package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/e2e/testimage"
)

// shape is one way for an image to have something else where a file or folder is expected.
type shape struct {
	what string
	add  func(tree *testimage.Tree, name string)
}

// shapes are links to the host's target (a path that is absolute on the host) and what is no plain file.
func shapes(target string) []shape {
	link := func(to string) func(*testimage.Tree, string) {
		return func(tree *testimage.Tree, name string) { tree.Symlink(name, to) }
	}
	special := func(kind byte, major, minor int64) func(*testimage.Tree, string) {
		return func(tree *testimage.Tree, name string) {
			tree.Add(tar.Header{Typeflag: kind, Name: name, Mode: 0o666, Devmajor: major, Devminor: minor}, nil)
		}
	}
	return []shape{
		{"an absolute link", link(target)},
		{"a relative link", link("../../../../../../.." + target)},
		{"a link through /proc/1/root", link("/proc/1/root" + target)},
		{"a link through /proc/self/fd", link("/proc/self/fd/7" + target)},
		{"a link to itself", func(tree *testimage.Tree, name string) { tree.Symlink(name, filepath.Base(name)) }},
		{"a dangling link", link("/no/such/place")},
		{"a FIFO", special(tar.TypeFifo, 0, 0)},
		{"an endless device", special(tar.TypeChar, 1, 5)},
	}
}

// Rows: S02
func TestEtcOfAnImageIsLinks(t *testing.T) {
	n, canary := attacked(t)
	pod := n.RunPod(t, "etc")
	hosts, text := hostsFile(t)
	check := func(t *testing.T, config *runtimeapi.ContainerConfig) {
		t.Helper()
		config.Mounts = append(config.Mounts, hosts)
		c, err := attempt(t, pod, config)
		if err != nil {
			t.Fatalf("it does not start: %v", err)
		}
		defer c.Remove()
		if got := c.Output("cat /etc/hosts"); got != text {
			t.Errorf("/etc/hosts is %q", got)
		}
		if got := c.Output("cat /etc/resolv.conf /etc/hostname"); !strings.Contains(got, "nameserver 192.0.2.53") || !strings.HasSuffix(got, "\netc\n") {
			t.Errorf("resolv.conf and hostname are %q", got)
		}
		noCanary(t, canary, "the files of /etc", c.Output("cat /etc/* 2>/dev/null; true"), c.Status())
		c.Output("echo x > /etc/mark; echo y > /etc/mtab; echo z > /etc/passwd; true") // the gate sees where that went
	}
	for _, s := range shapes(canary.Dir) {
		t.Run("etc is "+s.what, func(t *testing.T) {
			check(t, pod.ContainerConfig("c"+harness.ID(), hostileImage(t, n, v1.Config{}, func(tree *testimage.Tree) { s.add(tree, "etc") }), forever...))
		})
	}
	for _, s := range shapes(filepath.Join(canary.Dir, "file")) {
		t.Run("its files are "+s.what, func(t *testing.T) {
			check(t, pod.ContainerConfig("c"+harness.ID(), hostileImage(t, n, v1.Config{}, func(tree *testimage.Tree) {
				for _, name := range []string{"hosts", "hostname", "resolv.conf", "mtab"} {
					s.add(tree, "etc/"+name)
				}
			}), forever...))
		})
	}
	t.Run("its files are folders", func(t *testing.T) {
		image := hostileImage(t, n, v1.Config{}, func(tree *testimage.Tree) {
			for _, name := range []string{"hosts", "hostname", "resolv.conf", "mtab"} {
				tree.Dir("etc/"+name, 0o755)
			}
		})
		c, err := attempt(t, pod, func() *runtimeapi.ContainerConfig {
			config := pod.ContainerConfig("c"+harness.ID(), image, forever...)
			config.Mounts = append(config.Mounts, hosts)
			return config
		}())
		if err == nil {
			c.Remove()
			return
		}
		if code := harness.Code(err); code != codes.InvalidArgument && code != codes.FailedPrecondition {
			t.Errorf("a file over a folder: %v", err)
		}
	})
}

// Rows: S11, S17, S16 (part)
func TestUserFilesOfAnImageAreNotPlain(t *testing.T) {
	n, canary := attacked(t)
	pod := n.RunPod(t, "users")
	ways := map[string]func(*runtimeapi.ContainerConfig){
		"the image's user": func(*runtimeapi.ContainerConfig) {},
		"a number":         func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = id(1234) },
		"numbers, strict": func(c *runtimeapi.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroupsPolicy = id(1234), id(5678), runtimeapi.SupplementalGroupsPolicy_Strict
		},
		"a name": func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "daemon" },
	}
	all := append(shapes(filepath.Join(canary.Dir, "file")),
		shape{"a folder", func(tree *testimage.Tree, name string) { tree.Dir(name, 0o755) }},
		shape{"64 MiB of nothing", func(tree *testimage.Tree, name string) { tree.File(name, 0o644, make([]byte, 64<<20)) }},
		shape{"a million users", func(tree *testimage.Tree, name string) {
			tree.File(name, 0o644, bytes.Repeat([]byte("daemon:x:5:daemon:daemon,default-user:/:\n"), 1<<20))
		}},
	)
	for _, s := range all {
		for _, file := range []string{"passwd", "group"} {
			t.Run(file+" is "+s.what, func(t *testing.T) {
				image := hostileImage(t, n, v1.Config{}, func(tree *testimage.Tree) { s.add(tree, "etc/"+file) })
				for way, change := range ways {
					config := pod.ContainerConfig("c"+harness.ID(), image, forever...)
					change(config)
					c, err := attempt(t, pod, config)
					noCanary(t, canary, way, err)
					if err != nil {
						if code := harness.Code(err); code != codes.InvalidArgument {
							t.Errorf("%s: %v", way, err)
						}
						continue
					}
					noCanary(t, canary, way, c.Output("testserver identity; for f in /etc/passwd /etc/group; do [ ! -f $f ] || head -c 2048 $f; done 2>/dev/null; true"), c.Status())
					c.Remove()
				}
			})
		}
	}
}

// A container that replaces its own passwd by a FIFO holds up only the execs in it, and none for longer than its time:
// Docker reads the file at each exec whose user is not root by default.
//
// Rows: S11 (part)
func TestPasswdOfARunningContainerBecomesAFIFO(t *testing.T) {
	n, _ := attacked(t)
	image := hostileImage(t, n, v1.Config{User: "1000"}, func(tree *testimage.Tree) { tree.OwnedDir("etc", 0o755, 1000, 1000) })
	c := n.RunPod(t, "fifo").Run("c", image, forever)
	reader := n.Shim.PID() // who could hang in a thread
	if n.Docker != nil {
		reader = n.Docker.PID()
	}
	c.Output("mv /etc/passwd /etc/passwd.old && mkfifo /etc/passwd && mv /etc/group /etc/group.old && mkfifo /etc/group")
	before := harness.BusyThreads(reader)
	limit := int64(1)
	if harness.Native() {
		limit = 30 // it is to run, which takes its time on a busy machine
	}
	for range 20 {
		began := time.Now()
		reply, err := n.Shim.Runtime.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}, Timeout: limit})
		if took := time.Since(began); took > time.Duration(limit)*time.Second+20*time.Second {
			t.Errorf("an exec took %v", took)
		}
		if native := harness.Native(); (err == nil) != native { // which has read the file when it made the container
			t.Errorf("it ran: %v, %v", reply, err)
		}
	}
	// One that hangs in dockerd for ever costs it a thread, and 10 000 of them are its end.
	harness.Eventually(t, 20*time.Second, "no thread to hang", func() error {
		if after := harness.BusyThreads(reader); after > before+5 {
			return fmt.Errorf("process %d had %d threads at work and has %d", reader, before, after)
		}
		return nil
	})
}

// Rows: S06
func TestWorkingDirectoriesThatAreOpenFiles(t *testing.T) {
	n, canary := attacked(t)
	pod := n.RunPod(t, "workdir")
	climb := "cat ../../../../../../../.." + canary.Dir + "/file " + canary.Dir + "/file; pwd -P"
	for _, dir := range []string{"/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/fd/64", "/proc/1/fd/9", "/proc/../proc/self/fd/7", "/dev/fd/7", "proc/self/fd/7/../8", "/proc/self/task/1/fd/7"} {
		image := hostileImage(t, n, v1.Config{WorkingDir: dir}, nil)
		c, err := attempt(t, pod, pod.ContainerConfig("c"+harness.ID(), image, "sh", "-c", climb))
		if err == nil {
			t.Errorf("the image's %s: it started", dir)
			c.Remove()
		}
		noCanary(t, canary, dir, err)
	}
	for number := 3; number <= 64; number++ {
		for _, dir := range []string{fmt.Sprintf("/proc/self/fd/%d", number), fmt.Sprintf("/dev/fd/%d", number)} {
			config := pod.ContainerConfig("c", n.Registry.Ref(harness.Busybox), "sh", "-c", climb)
			config.WorkingDir = dir
			_, err := pod.TryCreate(config)
			wantCode(t, "CRI's "+dir, err, codes.InvalidArgument)
		}
	}
	// A link cannot be seen in the configuration: there the OCI runtime keeps the process in, or does not start it.
	image := hostileImage(t, n, v1.Config{}, func(tree *testimage.Tree) {
		for number := 3; number <= 12; number++ {
			tree.Symlink(fmt.Sprintf("w%d", number), fmt.Sprintf("/proc/self/fd/%d", number))
		}
	})
	for number := 3; number <= 12; number++ {
		config := pod.ContainerConfig("c"+harness.ID(), image, "sh", "-c", climb)
		config.WorkingDir = fmt.Sprintf("/w%d", number)
		c, err := attempt(t, pod, config)
		noCanary(t, canary, config.WorkingDir, err)
		if err == nil {
			c.WaitExit()
			c.Remove() // the gate reads its log
		}
	}
	// An exec is where its container is, and has no other descriptor than its own three, and that of the folder it lists.
	c := pod.Run("plain", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "ls /proc/self/fd; exec sleep 1000"})
	const four = "0\n1\n2\n3\n"
	if got := harness.JoinLog(c.WaitLines(4), "stdout"); got != four {
		t.Errorf("descriptors of a container: %q", got)
	}
	if got := c.Output("ls /proc/self/fd"); got != four {
		t.Errorf("descriptors of an exec: %q", got)
	}
}

// Rows: S26
func TestLabelsOfAnImageAreNobodysOrders(t *testing.T) {
	n := node(t)
	canary := n.HostUnchanged(t)
	hostile := map[string]string{
		"io.kubernetes.docker.type":                         "podsandbox",
		"io.kubernetes.sandbox.id":                          strings.Repeat("a", 64),
		"io.kubernetes.container.logpath":                   filepath.Join(canary.Dir, "file"),
		"io.kubernetes.container.name":                      "POD",
		"io.kubernetes.pod.uid":                             "another",
		"io.kubernetes.pod.extra":                           "hostile",
		"io.crishim.probe":                                  n.Shim.RootDir,
		"io.crishim.holder":                                 n.Shim.RootDir,
		"io.crishim.mounts":                                 "../../../../../.." + canary.Dir,
		"io.crishim.logdirectory":                           canary.Dir,
		"io.crishim.image-labels":                           `["app"]`,
		"io.crishim.privileged":                             "true",
		"annotation.io.kubernetes.container.preStopHandler": `{"httpGet":{"host":"169.254.169.254","path":"/hostile"}}`,
		"containerd.io/restart.loguri":                      "binary:///bin/hostile",
		"com.docker.compose.project":                        "hostile",
		"maintainer":                                        "hostile",
		"app":                                               "of-the-image",
	}
	image := hostileImage(t, n, v1.Config{Labels: hostile}, nil)
	pod := n.RunPod(t, "labels")
	config := pod.ContainerConfig("c", image, forever...)
	config.Labels["app"] = "mine"
	c := pod.Create(config)
	c.Start()
	check := func(when string) {
		t.Helper()
		status := c.Status()
		if !maps.Equal(status.Labels, config.Labels) || !maps.Equal(status.Annotations, config.Annotations) {
			t.Errorf("%s: labels %v and annotations %v", when, status.Labels, status.Annotations)
		}
		if status.State != runtimeapi.ContainerState_CONTAINER_RUNNING || status.LogPath != filepath.Join(pod.Config.LogDirectory, config.LogPath) {
			t.Errorf("%s: %v", when, status)
		}
	}
	check("at first")
	if n.Docker != nil {
		var inspect struct {
			Config struct{ Labels map[string]string }
		}
		n.Docker.Get("/containers/"+c.ID+"/json", &inspect)
		for key, value := range inspect.Config.Labels {
			if value != "" && value == hostile[key] && key != "maintainer" {
				t.Errorf("Docker's label %s is the image's %q", key, value)
			}
		}
	}
	// What is known of a container whose record is lost comes from the engine alone.
	record := recordOf(t, n, c.ID)
	n.Shim.Stop()
	if err := os.Remove(record); err != nil {
		t.Error(err)
	}
	n.Shim.Start()
	check("with its record lost")
	c.Stop(0)
	c.Remove()
}

// recordOf is the file of the daemon's record of a container.
func recordOf(t *testing.T, n *harness.Node, id string) string {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(n.Shim.RootDir, "state", "containers", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		if data, err := os.ReadFile(record); err == nil && strings.Contains(string(data), id) {
			return record
		}
	}
	t.Fatalf("%s is in none of %v", id, records)
	return ""
}
