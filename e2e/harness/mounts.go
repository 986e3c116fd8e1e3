package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountsUnder lists the mount points at or below dir, deepest last.
func mountsUnder(dir string) []string {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return []string{"reading the mount table: " + err.Error()}
	}
	var points []string
	for _, info := range infos {
		points = append(points, info.Mountpoint)
	}
	slices.Sort(points)
	return points
}

// unmountAll detaches everything at or below dir.
func unmountAll(dir string) {
	points := mountsUnder(dir)
	slices.Reverse(points)
	for _, point := range points {
		_ = unix.Unmount(point, unix.MNT_DETACH) // the check for leaks looks again
	}
}

// cgroupRoots are the top folders of all cgroup hierarchies, v1 or v2.
func cgroupRoots() []string {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil
	}
	var roots []string
	for _, info := range infos {
		if strings.HasPrefix(info.Mountpoint, "/sys/fs/cgroup") {
			roots = append(roots, info.Mountpoint)
		}
	}
	return roots
}

// Cgroups lists the cgroups below a parent ("/name"), relative to it, in all hierarchies together.
func Cgroups(parent string) []string { return cgroupsIn(cgroupRoots(), parent) }

func cgroupsIn(hierarchies []string, parent string) []string {
	seen := map[string]bool{}
	for _, root := range hierarchies {
		top := filepath.Join(root, parent)
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != top {
				seen[strings.TrimPrefix(path, top)] = true
			}
			return nil // cgroups vanish while one looks
		})
	}
	list := []string{}
	for name := range seen {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// cgroupProcesses are the processes in all cgroups below a parent; unstarted are those of containers that were created and
// never started.
func cgroupProcesses(parent string) (started, unstarted []string) {
	seen, waiting := map[string]bool{}, map[string]bool{}
	for _, name := range Cgroups(parent) {
		for _, root := range cgroupRoots() {
			for pid := range strings.FieldsSeq(readString(filepath.Join(root, parent, name, "cgroup.procs"))) {
				command := readString("/proc/" + pid + "/cmdline")
				kind := seen
				if strings.HasSuffix(command, "runc\x00init\x00") {
					kind = waiting
				}
				kind[fmt.Sprintf("%s %q in %s", pid, command, name)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen)), slices.Sorted(maps.Keys(waiting))
}

// makeCgroup makes a cgroup in every hierarchy, with the parent's cpus and memory nodes, as the kubelet does for a pod.
func makeCgroup(t T, path string) {
	t.Helper()
	for _, root := range cgroupRoots() {
		dir := root
		for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Fatalf("making a cgroup: %v", err)
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(parent, file))
				if err != nil || parent == root && strings.TrimSpace(string(value)) == "" {
					continue // not a v1 cpuset hierarchy
				}
				if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
					t.Fatalf("filling a cpuset: %v", err)
				}
			}
		}
	}
}

// removeCgroup kills what still runs below a cgroup of ours and removes it everywhere, the deepest first. As the kubelet does,
// it tries again where something is still ending there, such as a half-made pod that the daemon takes back in the background.
func removeCgroup(path string) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := 0
		for _, root := range cgroupRoots() {
			left += removeCgroupAt(filepath.Join(root, path))
		}
		if left == 0 || time.Now().After(deadline) {
			return // the check for leaks looks again
		}
	}
}

// removeCgroupAt is one try at one hierarchy; it returns how many folders are left.
func removeCgroupAt(top string) (left int) {
	var dirs []string
	_ = filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, dir)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, dir := range dirs {
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		for _, pid := range cgroupPIDs(dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			left++
		}
	}
	return left
}

func cgroupPIDs(dir string) []int {
	data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
