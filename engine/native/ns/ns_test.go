package ns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/mounttree"
	"crishim/internal/process"
)

// pins are in a folder that is unmounted, with what is in it, at the end.
func pins(t *testing.T) *Pins {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir := filepath.Join(t.TempDir(), "ns")
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			t.Error(err)
		}
	})
	return p
}

// inside runs f in the namespaces of a set.
func inside(t *testing.T, set Set, f func() error) {
	t.Helper()
	err := onThread(func() error {
		for _, kind := range []Kind{Net, IPC, UTS} {
			if set[kind] == "" {
				continue
			}
			if err := enter(set[kind], kind); err != nil {
				return err
			}
		}
		return f()
	})
	if err != nil {
		t.Error(err)
	}
}

func sysctl(name string) (string, error) {
	data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.Join(strings.Fields(string(data)), " "), err
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// Rows: S24 (part), S61 (part)
func TestAPodsNamespacesArePinnedWithTheirHostnameAndSysctls(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for _, name := range []string{"net.ipv4.ip_unprivileged_port_start", "kernel.msgmax", "net.ipv4.ip_local_port_range"} {
		if before[name], err = sysctl(name); err != nil {
			t.Fatal(err)
		}
	}
	maps := []engine.IDMapping{{HostID: 200000, Length: 65536}}
	for name, user := range map[string]*engine.UserNamespace{"host's users": nil, "own users": {UIDs: maps, GIDs: maps}} {
		t.Run(name, func(t *testing.T) {
			p := pins(t)
			set, err := p.Create("pod", &Config{User: user, Net: true, IPC: true, UTS: true, Hostname: "my-pod", Sysctls: map[string]string{
				"net.ipv4.ip_local_port_range": "20000 20100", "kernel.msgmax": "9000",
			}})
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(set) != fmt.Sprint(pinned(t, p)) || (set[User] != "") != (user != nil) {
				t.Errorf("made %v, found %v", set, pinned(t, p))
			}
			inside(t, set, func() error {
				hostname, err := os.Hostname()
				if err != nil || hostname != "my-pod" {
					t.Errorf("hostname %s, %v", hostname, err)
				}
				ping := "0 2147483647"
				if user != nil {
					ping = "200000 265535"
				}
				for name, want := range map[string]string{
					"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": ping, "kernel.msgmax": "9000", "net.ipv4.ip_local_port_range": "20000 20100",
				} {
					if got, err := sysctl(name); err != nil || got != want {
						t.Errorf("%s is %q, %v; want %q", name, got, err, want)
					}
				}
				links, err := net.Interfaces()
				if err != nil || len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp != 0 {
					t.Errorf("interfaces %v, %v", links, err)
				}
				return nil
			})
			if user != nil {
				owner, err := os.Open(set[Net])
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = owner.Close() }()
				fd, err := unix.IoctlRetInt(int(owner.Fd()), unix.NS_GET_USERNS)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = unix.Close(fd) }()
				if same, err := mounttree.At(set[User], fd); err != nil || !same {
					t.Errorf("the network namespace is not the user namespace's: %v", err)
				}
			}
			if err := p.Remove("pod"); err != nil {
				t.Fatal(err)
			}
			if err := p.Remove("pod"); err != nil || len(pinned(t, p)) != 0 {
				t.Errorf("after the removal: %v, %v", pinned(t, p), err)
			}
			if ids, err := p.List(); err != nil || len(ids) != 0 {
				t.Errorf("left %v, %v", ids, err)
			}
		})
	}
	if now, err := os.Hostname(); err != nil || now != host {
		t.Errorf("the host's name is %s, %v", now, err)
	}
	for name, value := range before {
		if now, err := sysctl(name); err != nil || now != value {
			t.Errorf("the host's %s is %q, was %q (%v)", name, now, value, err)
		}
	}
}

func TestNoThreadOfOursStaysInANamespaceOfAPod(t *testing.T) {
	p := pins(t)
	ours := inode(t, "/proc/self/ns/net")
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			id := engine.PodID("pod-" + strconv.Itoa(i))
			if _, err := p.Create(id, &Config{Net: true, UTS: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	// A thread ends a moment after its goroutine.
	deadline := time.Now().Add(time.Minute)
	for strangers(t, ours) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are still in namespaces of pods", strangers(t, ours))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := inode(t, "/proc/self/ns/net"); got != ours {
		t.Errorf("the process is in namespace %d, was in %d", got, ours)
	}
	for i := range 20 {
		if err := p.Remove(engine.PodID("pod-" + strconv.Itoa(i))); err != nil {
			t.Error(err)
		}
	}
}

// strangers are our threads in other network namespaces.
func strangers(t *testing.T, ours uint64) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st) == nil && st.Ino != ours {
			n++
		}
	}
	return n
}

