package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// Places are where leftovers are looked for, below Root ("/" on a node).
type Places struct {
	Root string
	// CacheDirs are libcni's: crishim's own and those of old shims. They are whole paths.
	CacheDirs []string
	// PodDirs is the kubelet's folder of pods; LogDirs are where links to logs lie.
	PodDirs string
	LogDirs []string
	// HostLocal is where host-local keeps addresses.
	HostLocal string
}

// DefaultPlaces are a node's.
func DefaultPlaces(cacheDirs ...string) Places {
	slices.Sort(cacheDirs)
	return Places{
		Root: "/", CacheDirs: slices.Compact(cacheDirs), PodDirs: "/var/lib/kubelet/pods", LogDirs: []string{"/var/log/containers", "/var/log/pods"}, HostLocal: "/var/lib/cni/networks",
	}
}

// young is what may be a pod's that is just being made or ended.
const young = 2 * time.Minute

// Leftovers reads what may be left over. It is called before anybody is asked what lives.
func Leftovers(p Places, now time.Time) (*Node, error) {
	n := &Node{}
	var errs []error
	for _, dir := range p.CacheDirs {
		found, err := cacheEntries(dir, now)
		n.Results, errs = append(n.Results, found...), append(errs, err)
	}
	found, err := reservations(filepath.Join(p.Root, p.HostLocal), now)
	n.Addresses, errs = found, append(errs, err)
	for _, dir := range p.LogDirs {
		found, err := brokenLinks(filepath.Join(p.Root, dir))
		n.BrokenLogs, errs = append(n.BrokenLogs, found...), append(errs, err)
	}
	return n, errors.Join(errs...)
}

// ReadPodDirs reads which pods the kubelet knows. It is called after Docker's containers were listed: a folder is there
// before its pod's sandbox.
func (n *Node) ReadPodDirs(p Places) error {
	entries, err := os.ReadDir(filepath.Join(p.Root, p.PodDirs))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	n.PodDirs = map[string]bool{}
	for _, e := range entries {
		n.PodDirs[e.Name()] = true
	}
	return nil
}

// cacheEntries reads the form in which libcni keeps results; a file of another form is somebody else's.
func cacheEntries(dir string, now time.Time) ([]Result, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "results", "*"))
	if err != nil {
		return nil, err
	}
	var all []Result
	for _, path := range paths {
		var entry struct {
			Kind        string      `json:"kind"`
			ContainerID string      `json:"containerId"`
			NetworkName string      `json:"networkName"`
			CNIArgs     [][2]string `json:"cniArgs"`
		}
		data, old, err := readFile(path, now)
		if err != nil || json.Unmarshal(data, &entry) != nil || entry.Kind != "cniCacheV1" {
			continue
		}
		args := map[string]string{}
		for _, arg := range entry.CNIArgs {
			args[arg[0]] = arg[1]
		}
		r := Result{Dir: dir, ID: entry.ContainerID, Network: entry.NetworkName, Path: path, Old: old}
		if args["K8S_POD_NAME"] != "" && args["K8S_POD_NAMESPACE"] != "" {
			r.Pod = args["K8S_POD_NAMESPACE"] + "/" + args["K8S_POD_NAME"]
		}
		all = append(all, r)
	}
	return all, nil
}

func readFile(path string, now time.Time) (data []byte, old bool, err error) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, false, errors.Join(err, fs.ErrInvalid)
	}
	data, err = os.ReadFile(path)
	return data, now.Sub(info.ModTime()) > young, err
}

// reservations are files NETWORK/IP whose first line is the container's id.
func reservations(dir string, now time.Time) ([]Reservation, error) {
	networks, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Reservation
	for _, network := range networks {
		entries, err := os.ReadDir(filepath.Join(dir, network.Name()))
		if err != nil {
			continue // a file
		}
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err != nil {
				continue
			}
			path := filepath.Join(dir, network.Name(), e.Name())
			data, old, err := readFile(path, now)
			if err != nil {
				continue // given back meanwhile
			}
			id, _, _ := strings.Cut(string(data), "\n")
			all = append(all, Reservation{Network: network.Name(), IP: e.Name(), ID: strings.TrimSpace(id), Path: path, Old: old})
		}
	}
	return all, nil
}

// brokenLinks are *.log that lead to nothing.
func brokenLinks(dir string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.Type() != fs.ModeSymlink || filepath.Ext(path) != ".log" {
			return err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			all = append(all, path)
		}
		return nil
	})
	return all, err
}

// elsewhere are where other runtimes keep something named after a container's id.
var elsewhere = []string{
	"/run/containerd/io.containerd.runtime.v2.task/*/", "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/", "/var/lib/containers/storage/overlay-containers/",
	"/var/lib/nerdctl/*/containers/*/", "/run/crio/",
}

// LookElsewhere notes which ids another runtime has, or a native engine whose records lie elsewhere than this configuration says.
func (n *Node) LookElsewhere(root string) error {
	pinned, err := namespaces(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return err
	}
	n.Foreign = map[string]string{}
	look := func(id string) {
		if pinned[id] != "" {
			n.Foreign[id] = pinned[id]
		}
		for _, place := range elsewhere {
			if !podID.MatchString(id) || n.Foreign[id] != "" {
				return
			}
			if found, _ := filepath.Glob(filepath.Join(root, place) + "/" + id); len(found) > 0 {
				n.Foreign[id] = found[0]
			}
		}
	}
	for _, r := range n.Results {
		look(r.ID)
	}
	for _, a := range n.Addresses {
		look(a.ID)
	}
	for _, table := range n.NAT {
		for _, match := range owner.FindAllStringSubmatch(table, -1) {
			look(match[2])
		}
	}
	return nil
}

// namespaces are where pods have theirs pinned, .../POD-ID/NAME, by the pods' ids.
func namespaces(mounts string) (map[string]string, error) {
	file, err := os.Open(mounts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	all, err := mountinfo.GetMountsFromReader(file, mountinfo.FSTypeFilter("nsfs"))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", mounts, err)
	}
	pinned := map[string]string{}
	for _, m := range all {
		pinned[filepath.Base(filepath.Dir(m.Mountpoint))] = m.Mountpoint
	}
	return pinned, nil
}
