package docker

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// makeMountSources makes a folder of each host path that is not there, as every runtime does; Docker refuses a bind
// mount without a source.
func makeMountSources(mounts []engine.Mount) error {
	for _, m := range mounts {
		if m.Image != nil {
			continue
		}
		if err := makeFolder(m.HostPath); err != nil {
			return fmt.Errorf("mount %.200s: host path %.200s: %w", m.ContainerPath, m.HostPath, err)
		}
	}
	return nil
}

// maxLinks is the kernel's own bound on links in one path.
const maxLinks = 40

// makeFolder makes the missing end of an absolute path. An existing path is left alone, whatever leads to it. Where
// something has to be made, links on the way are followed only where root put them into a folder that only root writes
// (/var/run): a pod must not get folders made wherever a link in its own volume points (catalogue S09).
func makeFolder(name string) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return walk(strings.Split(path.Clean(name), "/"), maxLinks)
}

func walk(parts []string, links int) error {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	at := "/"
	for i, part := range parts {
		if part == "" {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(dir, part, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			err = unix.Mkdirat(dir, part, 0o755)
			if err == nil || errors.Is(err, unix.EEXIST) {
				err = unix.Fstatat(dir, part, &st, unix.AT_SYMLINK_NOFOLLOW)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path.Join(at, part), err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return follow(dir, at, part, &st, parts[i+1:], links)
		}
		next, err := unix.Openat(dir, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return invalid("%s is not a folder", path.Join(at, part))
		}
		_ = unix.Close(dir)
		dir, at = next, path.Join(at, part)
	}
	return nil
}

// follow goes on behind a link that only root can have made.
func follow(dir int, at, part string, link *unix.Stat_t, rest []string, links int) error {
	var parent unix.Stat_t
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	if links == 0 || link.Uid != 0 || parent.Uid != 0 || parent.Mode&0o022 != 0 {
		return invalid("%s is a link, nothing is made behind it", path.Join(at, part))
	}
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, part, buffer)
	if err != nil {
		return err
	}
	target := string(buffer[:n])
	if !path.IsAbs(target) {
		target = path.Join(at, target)
	}
	return walk(append(strings.Split(path.Clean(target), "/"), rest...), links-1)
}

func relabelled(m *engine.Mount) bool { return m.SELinuxRelabel && m.Image == nil }

// relabelMounts gives host paths the container's SELinux label where CRI asks for it. The library refuses the folders
// whose label the host needs (/, /etc, /usr, homes). Without SELinux the label is "" and nothing is done.
func relabelMounts(spec *engine.ContainerSpec, mountLabel string, relabel func(path, label string, shared bool) error) error {
	if mountLabel == "" {
		return nil
	}
	for _, m := range spec.Mounts {
		if !relabelled(&m) {
			continue
		}
		if err := relabel(m.HostPath, mountLabel, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("relabel %.200s: %w: %w", m.HostPath, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// appArmorProfiles lists what the kernel has loaded, a line each: "NAME (MODE)".
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// checkAppArmor refuses a profile that is not in the kernel's list; Docker would tell at the start only.
func checkAppArmor(p *engine.Profile, f *facts, list string) error {
	if p.Type != engine.ProfileLocalhost {
		return nil
	}
	if !f.appArmor {
		return invalid("AppArmor profile %.200q: this engine has no AppArmor", p.LocalhostRef)
	}
	data, err := os.ReadFile(list)
	if err != nil {
		return fmt.Errorf("AppArmor profiles: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndex(line, " ("); i > 0 && line[:i] == p.LocalhostRef {
			return nil
		}
	}
	return invalid("AppArmor profile %.200q is not loaded", p.LocalhostRef)
}
