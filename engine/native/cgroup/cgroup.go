// Package cgroup owns the names and the lives of cgroups: which one a pod and its containers are in, in the words of either
// driver, the limits of pods, who is in them, and their end. Statistics are read by package stats.
//
// A pod whose cgroup_parent is given lives in that cgroup, which is the kubelet's: never limited or removed by us, and made
// with the first container where it is absent. Without one the pod gets a cgroup of our own. Containers are below: PARENT/ID
// with cgroupfs, PARENT.slice/crishim-ID.scope with systemd.
package cgroup

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/systemd"

	"crishim/engine"
	"crishim/engine/native/host"
)

const (
	// root is where the host's cgroup file systems are.
	root = "/sys/fs/cgroup"
	// ours is the cgroup of everything that is not in one of the kubelet's.
	ours      = "crishim"
	podPrefix = "pod"
	slice     = ".slice"
	scope     = ".scope"
)

// Driver makes cgroups on a host. Its methods may be called at once for different cgroups.
type Driver struct {
	host *host.Host
	root string
	// joining orders the joins: with systemd the first makes the unit that the others are added to.
	joining sync.Mutex
	// expecting says that ExpectJoin is at it.
	expecting atomic.Bool
}

// New is the driver of a host.
func New(h *host.Host) *Driver { return &Driver{host: h, root: root} }

// Pod is a pod's cgroup.
type Pod struct {
	// Path is below every hierarchy's root, as in /proc/PID/cgroup.
	Path string `json:"path"`
	// Own says that we made it for this pod: limits and removal are ours.
	Own bool `json:"own,omitempty"`
}

// Container is a container's cgroup: what OCI's linux.cgroupsPath says, and its path as in /proc/PID/cgroup.
type Container struct {
	CgroupsPath string `json:"cgroupsPath"`
	Path        string `json:"path"`
}

func (d *Driver) systemd() bool { return d.host.CgroupDriver == engine.SystemdDriver }

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// maxParent is far above what the kubelet makes and far below PATH_MAX, which the cgroups below it need too.
const maxParent = 1024

// Pod names the pod's cgroup; no I/O. ErrInvalidArgument when parent climbs, is the root, or is no slice with systemd
// (docs/reliability.md S29).
func (d *Driver) Pod(id engine.PodID, parent string) (Pod, error) {
	if err := checkID(string(id)); err != nil {
		return Pod{}, err
	}
	if parent == "" {
		if d.systemd() {
			return Pod{Path: "/" + ours + slice + "/" + ours + "-" + podPrefix + string(id) + slice, Own: true}, nil
		}
		return Pod{Path: "/" + ours + "/" + podPrefix + string(id), Own: true}, nil
	}
	if err := checkParent(parent); err != nil {
		return Pod{}, err
	}
	if !d.systemd() {
		return Pod{Path: path.Join("/", parent)}, nil
	}
	name := path.Base(parent)
	if name == "-"+slice || !strings.HasSuffix(name, slice) {
		return Pod{}, invalid("cgroup parent %.80q is not a slice, and the cgroup driver is systemd: the kubelet's cgroupDriver must be the same", parent)
	}
	expanded, err := systemd.ExpandSlice(name)
	if err != nil {
		return Pod{}, invalid("cgroup parent %.80q: %w", parent, err)
	}
	return Pod{Path: expanded}, nil
}

func checkParent(parent string) error {
	switch {
	case len(parent) > maxParent:
		return invalid("cgroup parent of %d bytes, at most %d are allowed", len(parent), maxParent)
	case strings.ContainsFunc(parent, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ':' }):
		return invalid("cgroup parent %.80q has spaces, colons or control characters", parent)
	case path.Clean("/"+parent) == "/":
		return invalid("cgroup parent %.80q is the root", parent)
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." {
			return invalid("cgroup parent %.80q climbs", parent)
		}
	}
	return nil
}

// checkID keeps ids from being paths, and from having what systemd's names of units use.
func checkID(id string) error {
	ok := id != "" && len(id) <= 128 && id[0] != '.'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_')
	}
	if !ok {
		return invalid("%.80q is no id", id)
	}
	return nil
}

// Container names a container's cgroup in a pod's; no I/O. name is the container's id, or another name of ours.
func (d *Driver) Container(p Pod, name engine.ContainerID) Container {
	if d.systemd() {
		return Container{CgroupsPath: path.Base(p.Path) + ":" + ours + ":" + string(name), Path: path.Join(p.Path, ours+"-"+string(name)+scope)}
	}
	own := path.Join(p.Path, string(name))
	return Container{CgroupsPath: own, Path: own}
}

// Unified is the folder of a pod's cgroup where that is of version 2, else ""; no I/O.
func (d *Driver) Unified(p Pod) string {
	if !d.host.CgroupV2 {
		return ""
	}
	return filepath.Join(d.root, p.Path)
}

// Path is the path of a container's cgroup by its CgroupsPath; no I/O.
func (d *Driver) Path(cgroupsPath string) (string, error) {
	if !d.systemd() {
		return cgroupsPath, checkPath(cgroupsPath)
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 {
		return "", invalid("%.80q is no path of a cgroup", cgroupsPath)
	}
	expanded, err := systemd.ExpandSlice(parts[0])
	if err != nil {
		return "", invalid("cgroup slice %.80q: %w", parts[0], err)
	}
	return path.Join(expanded, parts[1]+"-"+parts[2]+scope), nil
}

// Monitors is the cgroup of the monitors: outside of every pod's limits (docs/reliability.md S62).
func (d *Driver) Monitors() string {
	if d.systemd() {
		return "/" + ours + slice + "/" + ours + "-monitors" + scope
	}
	return "/" + ours + "/monitors"
}

// checkPath refuses what would mean the whole host.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
		return invalid("%.80q is no path of a cgroup", p)
	}
	return nil
}

// hierarchies are the mounted trees: one with cgroup v2; with v1 one for each set of controllers, and on a hybrid host the
// unified one too.
func (d *Driver) hierarchies() ([]string, error) {
	if d.host.CgroupV2 {
		return []string{d.root}, nil
	}
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("list the cgroup hierarchies: %w", err)
	}
	var dirs []string
	for _, entry := range entries {
		dir := filepath.Join(d.root, entry.Name())
		// The single names of joined controllers are links.
		if _, err := os.Lstat(filepath.Join(dir, "cgroup.procs")); err == nil && entry.IsDir() {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// controller is the folder of a cgroup in the hierarchy of a controller.
func (d *Driver) controller(name, p string) string {
	if d.host.CgroupV2 {
		return filepath.Join(d.root, p)
	}
	return filepath.Join(d.root, name, p)
}
