package host

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// Device is a device node of the host as a container gets it.
type Device struct {
	specs.LinuxDevice
	// Access is of "r", "w", "m".
	Access string
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// maxDevices bounds what one folder can stand for.
const maxDevices = 4096

// Devices looks up what CRI asks for: links are followed, a folder stands for all device nodes in it. ErrInvalidArgument
// when a path is no device.
func Devices(asked []engine.Device) ([]Device, error) {
	var out []Device
	for _, a := range asked {
		access := a.Permissions
		if access == "" {
			access = "rwm"
		}
		source, err := filepath.EvalSymlinks(a.HostPath)
		if err != nil {
			return nil, invalid("device %.200q: %w", a.HostPath, err)
		}
		info, err := os.Stat(source)
		if err != nil {
			return nil, invalid("device %.200q: %w", a.HostPath, err)
		}
		if !info.IsDir() {
			d, err := node(source, a.ContainerPath, access)
			if err != nil {
				return nil, err
			}
			if d == nil {
				return nil, invalid("%.200q is no device node", a.HostPath)
			}
			out = append(out, *d)
			continue
		}
		found, err := walkDevices(source, a.ContainerPath, access, func(string) bool { return false })
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, invalid("no device node is in %.200q", a.HostPath)
		}
		out = append(out, found...)
	}
	return out, nil
}

// AllDevices are the host's, for privileged containers, without terminals and what a container has of its own.
func AllDevices() ([]Device, error) {
	own := map[string]bool{
		"/dev/pts": true, "/dev/shm": true, "/dev/fd": true, "/dev/mqueue": true, "/dev/console": true,
		// Folders that other runtimes leave out too: of lxc and of udev.
		"/dev/.lxc": true, "/dev/.lxd-mounts": true, "/dev/.udev": true,
	}
	return walkDevices("/dev", "/dev", "rwm", func(path string) bool { return own[path] })
}

// walkDevices finds the device nodes below dir, and shows them below target. Links are not followed.
func walkDevices(dir, target, access string, skip func(path string) bool) ([]Device, error) {
	var out []Device
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil // gone since it was listed
		case err != nil:
			return err
		case skip(path) && entry.IsDir():
			return fs.SkipDir
		case skip(path) || entry.Type()&fs.ModeDevice == 0:
			return nil
		}
		d, err := node(path, filepath.Join(target, strings.TrimPrefix(path, dir)), access)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || d == nil {
			return err
		}
		if len(out) == maxDevices {
			return invalid("%s holds more than %d devices", dir, maxDevices)
		}
		out = append(out, *d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find devices: %w", err)
	}
	return out, nil
}

// node reads a device node; nil when path is something else.
func node(path, target, access string) (*Device, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var kind string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return nil, nil
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return &Device{
		LinuxDevice: specs.LinuxDevice{
			Path: target, Type: kind, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
			Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		},
		Access: access,
	}, nil
}
