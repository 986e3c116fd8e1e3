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
)

// cgroupRoot is where the host's cgroup file systems are.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupPath reads the cgroup of pid: the memory controller's (v1) or the unified one.
func cgroupPath(pid int, v2 bool) string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
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
func cgroupDir(path, controller string, v2 bool) string {
	if v2 {
		return filepath.Join(cgroupRoot, path)
	}
	return filepath.Join(cgroupRoot, controller, path)
}

// hugetlbMounted says whether huge page limits can be set on this host.
func hugetlbMounted(v2 bool) bool {
	if !v2 {
		files, _ := filepath.Glob(filepath.Join(cgroupRoot, "hugetlb", "hugetlb.*.limit_in_bytes"))
		return len(files) > 0
	}
	data, _ := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"))
	return slices.Contains(strings.Fields(string(data)), "hugetlb")
}

// cgroupFile is one value to write.
type cgroupFile struct {
	path, value string
	// optional files may be absent: the kernel lacks the feature, and the value is only a default of ours.
	optional bool
}

// limitsByFile are the limits that the Engine API cannot say, for a container in the cgroup path. previous are the
// limits in force: what it has and r has not is taken back.
func limitsByFile(path string, r, previous *engine.Resources, v2 bool) []cgroupFile {
	var files []cgroupFile
	huge := cgroupDir(path, "hugetlb", v2)
	name := func(size string) string {
		if v2 {
			return filepath.Join(huge, "hugetlb."+size+".max")
		}
		return filepath.Join(huge, "hugetlb."+size+".limit_in_bytes")
	}
	for _, old := range previous.Hugepages {
		if !slices.ContainsFunc(r.Hugepages, func(h engine.HugepageLimit) bool { return h.PageSize == old.PageSize }) {
			value := "max"
			if !v2 {
				value = strconv.FormatInt(noMemoryLimit, 10)
			}
			files = append(files, cgroupFile{path: name(old.PageSize), value: value})
		}
	}
	for _, limit := range r.Hugepages {
		// The kubelet names every page size that the node could have, also with limit 0.
		files = append(files, cgroupFile{path: name(limit.PageSize), value: strconv.FormatUint(limit.Limit, 10), optional: limit.Limit == 0})
	}
	if !v2 {
		return files
	}
	dir := cgroupDir(path, "", true)
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

// cgroupProcesses are the pids in a cgroup and below.
func cgroupProcesses(path string, v2 bool) []int {
	dir := cgroupDir(path, "memory", v2)
	var pids []int
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(filepath.Join(name, "cgroup.procs"))
		if err != nil {
			return nil
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}