func TestThePinsAreAPrivateMountMadeOnce(t *testing.T) {
	p := pins(t)
	if _, err := Open(p.dir); err != nil {
		t.Fatal(err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(p.dir))
	if err != nil {
		t.Fatal(err)
	}
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != p.dir, false })
	if err != nil || len(mounts) != 1 || len(all) != 1 || mounts[0].Optional != "" {
		t.Errorf("%+v, %d mounts, %v", mounts, len(all), err)
	}
}

// Rows: S24 (part)
func TestNoSysctlOfTheHostIsSet(t *testing.T) {
	p := pins(t)
	before, err := sysctl("kernel.core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"of no namespace":     {Net: true, IPC: true, Sysctls: map[string]string{"kernel.core_pattern": "|/x"}},
		"the host's network":  {IPC: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		"the host's ipc":      {Net: true, Sysctls: map[string]string{"kernel.msgmax": "1"}},
		"climbing":            {Net: true, Sysctls: map[string]string{"net.ipv4.....kernel.core_pattern": "|/x"}},
		"with slashes":        {Net: true, Sysctls: map[string]string{"net./../kernel/core_pattern": "|/x"}},
		"of two lines":        {Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1\n1"}},
		"absent":              {Net: true, Sysctls: map[string]string{"net.ipv4.no_such": "1"}},
		"with a value of bad": {Net: true, Sysctls: map[string]string{"net.ipv4.ip_local_port_range": "bad"}},
	} {
		if set, err := p.Create("pod", &c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, set, err)
		}
		if ids, err := p.List(); err != nil || len(ids) != 0 {
			t.Errorf("%s: left %v, %v", name, ids, err)
		}
	}
	if now, _ := sysctl("kernel.core_pattern"); now != before {
		t.Errorf("core_pattern is %q, was %q", now, before)
	}
}

func TestAProcessesNamespaceIsPinnedAndOutlivesIt(t *testing.T) {
	p := pins(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	pid := cmd.Process.Pid
	ticks, err := process.StartTicks(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pin("pod", "c1", UTS, pid, ticks+1); !errdefs.IsUnavailable(err) {
		t.Errorf("another process with the pid: %v", err)
	}
	path, err := p.Pin("pod", "c1", UTS, pid, ticks)
	if err != nil {
		t.Fatal(err)
	}
	want := inode(t, "/proc/"+strconv.Itoa(pid)+"/ns/uts")
	if again, err := p.Pin("pod", "c1", UTS, pid, ticks); err != nil || again != path {
		t.Errorf("again: %s, %v", again, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	uts, _ := look(path, UTS)
	if net, _ := look(path, Net); inode(t, path) != want || !uts || net {
		t.Errorf("pinned %d, want %d", inode(t, path), want)
	}
	if err := p.Unpin("pod", "c1"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin is there: %v", err)
	}
	if _, err := p.Pin("pod", "c1", UTS, pid, ticks); !errdefs.IsUnavailable(err) {
		t.Errorf("a process that has ended: %v", err)
	}
}

// Rows: S28 (part), R41 (part)
func TestWhatIsInThePlaceOfAPinIsRemovedAndNothingBehindIt(t *testing.T) {
	p := pins(t)
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.MkdirAll(filepath.Join(canary, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, place := range map[string]func(path string) error{
		"a link":   func(path string) error { return os.Symlink(canary, path) },
		"a file":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a folder": func(path string) error { return os.MkdirAll(filepath.Join(path, "y"), 0o700) },
		"another mount": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), unix.Mount(canary, path, "", unix.MS_BIND, ""))
		},
		"nothing":         func(string) error { return nil },
		"a pin of others": func(path string) error { return bind("/proc/self/ns/uts", path) },
	} {
		dir := p.path("pod", "")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := place(filepath.Join(dir, "net")); err != nil {
			t.Fatal(name, err)
		}
		if set := pinned(t, p); len(set) != 0 {
			t.Errorf("%s is taken for %v", name, set)
		}
		if err := p.Remove("pod"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := place(p.path("pod", "")); err != nil && name != "nothing" {
			t.Fatal(name, err)
		}
		if err := p.Remove("pod"); err != nil {
			t.Errorf("%s as the pod's folder: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(canary, "x")); err != nil {
			t.Fatalf("%s led out: %v", name, err)
		}
	}
	for _, id := range []engine.PodID{"", "..", ".", "a/b", "a\x00", engine.PodID(strings.Repeat("a", 200))} {
		if _, err := p.Create(id, &Config{UTS: true}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
		if err := p.Unpin("pod", string(id)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
	}
}
