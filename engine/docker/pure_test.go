package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
	"crishim/internal/process"
)

// fakeUsers is an image.
type fakeUsers struct{ user, passwd, group string }

func (f fakeUsers) configUser(context.Context, engine.ImageID) (string, error) { return f.user, nil }
func (f fakeUsers) files(context.Context, engine.ImageID) ([]byte, []byte, error) {
	return []byte(f.passwd), []byte(f.group), nil
}

// Rows: S14 (part)
func TestUserIsDecided(t *testing.T) {
	image := fakeUsers{passwd: passwd, group: groups}
	for name, test := range map[string]struct {
		users    fakeUsers
		security engine.Security
		want     string
	}{
		"a number needs no look-up":       {fakeUsers{}, engine.Security{UID: ptr(int64(5)), SupplementalGroups: []int64{9}}, "5 [9]"},
		"a number, Strict with a group":   {fakeUsers{}, engine.Security{UID: ptr(int64(5)), GID: ptr(int64(6)), GroupsPolicy: engine.GroupsStrict}, "5:6 []"},
		"a name and its groups":           {image, engine.Security{Username: "app"}, "1234:5678 [50 60]"},
		"a name, Strict":                  {image, engine.Security{Username: "app", GroupsPolicy: engine.GroupsStrict}, "1234:5678 []"},
		"the image's user and group":      {fakeUsers{"app:staff", passwd, groups}, engine.Security{}, "1234:50 [50 60]"},
		"the image's group is overridden": {fakeUsers{"app:staff", passwd, groups}, engine.Security{GID: ptr(int64(1)), Username: "app", GroupsPolicy: engine.GroupsStrict}, "1234:1 []"},
		"an image without a user is root": {fakeUsers{}, engine.Security{}, "0 []"},
		"no group of an empty name":       {fakeUsers{"", "x:x:1:1:::", ":x:7:\ng:x:8:,\n"}, engine.Security{UID: ptr(int64(3)), GID: ptr(int64(4))}, "3:4 []"},
	} {
		got, err := resolveUser(t.Context(), &test.security, testImage, test.users)
		if s := fmt.Sprint(got.User, " ", got.GroupAdd); err != nil || s != test.want {
			t.Errorf("%s: %q, %v, want %q", name, s, err, test.want)
		}
	}
	for name, test := range map[string]struct {
		users    fakeUsers
		security engine.Security
	}{
		"the image's number is too large":  {fakeUsers{user: "4294967296", passwd: passwd}, engine.Security{}},
		"the image's group is negative":    {fakeUsers{user: "0:-1", passwd: passwd}, engine.Security{}},
		"a uid beyond Docker's":            {image, engine.Security{UID: ptr(int64(1) << 31)}},
		"a negative uid":                   {image, engine.Security{UID: ptr(int64(-1))}},
		"a negative supplementary group":   {image, engine.Security{UID: ptr(int64(1)), SupplementalGroups: []int64{-1}}},
		"an unknown name":                  {image, engine.Security{Username: "nobody-here"}},
		"an unknown group":                 {fakeUsers{user: "app:nothing", passwd: passwd, group: groups}, engine.Security{}},
		"a group without a user":           {image, engine.Security{GID: ptr(int64(1))}},
		"a line without an end":            {fakeUsers{user: "app", passwd: strings.Repeat("x", 2<<20)}, engine.Security{}},
		"a name whose uid is out of range": {fakeUsers{user: "app", passwd: "app:x:4294967296:0::/:"}, engine.Security{}},
	} {
		if got, err := resolveUser(t.Context(), &test.security, testImage, test.users); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// Rows: S51 (part)
func TestProcessesOfAnExecAreFound(t *testing.T) {
	all := []proc{
		{1, 0, 1, 1}, {10, 1, 10, 1}, // the container's first process, a neighbour
		{20, 5, 20, 2},                   // the exec
		{21, 20, 20, 3}, {22, 21, 22, 4}, // its child; a grandchild in a session of its own
		{23, 1, 20, 5}, // an orphan in the exec's session
		{24, 1, 22, 6}, // an orphan in the grandchild's
		{30, 10, 10, 7},
	}
	got := map[int]bool{}
	for _, p := range execProcesses(all, 20) {
		got[p.pid] = true
	}
	for _, pid := range []int{20, 21, 22, 23, 24} {
		if !got[pid] {
			t.Errorf("%d is not found", pid)
		}
		delete(got, pid)
	}
	if len(got) > 0 {
		t.Errorf("not the exec's: %v", got)
	}
}

// Rows: R41 (part), R16 (part)
func TestPinIsSafe(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	p := &pins{dir: t.TempDir()}
	ticks, err := process.StartTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const id = engine.PodID(testPod)
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := p.path(id)
	for name, spoil := range map[string]func() error{
		"nothing":               func() error { return nil },
		"the pin itself":        func() error { _, err := p.pin(id, os.Getpid(), ticks); return err },
		"a file":                func() error { return os.WriteFile(path, nil, 0o600) },
		"a link to a file":      func() error { return os.Symlink(canary, path) },
		"a link to a namespace": func() error { return os.Symlink("/proc/self/ns/net", path) },
		"a folder with a file":  func() error { return os.MkdirAll(filepath.Join(path, "x", "y"), 0o700) },
		"another namespace": func() error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return unix.Mount("/proc/self/ns/uts", path, "", unix.MS_BIND, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			got, err := p.pin(id, os.Getpid(), ticks)
			if err != nil || got != path || p.pinned(id) != path {
				t.Fatalf("pin: %q, %v", got, err)
			}
			ns, err := os.Open("/proc/self/ns/net")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ns.Close() }()
			if same, err := mounttree.At(path, int(ns.Fd())); err != nil || !same {
				t.Errorf("the pin is another namespace: %v", err)
			}
			for range 2 {
				if err := p.release(id); err != nil {
					t.Fatal(err)
				}
			}
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			if err := p.release(id); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("left behind: %v", err)
			}
			if data, err := os.ReadFile(canary); err != nil || string(data) != "here" {
				t.Errorf("the link's target: %v", err)
			}
		})
	}
	if _, err := p.pin(id, os.Getpid(), ticks+1); !errdefs.IsUnavailable(err) {
		t.Errorf("a recycled pid: %v", err)
	}
}

func TestCgroupFilesAreAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(a, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := writeCgroupFiles([]cgroupFile{{path: a, value: "new"}, {path: filepath.Join(dir, "absent"), value: "0", optional: true}, {path: b, value: "1"}})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("an absent controller: %v", err)
	}
	if data, _ := os.ReadFile(a); !strings.HasPrefix(string(data), "old") {
		t.Errorf("the first file has %q", data)
	}
	if _, err := os.Stat(b); err == nil {
		t.Error("a file was made")
	}
}

func TestLimitsThatDockerCannotSay(t *testing.T) {
	old := &engine.Resources{Unified: map[string]string{"memory.high": "1", "memory.min": "2", "cpu.weight": "3"}, Hugepages: []engine.HugepageLimit{{PageSize: "1GB"}}}
	now := &engine.Resources{Unified: map[string]string{"memory.swap.max": "5"}, Hugepages: []engine.HugepageLimit{{PageSize: "2MB", Limit: 4096}}}
	v2 := &facts{cgroupV2: true}
	files, err := v2.limitsByFile("/x", now, old)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.path+"="+f.value)
	}
	want := "/x/hugetlb.1GB.max=max /x/hugetlb.2MB.max=4096 /x/memory.swap.max=5 /x/memory.high=max /x/memory.min=0"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("%s\nwant %s", s, want)
	}
	files, err = v2.limitsByFile("/x", &engine.Resources{}, &engine.Resources{})
	if err != nil || len(files) != 1 || files[0].value != "0" || !strings.HasSuffix(files[0].path, swapMax) {
		t.Errorf("a container without a memory limit may swap: %v, %v", files, err)
	}
}

func TestWrongOptionsAreAllNamed(t *testing.T) {
	_, err := New(Options{Socket: "tcp://1.2.3.4:2375", RunDir: "run", ContainerLog: "x", Network: "y"})
	if !errdefs.IsInvalidArgument(err) {
		t.Fatal(err)
	}
	for _, want := range []string{"tcp://", "run", "root", `"x"`, `"y"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestLogsAreTrustedBelowTheirPod(t *testing.T) {
	for _, test := range []struct{ what, path, dir, want string }{
		{"the pod's folder", "/data/logs/ns_pod_uid/c/0.log", "/data/logs/ns_pod_uid", "/data/logs/ns_pod_uid"},
		{"the kubelet's, of another shim's container", "/var/log/pods/ns_pod_uid/c/0.log", "", podLogs},
		{"the file's own, of another shim's elsewhere", "/data/logs/ns_pod_uid/c/0.log", "", "/data/logs/ns_pod_uid/c"},
		{"not a folder that the file is not in", "/data/logs/a/0.log", "/data/logs/a/0", "/data/logs/a"},
	} {
		if got := trustedRoot(test.path, test.dir); got != test.want {
			t.Errorf("%s: %s, want %s", test.what, got, test.want)
		}
	}
}

// What this host refuses beside a request is no engine that is away.
func TestAnErrnoOfThisHostIsNoLostAnswer(t *testing.T) {
	reset := &net.OpError{Op: "read", Net: "unix", Err: os.NewSyscallError("read", unix.ECONNRESET)}
	absent, err := client.NewClientWithOpts(client.WithHost("unix:///absent"))
	if err != nil {
		t.Fatal(err)
	}
	_, away := absent.Ping(t.Context())
	for _, test := range []struct {
		err         error
		unavailable bool
	}{
		{&os.PathError{Op: "mount", Path: "/x", Err: unix.EBUSY}, false},
		{os.NewSyscallError("mount", unix.ETIMEDOUT), false},
		{unix.EAGAIN, false},
		{reset, true},
		{&url.Error{Op: "Post", URL: "http://docker/containers/create", Err: reset}, true},
		{fmt.Errorf("read the answer: %w", io.ErrUnexpectedEOF), true},
		{away, true},
	} {
		if got := requestError(t.Context(), t.Context(), test.err); errdefs.IsUnavailable(got) != test.unavailable || !errors.Is(got, test.err) {
			t.Errorf("%v: %v", test.err, got)
		}
	}
}

// What dockerd runs is served also after the disk of the root folder became read-only.
//
// Rows: R20 (part)
func TestTheEngineIsMadeOnAReadOnlyRootFolder(t *testing.T) {
	opts := Options{Socket: "unix:///run/nobody.sock", RunDir: t.TempDir(), RootDir: t.TempDir()}
	if err := unix.Mount(opts.RootDir, opts.RootDir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(opts.RootDir, unix.MNT_DETACH) })
	if err := unix.Mount("", opts.RootDir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := New(opts); err != nil {
		t.Error(err)
	}
}
