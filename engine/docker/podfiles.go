package docker

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/podfiles"
	"crishim/internal/failpoint"
)

// podFiles are what the containers of a pod without a network of Docker's read in /etc, for which Docker has no files either:
//
//	dir/POD-ID/{hosts,hostname,resolv.conf}
//
// They are mounted into each container of the pod, and go with its pin. Where there are none, the pod is another shim's or one
// that may be given back to it, and Docker mounts its own.
type podFiles struct{ dir string }

// ownFiles says whether a pod is made so. One in the host's network has the host's names from Docker, at no cost.
func ownFiles(spec *engine.PodSpec, f *facts) bool {
	return spec.Namespaces.Network != engine.NamespaceNode && !f.bridge && !f.giveBack
}

func (p *podFiles) of(id engine.PodID) string { return filepath.Join(p.dir, string(id)) }

// write makes the files, or makes them anew: the pod does not run yet.
func (p *podFiles) write(id engine.PodID, spec *engine.PodSpec) error {
	named := *spec
	if named.Hostname == "" {
		named.Hostname = string(id[:12]) // as Docker names it
	}
	texts, err := podfiles.Texts(&named)
	if err != nil {
		return err
	}
	return failpoint.Around("podfiles", func() error {
		if err := os.Mkdir(p.of(id), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make the pod's files: %w", err)
		}
		for name, text := range map[string]string{"hosts": texts.Hosts, "hostname": texts.Hostname, "resolv.conf": texts.ResolvConf} {
			file := filepath.Join(p.of(id), name)
			// For every user of a container, whatever our umask.
			if err := errors.Join(os.WriteFile(file, []byte(text), 0o644), os.Chmod(file, 0o644)); err != nil {
				return fmt.Errorf("make the pod's files: %w", err)
			}
		}
		return nil
	})
}

// relabel lets the pod's containers have them; mountLabel is the pause container's, "" without SELinux.
func (p *podFiles) relabel(id engine.PodID, mountLabel string) error {
	if mountLabel == "" {
		return nil
	}
	if err := label.Relabel(p.of(id), mountLabel, true); err != nil {
		return fmt.Errorf("label the pod's files: %w", err)
	}
	return nil
}

// mounts are those of the pod's files that the container has none of its own for; writable where its root is: programs edit
// /etc/hosts. wanted says that the pod has no files but these.
func (p *podFiles) mounts(spec *engine.ContainerSpec, wanted bool, f *facts) ([]mount.Mount, error) {
	switch _, err := os.Lstat(p.of(spec.Pod)); {
	case err == nil:
	case wanted:
		return nil, fmt.Errorf("the pod's files for /etc are gone, it has to be made anew: %w: %w", err, errdefs.ErrFailedPrecondition)
	default:
		return nil, nil
	}
	var mounts []mount.Mount
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
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
		if err := os.RemoveAll(p.of(id)); err != nil {
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
