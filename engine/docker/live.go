package docker

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/imageuser"
	"crishim/internal/process"
)

// podStatus adds to an inspected sandbox what the kernel knows. The network namespace of a running one is pinned where it
// is not yet: a pod of dockershim or cri-dockerd, or one that was started when we crashed.
func (e *Engine) podStatus(in *container.InspectResponse, f *facts) engine.PodStatus {
	status := podStatus(in)
	if status.PID > 0 {
		status.StartTicks, _ = process.StartTicks(status.PID)
		e.processes.seen(in, status.StartTicks, f)
		status.CgroupPath = f.cgroupOf(status.PID, in.ID)
	}
	e.pauses.seen(status.ID, pauseContainer{image: engine.ImageID(in.Image), ownFiles: in.Config.NetworkDisabled && in.HostConfig.NetworkMode.IsNone()})
	e.cgroups.seen(in, status.CgroupPath, f)
	if in.HostConfig.NetworkMode.IsHost() {
		return status
	}
	if e.opts.Observe {
		if status.StartTicks != 0 {
			status.NetNSPath = procPath(status.PID, "ns/net")
		}
		return status
	}
	status.NetNSPath = e.pins.pinned(status.ID)
	if status.NetNSPath == "" && status.StartTicks != 0 {
		path, err := e.pins.pin(status.ID, status.PID, status.StartTicks)
		if err != nil {
			klog.ErrorS(err, "Pod without a pinned network namespace", "id", status.ID)
		}
		status.NetNSPath = path
	}
	return status
}

// containerStatus adds to an inspected container what the kernel knows. Mounts that were prepared for one that has
// started go here: it has its own copy, and whatever started it, this is called before anybody is told.
func (e *Engine) containerStatus(in *container.InspectResponse, f *facts) engine.ContainerStatus {
	status := containerStatus(in)
	if status.State == engine.ContainerExited && status.ExitCode == exitKilled && status.Reason != engine.ReasonStartError {
		first, _ := e.processes.of(in.ID)
		switch killed, known := e.oom.ended(in.ID, first, status.FinishedAt); {
		case killed:
			status.Reason = engine.ReasonOOMKilled
		case known:
			status.Reason = engine.ReasonError
		}
	}
	if !status.StartedAt.IsZero() {
		e.users.learnChecked(status.ImageID) // Docker has read its user files, or it would not have started
	}
	if !e.opts.Observe && (status.State == engine.ContainerRunning || status.State == engine.ContainerExited) {
		if err := e.mounts.unmount(in.Config.Labels[labelMounts]); err != nil {
			klog.ErrorS(err, "Cannot unmount what was prepared for a container", "id", status.ID)
		}
	}
	if status.PID > 0 {
		status.StartTicks, _ = process.StartTicks(status.PID)
		e.processes.seen(in, status.StartTicks, f)
		status.CgroupPath = f.cgroupOf(status.PID, in.ID)
		status.User = beganAs(in, userOfProcess(status.PID))
		if status.UpperDir == "" {
			// The containerd image store names no folder.
			status.UpperDir = upperDirOf(status.PID, mergedDir(in, f))
		}
	}
	e.cgroups.seen(in, status.CgroupPath, f)
	return status
}

// beganAs is as whom the container's first process began, which is seen as whom it is by now: an entrypoint may have given up root.
// What was asked of Docker tells them apart; nil where that does not say with which groups the process began.
func beganAs(in *container.InspectResponse, seen *engine.User) *engine.User {
	user, group, _ := strings.Cut(in.Config.User, ":")
	uid, ok := imageuser.ParseID(user)
	if !ok || seen == nil {
		return seen
	}
	gid, whole := imageuser.ParseID(group)
	switch {
	case seen.UID == uid && (!whole || seen.GID == gid):
		return seen
	case !whole:
		return nil
	}
	began := &engine.User{UID: uid, GID: gid, Groups: []int64{gid}}
	for _, g := range in.HostConfig.GroupAdd {
		if id, ok := imageuser.ParseID(g); ok {
			began.Groups = append(began.Groups, id)
		}
	}
	slices.Sort(began.Groups)
	began.Groups = slices.Compact(began.Groups)
	return began
}

