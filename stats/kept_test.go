package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// keptOpen counts the descriptors of this process that lie below dir.
func keptOpen(t *testing.T, dir string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if rel, relErr := filepath.Rel(dir, target); err == nil && relErr == nil && filepath.IsLocal(rel) {
			n++
		}
	}
	return n
}

func readTwice(t *testing.T, r *Reader, now *time.Time, path, owner string) {
	t.Helper()
	for range 2 {
		*now = now.Add(2 * MaxAge)
		if _, err := r.sample(path, owner, ofPod); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesStayOpenUntilTheirContainerEnds(t *testing.T) {
	r, set, now := counters(t)
	budget := r.budget.Load()
	set(1)
	must(t, os.CopyFS(filepath.Join(r.root, "sys/fs/cgroup/other"), os.DirFS(filepath.Join(r.root, "sys/fs/cgroup/c"))))
	readTwice(t, r, now, "/c", "one")
	readTwice(t, r, now, "/other", "two")
	if n := keptOpen(t, r.root); n != 4 || r.budget.Load() != budget-4 {
		t.Errorf("%d files are open, want memory.current and cpu.stat of two; budget %d of %d", n, r.budget.Load(), budget)
	}
	set(2_000_000)
	*now = now.Add(2 * MaxAge)
	if s, err := r.sample("/c", "one", ofPod); err != nil || s.CPU.Usage != 2_000_000_000 {
		t.Errorf("an open file is not read anew: %+v, %v", s.CPU, err)
	}
	r.Forget("one")
	if n := keptOpen(t, r.root); n != 2 {
		t.Errorf("%d files are open after the end of one of two", n)
	}
	r.Forget("two")
	if n := keptOpen(t, r.root); n != 0 || r.budget.Load() != budget {
		t.Errorf("%d files are open after the end of all, budget %d of %d", n, r.budget.Load(), budget)
	}
}

func TestFilesThatNobodyReadsAreClosed(t *testing.T) {
	r, set, now := counters(t)
	set(1)
	readTwice(t, r, now, "/c", "one")
	*now = now.Add(closeAfter + time.Second)
	_, _ = r.sample("/other", "two", ofPod)
	if n := keptOpen(t, r.root); n != 0 || len(r.known) != 1 {
		t.Errorf("%d files are open, %d histories kept", n, len(r.known))
	}
	readTwice(t, r, now, "/c", "one")
	if n := keptOpen(t, r.root); n != 2 {
		t.Errorf("%d files are open once they are read again", n)
	}
	r.Forget("one")
}

func TestBeyondTheBudgetNothingStaysOpen(t *testing.T) {
	r, set, now := counters(t)
	r.budget.Store(1)
	set(1)
	readTwice(t, r, now, "/c", "one")
	if n := keptOpen(t, r.root); n != 1 || r.budget.Load() != 0 {
		t.Errorf("%d files are open of 1, budget left %d", n, r.budget.Load())
	}
	r.Forget("one")
}

// A process id comes again, in another pod and another network.
func TestNetworkFilesAreOfOnePod(t *testing.T) {
	r, _, now := counters(t)
	budget := r.budget.Load()
	dev := func(interfaces string) {
		t.Helper()
		file := filepath.Join(r.root, "proc/7/net/dev")
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		_ = os.Remove(file)
		must(t, os.WriteFile(file, []byte(interfaces+": 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"), 0o644))
	}
	names := func(pod string) (names string) {
		t.Helper()
		interfaces, at, err := r.network(pod, 7)
		if err != nil || !at.Equal(*now) {
			t.Fatal(at, err)
		}
		for _, n := range interfaces {
			names += n.Name
		}
		return names
	}
	dev("eth0")
	names("one")
	dev("eth1")
	if got := names("one"); got != "eth0" || keptOpen(t, r.root) != 1 {
		t.Errorf("a kept file is not read again: %s", got)
	}
	if got := names("two"); got != "eth1" {
		t.Errorf("another pod is answered with %s", got)
	}
	r.Forget("one")
	if got := names("one"); got != "eth1" {
		t.Errorf("%s after the end", got)
	}
	*now = now.Add(closeAfter + time.Second)
	names("two")
	if n := keptOpen(t, r.root); n != 1 {
		t.Errorf("%d files are open a minute after one was read", n)
	}
	*now = now.Add(forgetAfter)
	names("two")
	r.Forget("two")
	if n := keptOpen(t, r.root); n != 0 || r.budget.Load() != budget || len(r.known) != 0 {
		t.Errorf("%d files are open, budget %d of %d, %d histories", n, r.budget.Load(), budget, len(r.known))
	}
}

// The kernel gives a page of such a file at once.
func TestAllOfManyInterfacesAreRead(t *testing.T) {
	const count = 70
	made := make(chan error, 1)
	counted := make(chan struct{})
	thread := make(chan int, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		for i := 0; i < count/2 && err == nil; i++ {
			err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("one%d", i)}, PeerName: fmt.Sprintf("other%d", i)})
		}
		thread <- unix.Gettid()
		made <- err
		<-counted
	}()
	defer close(counted)
	tid := <-thread
	if err := <-made; err != nil {
		t.Skipf("interfaces cannot be made here: %v", err)
	}
	r, err := NewReader("/")
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	defer r.Forget("pod")
	for _, from := range []string{"a new file", "a kept one"} {
		interfaces, _, err := r.network("pod", tid)
		if err != nil || len(interfaces) != count {
			t.Errorf("%s: %d interfaces of %d, %v", from, len(interfaces), count, err)
		}
	}
}

