package rootfs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"crishim/engine"
	"crishim/internal/hostpath"
)

// PrepareSources makes the missing host paths of mounts (never behind a link that a pod can have made), checks that their
// propagation is what the mounts ask for, and relabels those that ask for it with mountLabel, "" without SELinux.
func PrepareSources(mounts []engine.Mount, mountLabel string) error {
	for i := range mounts {
		m := &mounts[i]
		if m.Image != nil {
			continue
		}
		if err := prepareSource(m, mountLabel); err != nil {
			return fmt.Errorf("mount %.200s: host path %.200s: %w", m.ContainerPath, m.HostPath, err)
		}
	}
	return nil
}

func prepareSource(m *engine.Mount, mountLabel string) error {
	if err := hostpath.Make(m.HostPath); err != nil {
		return err
	}
	if err := checkPropagation(m); err != nil {
		return err
	}
	if !m.SELinuxRelabel {
		return nil
	}
	return hostpath.Relabel(m.HostPath, mountLabel, hostpath.SetLabel)
}

// checkPropagation: what is mounted below the path on the host can reach the container only from a shared or slave mount,
// and the other way only to a shared one.
func checkPropagation(m *engine.Mount) error {
	if m.Propagation != engine.PropagationHostToContainer && m.Propagation != engine.PropagationBidirectional {
		return nil
	}
	real, err := filepath.EvalSymlinks(m.HostPath)
	if err != nil {
		return err
	}
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(real))
	if err != nil {
		return fmt.Errorf("find its mount: %w", err)
	}
	source, err := mountOf(real, all)
	if err != nil {
		return err
	}
	has := func(tag string) bool {
		return slices.ContainsFunc(strings.Fields(source.Optional), func(o string) bool { return strings.HasPrefix(o, tag) })
	}
	switch {
	case has("shared:"):
		return nil
	case m.Propagation == engine.PropagationBidirectional:
		return invalid("its mount %s is not shared, which Bidirectional propagation needs", source.Mountpoint)
	case !has("master:"):
		return invalid("its mount %s is neither shared nor a slave, which HostToContainer propagation needs", source.Mountpoint)
	}
	return nil
}

// mountOf is the last made of the deepest mounts that path is in.
func mountOf(path string, all []*mountinfo.Info) (*mountinfo.Info, error) {
	var best *mountinfo.Info
	for _, m := range all {
		if best == nil || len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	if best == nil {
		return nil, fmt.Errorf("no mount has %s: %w", path, errdefs.ErrFailedPrecondition)
	}
	return best, nil
}
