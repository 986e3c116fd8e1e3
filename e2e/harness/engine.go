package harness

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// engine is what the tests ask of an engine itself, behind the daemon's back.
type engine interface {
	// hostPID is the number on the host of a container's first process, 0 where it does not run.
	hostPID(id string) (int, error)
	// netns is a path of a pod's network namespace.
	netns(pod string) (string, error)
	// objects are the ids of all pods and containers that it has for the daemon, and whether they run.
	objects() (map[string]bool, error)
	// objectsOfPod describes those of one pod, by the pod's uid.
	objectsOfPod(uid string) ([]string, error)
	// layer is where the host sees a container's writable layer and its whole root file system; "" where it does not.
	layer(id string) (upper, merged string, err error)
	// lists are what a pod could leave of the engine's own kinds: see footprint.
	lists() map[string][]string
	// ownMount recognizes the engine's mounts outside the daemon's folders.
	ownMount(point string) bool
}

func (n *Node) engine() engine {
	if n.Docker == nil {
		return native{n.Shim}
	}
	return n.Docker
}

// CgroupParent ("/name") is where the pods of the harness are.
func (n *Node) CgroupParent() string {
	if n.Docker == nil {
		return n.Shim.cgroupParent()
	}
	return n.Docker.CgroupParent
}

// NetNS is a path of a pod's network namespace.
func (n *Node) NetNS(t T, pod string) string {
	t.Helper()
	path, err := n.engine().netns(pod)
	if err != nil {
		t.Fatalf("asking the engine for the network namespace of pod %s: %v", pod, err)
	}
	return path
}

// Objects are the ids of all pods and containers that the engine has for the daemon, and whether they run.
func (n *Node) Objects(t T) map[string]bool {
	t.Helper()
	objects, err := n.engine().objects()
	if err != nil {
		t.Fatalf("asking the engine for its pods and containers: %v", err)
	}
	return objects
}

// ObjectsOfPod describes what the engine has for the pod of a uid, one entry for each pod and container.
func (n *Node) ObjectsOfPod(t T, uid string) []string {
	t.Helper()
	objects, err := n.engine().objectsOfPod(uid)
	if err != nil {
		t.Fatalf("asking the engine for a pod and its containers: %v", err)
	}
	return objects
}

// Layer is where the host sees a container's writable layer and its whole root file system; "" where it does not.
func (n *Node) Layer(t T, id string) (upper, merged string) {
	t.Helper()
	upper, merged, err := n.engine().layer(id)
	if err != nil {
		t.Fatalf("asking the engine for the root file system of %s: %v", id, err)
	}
	return upper, merged
}

func (d *Docker) hostPID(id string) (int, error) {
	var inspect struct{ State struct{ Pid int } }
	err := d.call("GET", "/containers/"+id+"/json", nil, &inspect)
	return inspect.State.Pid, err
}

func (d *Docker) netns(pod string) (string, error) {
	pid, err := d.hostPID(pod)
	return fmt.Sprintf("/proc/%d/ns/net", pid), err
}

// listed are the containers that have a label, or a value of it.
func (d *Docker) listed(label string) (list []dockerContainer, err error) {
	err = d.call("GET", `/containers/json?all=1&filters={"label":["`+label+`"]}`, nil, &list)
	return list, err
}

type dockerContainer struct {
	ID, State string
	Names     []string
}

func (d *Docker) objects() (map[string]bool, error) {
	list, err := d.listed("io.kubernetes.docker.type")
	all := map[string]bool{}
	for _, c := range list {
		all[c.ID] = c.State == "running" || c.State == "paused"
	}
	return all, err
}

func (d *Docker) objectsOfPod(uid string) ([]string, error) {
	list, err := d.listed("io.kubernetes.pod.uid=" + uid)
	var all []string
	for _, c := range list {
		all = append(all, fmt.Sprintf("%s %s", strings.Join(c.Names, "+"), c.State))
	}
	return all, err
}

func (d *Docker) layer(id string) (upper, merged string, err error) {
	var inspect struct {
		GraphDriver struct{ Data map[string]string }
	}
	err = d.call("GET", "/containers/"+id+"/json", nil, &inspect)
	if upper = inspect.GraphDriver.Data["UpperDir"]; upper == "" && err == nil {
		upper, err = d.lastSnapshot()
	}
	return upper, inspect.GraphDriver.Data["MergedDir"], err
}

// HasContainerdStore says whether images and layers are in a store of containerd's instead of a graph driver's. The folder of
// the former is there in either case.
func (d *Docker) HasContainerdStore() bool {
	var info struct{ DriverStatus [][2]string }
	d.Get("/info", &info)
	return slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
}

func (d *Docker) snapshots() string {
	return filepath.Join(d.DataRoot, "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots")
}

// lastSnapshot is the folder of what was made last in an image store of containerd's, which names none itself.
func (d *Docker) lastSnapshot() (string, error) {
	snapshots, err := filepath.Glob(filepath.Join(d.snapshots(), "*"))
	last, folder := -1, ""
	for _, path := range snapshots {
		if n, err := strconv.Atoi(filepath.Base(path)); err == nil && n > last {
			last, folder = n, filepath.Join(path, "fs")
		}
	}
	if folder == "" {
		return "", errors.Join(err, errors.New("no snapshot was found"))
	}
	return folder, err
}

func (d *Docker) lists() map[string][]string {
	// A dockerd that is killed while it makes a container's first layer leaves that mounted.
	mounts := slices.DeleteFunc(mountsUnder(d.dir), func(point string) bool { return strings.HasSuffix(point, "-init/merged") })
	lists := map[string][]string{"mount": mounts, "shim": shims(d.dir)}
	if !d.Running() {
		return lists
	}
	containers, err := d.Containers()
	if err != nil {
		return lists
	}
	for _, id := range containers {
		var inspect struct {
			Name    string
			ExecIDs []string
		}
		if err := d.call("GET", "/containers/"+id+"/json", nil, &inspect); err == nil { // else it is gone, and its execs with it
			lists["container"] = append(lists["container"], id+" "+strings.TrimPrefix(inspect.Name, "/"))
			lists["exec"] = append(lists["exec"], inspect.ExecIDs...)
		}
	}
	return lists
}

// ownMount recognizes the network namespaces of containers too: dockerd unmounts those of removed ones up to a minute later.
func (d *Docker) ownMount(point string) bool {
	return strings.HasPrefix(point, d.dir+"/") || strings.HasPrefix(strings.TrimPrefix(point, "/var"), "/run/docker/netns/")
}
