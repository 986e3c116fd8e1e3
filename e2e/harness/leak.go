package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// footprint is everything that a pod could leave on a node: lists that must be equal before and after, and the daemon's
// own numbers, which may grow a little.
type footprint struct {
	lists   map[string][]string
	numbers map[string]int
	// stacks are the daemon's goroutines, for the message.
	stacks string
}

// margins are how much the daemon's numbers may grow. Idle connections to the engine are taken off goroutines and
// descriptors before: they close after 30 s, for which every test would wait. Threads are those at work, see BusyThreads.
// Memory may grow by 5 % where that is more; see margin.
var margins = map[string]int{"goroutines": 5, "descriptors": 5, "threads": 3, "inotify instances": 0, "bytes of live heap": 10 << 20, "resident bytes": 10 << 20}

// margin is how much a number may grow from what it was.
func margin(name string, was int) int {
	m := margins[name]
	if strings.Contains(name, "bytes") {
		m = max(m, was/20)
	}
	if name == "resident bytes" {
		m *= int(slowdown()) // the race detector's shadow of the memory never shrinks
	}
	return m
}

// NoLeaks is gate LEAK0: call it at the start of a test, on a node without calls under way. The cleanup, which runs after
// those registered later, polls until mounts, namespaces, veths, cgroups, addresses, firewall rules, containers, temporary
// files and children are what they were, and the daemon's descriptors, threads and memory nearly so.
// The kinds in except are not looked at.
func (n *Node) NoLeaks(t T, except ...string) {
	t.Helper()
	before := n.footprint()
	t.Cleanup(func() { n.checkLeaks(t, before, except) })
}

func (n *Node) checkLeaks(t T, before footprint, except []string) {
	t.Helper()
	var problems []string
	deadline := time.Now().Add(leakLimit)
	for {
		after := n.footprint()
		for _, kind := range except {
			delete(after.lists, kind)
			delete(after.numbers, kind)
		}
		if problems = after.beyond(before); len(problems) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left behind after %v:\n%s", leakLimit, strings.Join(problems, "\n"))
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

const leakLimit = 60 * time.Second

// beyond says what is more in f than before.
func (f footprint) beyond(before footprint) []string {
	var problems []string
	for kind, list := range f.lists {
		for _, item := range list {
			if !slices.Contains(before.lists[kind], item) {
				problems = append(problems, kind+": "+item)
			}
		}
	}
	for name := range margins {
		if was, is := before.numbers[name], f.numbers[name]; was > 0 && is > was+margin(name, was) {
			problems = append(problems, fmt.Sprintf("%s of the daemon: %d, before %d", name, is, was))
			if name == "goroutines" {
				problems = append(problems, "its goroutines:\n"+f.stacks)
			}
		}
	}
	slices.Sort(problems)
	return problems
}

func (n *Node) footprint() footprint {
	f := footprint{numbers: map[string]int{}, lists: map[string][]string{
		"mount":         mountsUnder(n.Shim.dir),
		"cgroup":        Cgroups(n.CgroupParent()),
		"address":       n.CNI.Addresses(),
		"link":          links(),
		"firewall rule": firewallRules(),
		"file":          files(n.Shim.RunDir, n.Shim.RootDir),
		"folder":        folders(n.Shim.RunDir),
		"child":         children(n.Shim.PID()),
	}}
	// What a kubelet tells of the node is kept for the next start.
	f.lists["file"] = slices.DeleteFunc(f.lists["file"], func(name string) bool { return name == filepath.Join(n.Shim.RootDir, "pod-cidrs.json") })
	f.lists["process"], f.lists["unstarted process"] = cgroupProcesses(n.CgroupParent())
	// The parents of pods are the kubelet's.
	f.lists["cgroup"] = slices.DeleteFunc(f.lists["cgroup"], func(name string) bool {
		return name == "/kubepods" || name == "/kubepods/besteffort"
	})
	engines := []engine{n.engine()}
	if n.Shim.Both() {
		engines = append(engines, native{n.Shim})
	}
	for _, e := range engines {
		for kind, list := range e.lists() {
			f.lists[kind] = append(f.lists[kind], list...)
		}
	}
	f.stacks, f.numbers["goroutines"] = n.Shim.profile("goroutine?debug=1", "total ")
	idle := pooled(f.stacks)
	f.numbers["goroutines"] -= idle
	_, f.numbers["bytes of live heap"] = n.Shim.profile("heap?gc=1&debug=1", "# HeapAlloc = ")
	proc := filepath.Join("/proc", strconv.Itoa(n.Shim.PID()))
	f.numbers["threads"] = BusyThreads(n.Shim.PID())
	if entries, err := os.ReadDir(filepath.Join(proc, "fd")); err == nil {
		f.numbers["descriptors"] = len(entries) - idle/2 // a connection has a goroutine for each direction
		for _, e := range entries {
			if target, _ := os.Readlink(filepath.Join(proc, "fd", e.Name())); target == "anon_inode:inotify" {
				f.numbers["inotify instances"]++
			}
		}
	}
	f.numbers["resident bytes"] = residentBytes(n.Shim.PID())
	return f
}

// residentBytes is the anonymous memory of a process: of the program's file there is ever more, as ever more of it has run.
func residentBytes(pid int) int {
	for line := range strings.Lines(readString(filepath.Join("/proc", strconv.Itoa(pid), "status"))) {
		if text, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), " kB"))
			return kib << 10
		}
	}
	return 0
}