// A reader that comes too late for the end of a container keeps nothing of it.
func TestReadersAndEndsMeet(t *testing.T) {
	r, set, _ := counters(t)
	set(1)
	r.clock = time.Now
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 500 {
				if _, err := r.sample("/c", fmt.Sprint(i%2), extent(i%3)); err != nil {
					t.Error(err)
				}
				r.Forget(fmt.Sprint(i % 2))
			}
		})
	}
	all.Wait()
	r.Forget("0")
	r.Forget("1")
	if n := keptOpen(t, r.root); n != 0 {
		t.Errorf("%d files are open", n)
	}
}

// A cgroup that is removed and made again is another one, and its files must be opened anew.
func TestACgroupOfTheSameNameIsReadAnew(t *testing.T) {
	r, err := NewReader("/")
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	now := time.Now()
	r.clock = func() time.Time { return now }
	path := fmt.Sprintf("/crishim-stats-test-%d", os.Getpid())
	dirs := []string{"/sys/fs/cgroup" + path}
	if tree, ok := r.tree.(v1); ok {
		dirs = []string{tree.dirs["memory"] + path, tree.dirs["cpuacct"] + path}
	}
	make := func() {
		t.Helper()
		for _, dir := range dirs {
			if err := os.MkdirAll(dir, 0o755); err != nil { // joined controllers have one folder
				t.Skipf("cgroups cannot be made here: %v", err)
			}
		}
	}
	remove := func() {
		for _, dir := range dirs {
			_ = unix.Rmdir(dir)
		}
	}
	t.Cleanup(remove)
	make()
	if _, err := os.Stat(r.tree.procs(path) + "/memory.stat"); err != nil {
		t.Skipf("new cgroups have no memory controller here: %v", err)
	}
	budget := r.budget.Load()
	readTwice(t, r, &now, path, "one")
	if r.budget.Load() == budget {
		t.Fatal("nothing is kept open")
	}
	remove()
	make()
	readTwice(t, r, &now, path, "one")
	remove()
	now = now.Add(2 * MaxAge)
	if _, err := r.sample(path, "one", ofPod); !errdefs.IsNotFound(err) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
	if n := r.budget.Load(); n != budget || len(r.known) != 0 {
		t.Errorf("budget %d, before %d; %d histories", n, budget, len(r.known))
	}
}