// userOfProcess reads the effective ids of a process; nil when it is gone.
func userOfProcess(pid int) *engine.User {
	data, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return nil
	}
	return parseUser(string(data))
}

// parseUser reads the lines Uid, Gid (real, effective, …) and Groups of /proc/PID/status.
func parseUser(status string) *engine.User {
	user := &engine.User{UID: -1, GID: -1}
	for line := range strings.Lines(status) {
		key, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		switch key {
		case "Uid", "Gid":
			if len(fields) < 2 {
				return nil
			}
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return nil
			}
			if key == "Uid" {
				user.UID = n
			} else {
				user.GID = n
			}
		case "Groups":
			for _, field := range fields {
				if n, err := strconv.ParseInt(field, 10, 64); err == nil {
					user.Groups = append(user.Groups, n)
				}
			}
		}
	}
	if user.UID < 0 || user.GID < 0 {
		return nil
	}
	user.Groups = append(user.Groups, user.GID)
	slices.Sort(user.Groups)
	user.Groups = slices.Compact(user.Groups)
	return user
}

// mergedDir is where a running container's root file system is mounted.
func mergedDir(in *container.InspectResponse, f *facts) string {
	if dir := in.GraphDriver.Data["MergedDir"]; dir != "" {
		return dir
	}
	return containerdRoot(in.ID, f)
}

// containerdRoot is the same where images are in a store of containerd's: Docker does not tell it.
func containerdRoot(id string, f *facts) string {
	return filepath.Join(f.rootDir, "rootfs", f.storageDriver, id)
}

// rootMount is what a process has mounted at its root.
type rootMount struct {
	device     string // MAJOR:MINOR
	fileSystem string
	options    string // of the file system
}

// rootMountOf reads the mount table of a process.
func rootMountOf(pid int) (m rootMount, ok bool) {
	file, err := os.Open(procPath(pid, "mountinfo"))
	if err != nil {
		return rootMount{}, false
	}
	defer func() { _ = file.Close() }()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if m, ok := parseRootMount(scanner.Text()); ok {
			return m, true
		}
	}
	return rootMount{}, false
}

// parseRootMount reads a line of a mount table, if it is of the root: ID PARENT MAJOR:MINOR ROOT / OPTIONS … - TYPE SOURCE OPTIONS.
func parseRootMount(line string) (m rootMount, ok bool) {
	before, after, cut := strings.Cut(line, " - ")
	fields, fs := strings.Fields(before), strings.Fields(after)
	if !cut || len(fields) < 5 || fields[4] != "/" || len(fs) < 3 {
		return rootMount{}, false
	}
	return rootMount{device: fields[2], fileSystem: fs[0], options: fs[2]}, true
}

// upperDirOf is the writable layer of a container, of which pid is the first process and root the file system as the host sees it. The
// process may have another root by now, and in a user namespace an overlay of its own making, whose options name any folder.
func upperDirOf(pid int, root string) string {
	own, ok := rootMountOf(pid)
	var host, above unix.Stat_t
	// Where Docker has another mount namespace the host sees no more than a folder there.
	mounted := unix.Stat(root, &host) == nil && unix.Stat(filepath.Dir(root), &above) == nil && host.Dev != above.Dev
	if !ok || mounted && !own.isOf(&host) {
		return ""
	}
	return own.upperDir()
}

// isOf says whether a file is on the mounted file system.
func (m rootMount) isOf(file *unix.Stat_t) bool {
	return m.device == fmt.Sprintf("%d:%d", unix.Major(file.Dev), unix.Minor(file.Dev))
}

// upperDir is the writable layer of an overlay, "" for anything else.
func (m rootMount) upperDir() string {
	if m.fileSystem != "overlay" {
		return ""
	}
	for option := range strings.SplitSeq(m.options, ",") {
		if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
			return dir
		}
	}
	return ""
}

func procPath(pid int, file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }
