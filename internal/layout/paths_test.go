package layout

import (
	"strings"
	"testing"
)

// pathMakers change the file system at a path that the kernel resolves, links and all.
var pathMakers = map[string]bool{}

func init() {
	for _, name := range strings.Fields("Create CreateTemp WriteFile OpenFile Mkdir MkdirAll MkdirTemp Chmod Chown Lchown Chtimes Remove RemoveAll Rename Symlink Link Truncate CopyFS") {
		pathMakers["os."+name] = true
	}
	for _, name := range strings.Fields("Open Openat Openat2 Creat Mkdir Mkdirat Mknod Mknodat Mkfifo Unlink Unlinkat Rmdir Rename Renameat Renameat2 Symlink Symlinkat Link Linkat " +
		"Chmod Fchmodat Chown Lchown Fchownat Truncate Mount Unmount MoveMount OpenTree MountSetattr Setxattr Lsetxattr") {
		pathMakers["golang.org/x/sys/unix."+name] = true
		pathMakers["syscall."+name] = true
	}
}

// followNoLink are the helpers through which a path goes that a pod, an image or a request has a part in: they go down from
// a folder that is trusted, by descriptors, and follow no link out of it. Their own tests attack them.
var followNoLink = map[string]string{
	"crilog/path.go":                    "OpenFile, OpenExisting, MakeParent: a log below its pod's folder, no link followed",
	"crilog/overflow.go":                "a full log by the descriptor that MakeParent gave, one name in one folder",
	"internal/openat2/openat2.go":       "openat2, as the caller restricts it",
	"engine/docker/logpump/link.go":     "a link below the pod's log folder, by the descriptor that crilog.MakeParent gave",
	"engine/docker/logpump/giveback.go": "a log and a link below the pod's log folder, by the descriptor that crilog.OpenParent gave",
	"internal/hostpath/hostpath.go":     "Make: missing host paths; links are followed only where root alone can have made them",
	"internal/hostpath/labels.go":       "SetLabel: down from the root, one name at a time, labels by descriptors",
	"engine/docker/imagemounts.go":      "copyFolder: a folder of an image by openat2(RESOLVE_IN_ROOT); layers are named by the engine and checked to be in its store",
	"engine/docker/imagecheck.go":       "checkExec: a container's user files by openat2(RESOLVE_IN_ROOT), for a look at them only",
	"internal/rmtree/rmtree.go":         "removes a tree by descriptors; follows no link and no mount",
	"server/seccomp.go":                 "a Localhost profile by openat2(RESOLVE_BENEATH) below the operator's folder",
	"internal/treesize/treesize.go":     "measures a tree by descriptors, follows no link",
	"engine/docker/logpump/jsonfile.go": "Docker's own log file, in a folder that root alone writes; its last name is no link",
}

// trusted are the places whose paths no pod, image or request has a part in, or only a name that was checked to be one (an
// id of 64 hexadecimal digits, a key of our own making), each with why.
var trusted = map[string]string{
	"check/life.go":                       "the log folder that the check itself made",
	"cmd/shim/check.go":                   "a scratch folder of the command line",
	"cmd/shim/verify.go":                  "a scratch folder of the command line",
	"cmd/shim/observe.go":                 "the operator's metrics socket",
	"cmd/shim/images_work.go":             "the file that the command line names",
	"cmd/shim/observer.go":                "a folder below run_dir of a daemon that only observes, and copies of records in it",
	"cmd/shim/folders.go":                 "root_dir and run_dir",
	"cni/network.go":                      "folders below root_dir",
	"cni/del.go":                          "libcni's cached result below root_dir, named by a checked id",
	"cni/netns.go":                        "opens a pinned namespace of our own and checks that it is one",
	"cni/owed.go":                         "records below root_dir; a pod id was checked",
	"cni/podcidr.go":                      "the operator's configuration folder",
	"engine/docker/cgroup.go":             "a cgroup path that the kernel told of a container's process",
	"engine/docker/leftover.go":           "a cgroup path that the kernel told of a container's process",
	"engine/docker/engine.go":             "folders below root_dir and run_dir",
	"engine/docker/hostmounts.go":         "below run_dir by a key of our own; bind opens a host path once and goes by its descriptor",
	"engine/docker/imagestore/records.go": "records below root_dir, named by digests",
	"engine/docker/logpump/position.go":   "records below root_dir, named by checked ids",
	"engine/docker/logpump/pumps.go":      "a folder below root_dir",
	"engine/docker/netns.go":              "pins below run_dir, named by checked ids",
	"engine/docker/oom.go":                "/dev/kmsg",
	"engine/docker/podfiles.go":           "below run_dir, named by checked ids; resolv.conf in the engine's own folder of a sandbox, never in a root file system; its last name is no link",
	"engine/podfiles/podfiles.go":         "files in a file system that it just mounted at a folder below run_dir",
	"internal/powercut/disk.go":           "a disk for tests",
	"internal/powercut/mount.go":          "a disk for tests",
	"internal/mounttree/mounttree.go":     "a mount at a folder below run_dir that its caller names",
	"internal/sysfs/sysfs.go":             "/sys, in a mount namespace of its own",
	"migrate/checkpoint.go":               "a sandbox's checkpoint below a shim's root, named by its checked id; its last name is no link",
	"migrate/keep.go":                     "the folder of checkpoints below a shim's root",
	"migrate/kubeletfiles/backup.go":      "the kubelet's own files, and a backup of them below root_dir",
	"migrate/handover/handover.go":        "the backup of a switch below root_dir",
	"state/flush.go":                      "records below root_dir, named by checked ids",
	"internal/atomicfile/atomicfile.go":   "for the records of the rooms above",
	"server/listen.go":                    "the operator's sockets",
	"state/load.go":                       "records below root_dir, named by what is in the folder or by checked ids",
	"state/lock.go":                       "the lock below root_dir",
	"state/store.go":                      "folders below root_dir",
	"stats/kept.go":                       "a cgroup path that the kernel told of a container's process",
	"streaming/netns.go":                  "opens a pinned namespace of our own and checks that it is one",
	"internal/failpoint/on.go":            "only in builds for tests",
}

// TestS08PathsGoThroughHelpersThatFollowNoLink has each place that changes the file system, or opens by the kernel's calls,
// say whose path that is. A new one fails until it uses a helper or has its line.
func TestS08PathsGoThroughHelpersThatFollowNoLink(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range calls(t) {
		if !pathMakers[c.callee] {
			continue
		}
		seen[c.file] = true
		if followNoLink[c.file] == "" && trusted[c.file] == "" {
			t.Errorf("%s:%d: %s in %s: does a pod, an image or a request have a part in the path? Then use a helper of followNoLink; else say why not in trusted",
				c.file, c.line, c.callee, c.function)
		}
		if c.callee == "os.Create" {
			t.Errorf("%s:%d: os.Create follows links and truncates what is there: use O_EXCL or atomicfile", c.file, c.line)
		}
	}
	for _, list := range []map[string]string{followNoLink, trusted} {
		for file := range list {
			if !seen[file] {
				t.Errorf("%s has no such place any more: its line is stale", file)
			}
		}
	}
}
