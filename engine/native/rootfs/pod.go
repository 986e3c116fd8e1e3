package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/podfiles"
	"crishim/internal/pause"
)

// Pod is what a pod's containers share; "" for what is the host's.
type Pod struct {
	Shm        string `json:"shm,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
	Hostname   string `json:"hostname,omitempty"`
	ResolvConf string `json:"resolvConf,omitempty"`
}

// shmSize is Docker's and containerd's.
const shmSize = "65536k"

// MakePod writes the pod's files and mounts its /dev/shm; mountLabel is SELinux's, "" without. Repeating it makes them anew.
func (s *Store) MakePod(ctx context.Context, id engine.PodID, spec *engine.PodSpec, mountLabel string) (Pod, error) {
	p, err := s.makePod(ctx, id, spec, mountLabel)
	if err != nil {
		return Pod{}, fmt.Errorf("make the files of pod %s: %w", id, err)
	}
	return p, nil
}

func (s *Store) makePod(ctx context.Context, id engine.PodID, spec *engine.PodSpec, mountLabel string) (Pod, error) {
	if err := s.RemovePod(ctx, id); err != nil {
		return Pod{}, err
	}
	var m *Idmap
	if spec.Namespaces.User != nil {
		m = &Idmap{Namespace: spec.Namespaces.User}
	}
	uid, gid, err := m.root()
	if err != nil {
		return Pod{}, err
	}
	dir := s.pod(id)
	if err := makeDir(dir, 0o700, uid, gid); err != nil {
		return Pod{}, err
	}
	p := Pod{Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname"), ResolvConf: filepath.Join(dir, "resolv.conf")}
	texts, err := podfiles.Texts(spec)
	if err != nil {
		return Pod{}, err
	}
	if err := texts.Mount(dir, uid, gid); err != nil {
		return Pod{}, err
	}
	for _, path := range []string{p.Hosts, p.Hostname, p.ResolvConf} {
		if err := label.SetFileLabel(path, mountLabel); err != nil {
			return Pod{}, fmt.Errorf("label %s: %w", path, err)
		}
	}
	if spec.Namespaces.IPC == engine.NamespaceNode {
		return p, nil
	}
	p.Shm = filepath.Join(dir, "shm")
	if err := makeDir(p.Shm, 0o700, uid, gid); err != nil {
		return Pod{}, err
	}
	options := label.FormatMountLabel(fmt.Sprintf("mode=1777,size=%s,uid=%d,gid=%d", shmSize, uid, gid), mountLabel)
	if err := unix.Mount("shm", p.Shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return Pod{}, fmt.Errorf("mount a tmpfs at %s: %w", p.Shm, err)
	}
	return p, nil
}

// RemovePod takes the pod's files away. OK when there are none.
func (s *Store) RemovePod(ctx context.Context, id engine.PodID) error {
	if err := checkID(string(id)); err != nil {
		return err
	}
	// With what is mounted in it. Before the files had a mount of their own there was but that of /dev/shm.
	if err := removeMounts(ctx, s.pod(id), s.pod(id)); err != nil {
		return fmt.Errorf("remove the files of pod %s: %w", id, err)
	}
	return nil
}

// PauseRoot is a root file system with nothing in it but /pause and folders to mount on. It is made at the first call, and
// shared by all pods, read-only: after a boot many of them ask at once.
func (s *Store) PauseRoot() (string, error) {
	s.pausing.Lock()
	defer s.pausing.Unlock()
	target := filepath.Join(s.run, "pause")
	mounted, err := mountinfo.Mounted(target)
	if err == nil && mounted {
		return target, nil
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = s.makePause(filepath.Join(s.state, "pause"), target)
	}
	if err != nil {
		return "", fmt.Errorf("make the root of pause processes: %w", err)
	}
	return target, nil
}

// makePause: the program is in STATE, because RUN may be mounted noexec, and seen through RUN, whose parents let users of
// other namespaces pass.
func (s *Store) makePause(dir, target string) error {
	for _, d := range []string{dir, filepath.Join(dir, "proc"), filepath.Join(dir, "dev"), filepath.Join(dir, "sys"), target} {
		if err := makeDir(d, 0o755, 0, 0); err != nil {
			return err
		}
	}
	// Written anew, as an earlier version may have left another, and whole before it has its name.
	program := filepath.Join(dir, "pause")
	part := program + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeFile(part, pause.Program(), 0o755, 0, 0); err != nil {
		return err
	}
	if err := os.Rename(part, program); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
