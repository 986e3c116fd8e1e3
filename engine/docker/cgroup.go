package docker

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

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/process"
)

// cgroupRoot is where the host's cgroup file systems are.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupOf is the cgroup of a container whose first process is pid as Docker says, "" where that process is in none of the
// container's: it has ended and another has its pid, or it was moved.
func (f *facts) cgroupOf(pid int, id string) string {
	data, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return ""
	}
	return containerCgroup(parseCgroup(string(data), f.cgroupV2), id)
}

// containerCgroup is the part of a process's cgroup that is named by the container: a process may have gone to one below it.
// "" where no part is, as in the root, which cgroup v1 shows for a process that has ended, or where the cgroup was removed,
// which v2 shows.
func containerCgroup(path, id string) string {
	at := strings.Index(path, id)
	if id == "" || at < 0 {
		return ""
	}
	if end := strings.IndexByte(path[at:], '/'); end >= 0 {
		return path[:at+end]
	}
	if strings.HasSuffix(path, " (deleted)") {
		return ""
	}
	return path
}

// parseCgroup reads a process's cgroup in /proc/PID/cgroup: the memory controller's (v1) or the unified one.
func parseCgroup(data string, v2 bool) string {
	for line := range strings.Lines(data) {
		hierarchy, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if v2 && hierarchy == "0" || !v2 && slices.Contains(strings.Split(controllers, ","), "memory") {
			return path
		}
	}
	return ""
}

// cgroupDir is the folder of a cgroup for one controller.
func (f *facts) cgroupDir(path, controller string) string {
	if f.cgroupV2 {
		return filepath.Join(f.cgroupRoot, path)
	}
	return filepath.Join(f.cgroupRoot, controller, path)
}

// isRoot says whether a path is the root cgroup's, which has all processes of the host and is no container's, or "".
func isRoot(path string) bool { return filepath.Clean("/"+path) == "/" }

// hugetlbMounted says whether huge page limits can be set on this host.
func (f *facts) hugetlbMounted() bool {
	if !f.cgroupV2 {
		files, _ := filepath.Glob(filepath.Join(f.cgroupRoot, "hugetlb", "hugetlb.*.limit_in_bytes"))
		return len(files) > 0
	}
	data, _ := os.ReadFile(filepath.Join(f.cgroupRoot, "cgroup.subtree_control"))
	return slices.Contains(strings.Fields(string(data)), "hugetlb")
}

// cgroupFile is one value to write.
type cgroupFile struct {
	path, value string
	// optional files may be absent: the kernel lacks the feature, and the value is only a default of ours.
	optional bool
}

// limitsByFile are the limits that the Engine API cannot say, for a container in the cgroup path. previous are the
// limits in force: what it has and r has not is taken back. ErrFailedPrecondition where there are some and path is no
// container's.
func (f *facts) limitsByFile(path string, r, previous *engine.Resources) ([]cgroupFile, error) {
	files := f.hugepagesByFile(path, r, previous)
	if f.cgroupV2 {
		files = append(files, unifiedByFile(f.cgroupDir(path, ""), r, previous)...)
	}
	switch {
	case !isRoot(path):
		return files, nil
	case slices.ContainsFunc(files, func(file cgroupFile) bool { return !file.optional }):
		return nil, fmt.Errorf("set unified and huge page limits: %w", errNoCgroup)
	}
	return nil, nil
}

// errNoCgroup is why nothing can be written for a container that runs.
var errNoCgroup = fmt.Errorf("its first process is in no cgroup named after the container, and has to be moved back there: %w", errdefs.ErrFailedPrecondition)

func (f *facts) hugepagesByFile(path string, r, previous *engine.Resources) []cgroupFile {
	dir, file, none := f.cgroupDir(path, "hugetlb"), ".limit_in_bytes", strconv.FormatInt(noMemoryLimit, 10)
	if f.cgroupV2 {
		file, none = ".max", "max"
	}
	name := func(size string) string { return filepath.Join(dir, "hugetlb."+size+file) }
	var files []cgroupFile
	for _, old := range previous.Hugepages {
		if !slices.ContainsFunc(r.Hugepages, func(h engine.HugepageLimit) bool { return h.PageSize == old.PageSize }) {
			files = append(files, cgroupFile{path: name(old.PageSize), value: none})
		}
	}
	for _, limit := range r.Hugepages {
		// The kubelet names every page size that the node could have, also with limit 0.
		files = append(files, cgroupFile{path: name(limit.PageSize), value: strconv.FormatUint(limit.Limit, 10), optional: limit.Limit == 0})
	}
	return files
}

