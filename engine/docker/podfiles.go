package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/podfiles"
	"crishim/internal/failpoint"
	"crishim/internal/mounttree"
)

// podFiles are what the containers of a pod without a network of Docker's read in /etc, for which Docker has no files either:
//
//	dir/POD-ID → mounts/POD-ID/{hosts,hostname,resolv.conf}
//	dir/POD-ID/{hosts,hostname,resolv.conf}
//
// The first is for an engine that sees what is mounted on the host.
//
// They are mounted into each container of the pod, and go with its pin. Where there are none, the pod is another shim's or one
// that may be given back to it, and Docker mounts its own.
//
// The link is for versions that had but folders: they remove it, and could not remove a mount.
type podFiles struct {
	dir, mounts string
	// restoring is held while files are made anew for a pod that runs.
	restoring sync.Mutex
}

// ownFiles says whether a pod is made so. One in the host's network has the host's names from Docker, at no cost.
func ownFiles(spec *engine.PodSpec, f *facts) bool {
	return spec.Namespaces.Network != engine.NamespaceNode && !f.bridge && !f.giveBack
}

func (p *podFiles) of(id engine.PodID) string { return filepath.Join(p.dir, string(id)) }

func (p *podFiles) mount(id engine.PodID) string { return filepath.Join(p.mounts, string(id)) }

// write makes the files, or makes them anew. mountLabel is "" without SELinux, and while the pod does not run yet.
func (p *podFiles) write(id engine.PodID, spec *engine.PodSpec, f *facts, mountLabel string) error {
	named := *spec
	if named.Hostname == "" {
		named.Hostname = string(id[:12]) // as Docker names it
	}
	texts, err := podfiles.Texts(&named)
	if err != nil {
		return err
	}
	return failpoint.Around("podfiles", func() error {
		if err := p.make(id, texts, f.seesMounts, mountLabel); err != nil {
			return fmt.Errorf("make the pod's files: %w", err)
		}
		return nil
	})
}