// shims are containerd's, by the ids of their containers: one of a container that is gone stays for good.
func shims(dir string) []string {
	var ids []string
	for _, pid := range processesNaming(dir) {
		args := strings.Split(readString(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")), "\x00")
		if at := slices.Index(args, "-id"); at > 0 && at+1 < len(args) && strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
			ids = append(ids, args[at+1])
		}
	}
	return ids
}

// pooled counts the goroutines of a profile that serve idle HTTP connections to the engine: a bounded pool, closed in time.
func pooled(stacks string) int {
	total := 0
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(stack, "net/http.(*persistConn)") {
			number, _, _ := strings.Cut(strings.TrimSpace(stack[strings.LastIndex(stack[:strings.Index(stack, " @ ")], "\n")+1:]), " ")
			count, _ := strconv.Atoi(number)
			total += count
		}
	}
	return total
}

// links are the network interfaces, but for the pod bridge, which the first pod makes and every later one uses.
func links() []string {
	list, err := netlink.LinkList()
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, link := range list {
		if link.Type() != "bridge" {
			names = append(names, fmt.Sprintf("%d %s", link.Attrs().Index, link.Attrs().Name))
		}
	}
	return names
}

// firewallRules are all rules and chains, but for the chains that the portmap plugin makes once and keeps.
func firewallRules() []string {
	var rules []string
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(command).Output()
		if err != nil {
			return []string{command + ": " + err.Error()}
		}
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "#") || keptByPortmap(line) {
				continue
			}
			if name, _, counted := strings.Cut(line, " ["); strings.HasPrefix(line, ":") && counted {
				line = name // without the packet counters
			}
			rules = append(rules, command+" "+line)
		}
	}
	return append(rules, nftablesRules()...)
}

// nftablesRules are those of tables that are not iptables': plugins make such where there is no iptables, or they are told to.
func nftablesRules() []string {
	tables, err := exec.Command("nft", "list", "tables").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil // nor can a plugin make any
	}
	if err != nil {
		return []string{"nft list tables: " + err.Error()}
	}
	var rules []string
	for line := range strings.Lines(string(tables)) {
		table := strings.Fields(line) // table FAMILY NAME
		if len(table) != 3 || slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, table[2]) {
			continue
		}
		out, err := exec.Command("nft", "--stateless", "list", "table", table[1], table[2]).Output()
		if err != nil {
			continue // it went meanwhile
		}
		for rule := range strings.Lines(string(out)) {
			rules = append(rules, strings.Join(table, " ")+": "+strings.TrimSpace(rule))
		}
	}
	return rules
}

// keptByPortmap recognizes the top chains and their jumps, which mention no pod.
func keptByPortmap(line string) bool {
	if strings.Contains(line, "CNI-DN-") || strings.Contains(line, "dnat name:") || strings.Contains(line, "id: \\\"") {
		return false
	}
	for _, chain := range []string{"CNI-HOSTPORT-", "CNI-FORWARD", "CNI-ADMIN"} {
		if strings.Contains(line, chain) {
			return true
		}
	}
	return strings.HasPrefix(line, "*") || strings.HasPrefix(line, ":PREROUTING") || strings.HasPrefix(line, ":INPUT") ||
		strings.HasPrefix(line, ":FORWARD") || strings.HasPrefix(line, ":OUTPUT") || strings.HasPrefix(line, ":POSTROUTING") || line == "COMMIT"
}

func files(dirs ...string) []string   { return entries(false, dirs) }
func folders(dirs ...string) []string { return entries(true, dirs) }

// entries are the files, or the folders, at and below dirs: not those of images and compiled seccomp profiles, nor of other file systems mounted there.
func entries(folders bool, dirs []string) []string {
	var list []string
	for _, dir := range dirs {
		device := deviceOf(dir)
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // files vanish while one looks
			}
			if d.IsDir() == folders {
				list = append(list, path)
			}
			if d.IsDir() && (keptImages(path) || keptFilters(path) || deviceOf(path) != device) {
				return fs.SkipDir
			}
			return nil
		})
	}
	return list
}

func deviceOf(path string) uint64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Dev
}

// children are the child processes of a process by name, zombies included: a plugin or mount helper that stays. The kernel lists
// them by the thread that made them.
func children(parent int) []string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	var list []string
	for _, task := range tasks {
		for pid := range strings.FieldsSeq(readString(task)) {
			list = append(list, pid+" "+strings.TrimSpace(readString("/proc/"+pid+"/comm")))
		}
	}
	return list
}

// Use is what a process holds: threads are those of BusyThreads, children those of children.
type Use struct {
	Descriptors, Threads, Bytes int
	Children                    []string
}

func useOf(pid int) Use {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	descriptors, _ := os.ReadDir(filepath.Join(proc, "fd"))
	return Use{len(descriptors), BusyThreads(pid), residentBytes(pid), children(pid)}
}

// BusyThreads are the threads of a Go program that run or wait in the kernel. The runtime ends none of its threads: it parks
// those without work on a futex, as many as were ever needed at once, which is no leak.
func BusyThreads(pid int) int {
	calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	busy := 0
	for _, call := range calls {
		number, _, _ := strings.Cut(readString(call), " ")
		if number != strconv.Itoa(unix.SYS_FUTEX) {
			busy++
		}
	}
	return busy
}

// Use is what the daemon holds now, and the monitors by their pods, by name.
func (n *Node) Use() map[string]Use {
	all := map[string]Use{"the daemon": useOf(n.Shim.PID())}
	for _, m := range n.Monitors() {
		all["the monitor of "+m.Pod] = useOf(m.pid)
	}
	return all
}

// Usage is what the daemon uses now, for the eye.
func (s *Shim) Usage() string {
	_, goroutines := s.profile("goroutine?debug=1", "total ")
	use := useOf(s.PID())
	return fmt.Sprintf("%d MiB resident, %d descriptors, %d goroutines, %d threads", use.Bytes>>20, use.Descriptors, goroutines, use.Threads)
}