func unifiedByFile(dir string, r, previous *engine.Resources) []cgroupFile {
	var files []cgroupFile
	if _, given := r.Unified[swapMax]; !given && r.MemoryLimit == 0 && r.MemorySwap == 0 {
		files = append(files, cgroupFile{path: filepath.Join(dir, swapMax), value: "0", optional: true})
	}
	for _, file := range sortedKeys(r.Unified) {
		files = append(files, cgroupFile{path: filepath.Join(dir, file), value: r.Unified[file]})
	}
	for _, file := range sortedKeys(previous.Unified) {
		if _, kept := r.Unified[file]; !kept {
			if value, known := unifiedDefault(file); known {
				files = append(files, cgroupFile{path: filepath.Join(dir, file), value: value, optional: true})
			}
		}
	}
	return files
}

// unifiedDefault is what a cgroup v2 file holds before anybody writes it, for the files whose names tell.
func unifiedDefault(file string) (value string, known bool) {
	switch {
	case strings.HasSuffix(file, ".max"), strings.HasSuffix(file, ".high"):
		return "max", true
	case strings.HasSuffix(file, ".min"), strings.HasSuffix(file, ".low"), file == "memory.oom.group":
		return "0", true
	}
	return "", false
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// swapMax is the cgroup v2 file of the swap limit.
const swapMax = "memory.swap.max"

// writeCgroupFiles writes all of files or, where one fails, puts back what was there.
func writeCgroupFiles(files []cgroupFile) error {
	var written []cgroupFile
	for _, file := range files {
		old, err := os.ReadFile(file.path)
		if err == nil {
			err = failpoint.Around("cgroup", func() error { return writeCgroupFile(file.path, file.value) })
		}
		if err == nil {
			written = append(written, cgroupFile{path: file.path, value: strings.TrimSpace(string(old))})
			continue
		}
		if file.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var undone []error
		for _, back := range slices.Backward(written) {
			undone = append(undone, writeCgroupFile(back.path, back.value))
		}
		return errors.Join(fmt.Errorf("set %s to %.40q: %w: %w", filepath.Base(file.path), file.value, err, classOfErrno(err)), errors.Join(undone...))
	}
	return nil
}

func classOfErrno(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return errdefs.ErrInvalidArgument
	}
	return errdefs.ErrFailedPrecondition
}

// writeCgroupFile never makes a file: an absent one is a controller that is not there.
func writeCgroupFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// cgroupProcesses are the pids in a container's cgroup and below. None of the root, where all of the host are. starved is why there
// may be more (process.Starved).
func (f *facts) cgroupProcesses(path string) (pids []int, starved error) {
	if isRoot(path) {
		return nil, nil
	}
	note := func(err error) error {
		if process.Starved(err) {
			starved = err
		}
		return nil // others are of what is gone
	}
	_ = filepath.WalkDir(f.cgroupDir(path, "memory"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return note(err)
		}
		data, err := os.ReadFile(filepath.Join(name, "cgroup.procs"))
		if err != nil {
			return note(err)
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, starved
}

// setOOMScoreAdj of the process pid, if it is in the container's cgroup. Its folder is held open: a later process of the same
// pid has another.
func (f *facts) setOOMScoreAdj(pid int, id, score string) error {
	proc, err := os.OpenRoot(procPath(pid, ""))
	if err != nil {
		return ignoreEnded(err)
	}
	defer func() { _ = proc.Close() }()
	groups, err := proc.ReadFile("cgroup")
	if err != nil || containerCgroup(parseCgroup(string(groups), f.cgroupV2), id) == "" {
		return ignoreEnded(err)
	}
	file, err := proc.OpenFile("oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return ignoreEnded(err)
	}
	_, err = file.WriteString(score)
	return ignoreEnded(errors.Join(err, file.Close()))
}

func ignoreEnded(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