func (p *podFiles) make(id engine.PodID, texts podfiles.Files, mount bool, mountLabel string) error {
	if err := p.clear(id); err != nil {
		return err
	}
	dir := p.mount(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	put := texts.Write
	if mount {
		put = texts.Mount
	}
	if err := errors.Join(put(dir, 0, 0), relabel(dir, mountLabel)); err != nil {
		return err
	}
	// Whoever finds them finds them whole.
	if mount {
		return os.Symlink(dir, p.of(id))
	}
	return os.Rename(dir, p.of(id))
}

// clear takes away what is there: the link last, so that what is left is found by it.
func (p *podFiles) clear(id engine.PodID) error {
	if err := mounttree.UnmountOne(p.mount(id)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(p.mount(id)), os.RemoveAll(p.of(id)))
}

// sweep takes away mounts without a link: an earlier version removed their pods, or the daemon died as it made them.
func (p *podFiles) sweep() error {
	mounts, err := os.ReadDir(p.mounts)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		id := engine.PodID(m.Name())
		if _, err := os.Lstat(p.of(id)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := p.clear(id); err != nil {
			return fmt.Errorf("remove the files of pod %s, which is gone: %w", id, err)
		}
	}
	return nil
}

// relabel lets the pod's containers have them; mountLabel is the pause container's, "" without SELinux.
func (p *podFiles) relabel(id engine.PodID, mountLabel string) error {
	if mountLabel == "" {
		return nil
	}
	dir, err := filepath.EvalSymlinks(p.of(id))
	if err != nil {
		return fmt.Errorf("label the pod's files: %w", err)
	}
	return relabel(dir, mountLabel)
}

func relabel(dir, mountLabel string) error {
	if err := label.Relabel(dir, mountLabel, true); err != nil {
		return fmt.Errorf("label the pod's files: %w", err)
	}
	return nil
}

// podFilesOf are the mounts of its pod's files for a new container. Where they are gone, as somebody emptied the run folder or
// configured another one, or where the engine cannot see them, they are made anew: the pod has no others.
func (e *Engine) podFilesOf(ctx context.Context, s *session, spec *engine.ContainerSpec) ([]mount.Mount, error) {
	if !e.podFiles.there(spec.Pod, s.facts) {
		if !e.pauses.haveOwnFiles(spec.Pod) {
			return nil, nil
		}
		if err := e.restorePodFiles(ctx, s, spec.Pod); err != nil {
			return nil, err
		}
	}
	return e.podFiles.lower(spec, s.facts)
}

func (e *Engine) restorePodFiles(ctx context.Context, s *session, id engine.PodID) error {
	e.podFiles.restoring.Lock()
	defer e.podFiles.restoring.Unlock()
	if e.podFiles.there(id, s.facts) {
		return nil
	}
	var spec *engine.PodSpec
	if e.opts.PodSpec != nil {
		spec = e.opts.PodSpec(id)
	}
	if spec == nil {
		return fmt.Errorf("the pod's files for /etc are gone, it has to be made anew: %w", errdefs.ErrFailedPrecondition)
	}
	in, err := inspect(ctx, s, string(id), sandbox)
	if err != nil {
		return err
	}
	klog.InfoS("Making the files for /etc of a pod anew, they are gone or the engine cannot see them", "pod", id, "folder", e.podFiles.of(id))
	return e.podFiles.write(id, spec, s.facts, in.MountLabel)
}

var podFileNames = []string{"hosts", "hostname", "resolv.conf"}

// there says whether a pod has its files, where the engine sees them: it may have been started anew in a mount namespace of its own.
func (p *podFiles) there(id engine.PodID, f *facts) bool {
	if st, err := os.Lstat(p.of(id)); err == nil && st.Mode()&os.ModeSymlink != 0 && !f.seesMounts {
		return false
	}
	return !slices.ContainsFunc(podFileNames, func(name string) bool {
		_, err := os.Stat(filepath.Join(p.of(id), name))
		return err != nil
	})
}

// lower has the mounts of those of the pod's files that the container has none of its own for; writable where its root is:
// programs edit /etc/hosts.
func (p *podFiles) lower(spec *engine.ContainerSpec, f *facts) ([]mount.Mount, error) {
	var mounts []mount.Mount
	for _, name := range podFileNames {
		target := path.Join("/etc", name)
		if slices.ContainsFunc(spec.Mounts, func(m engine.Mount) bool { return path.Clean(m.ContainerPath) == target }) {
			continue
		}
		m, err := lowerMount(&engine.Mount{
			ContainerPath: target, HostPath: filepath.Join(p.of(spec.Pod), name), Readonly: spec.Security.ReadonlyRootfs, Propagation: engine.PropagationPrivate,
		}, f)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// remove takes the files away. OK when there are none.
func (p *podFiles) remove(id engine.PodID) error {
	if !validID(string(id)) {
		return nil
	}
	return failpoint.Around("podfiles.remove", func() error {
		if err := p.clear(id); err != nil {
			return fmt.Errorf("remove the pod's files: %w", err)
		}
		return nil
	})
}

// isPodFile says whether a mount of a container's is of a file of its pod: one of its own source is never in a folder of that name.
func isPodFile(m *container.MountPoint, pod string) bool {
	return pod != "" && path.Base(path.Dir(m.Source)) == pod && path.Join("/etc", path.Base(m.Source)) == m.Destination
}

// writeResolvConf writes the file that Docker mounts into the containers of a pod with a network of Docker's, in place: the
// mounts hold its inode. Docker would take loopback servers out.
func writeResolvConf(in *container.InspectResponse, f *facts, spec *engine.PodSpec) error {
	text, err := podfiles.ResolvConf(spec)
	if err != nil {
		return fmt.Errorf("make the pod's resolv.conf: %w", err)
	}
	path := in.ResolvConfPath
	if want := filepath.Join(f.rootDir, "containers", in.ID, "resolv.conf"); path != want {
		return fmt.Errorf("the engine says that the pod's resolv.conf is %q, not %q: %w", path, want, errdefs.ErrFailedPrecondition)
	}
	return failpoint.Around("resolvconf", func() error { return overwrite(path, []byte(text)) })
}

// overwrite replaces the content of a regular file.
func overwrite(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err = file.Write(data)
	return err
}
