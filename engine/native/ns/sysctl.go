package ns

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// fill sets the hostname and the sysctls of the namespaces that the calling thread is in.
func (c *Config) fill() error {
	if c.UTS && c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("set the hostname %.80q: %w: %w", c.Hostname, err, errdefs.ErrInvalidArgument)
		}
	}
	if c.Net {
		for name, value := range netDefaults(c.User) {
			if _, asked := c.Sysctls[name]; asked {
				continue
			}
			// A kernel without the sysctl works as it always did.
			if err := setSysctl(name, value); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	names := slices.Sorted(maps.Keys(c.Sysctls))
	for _, name := range names {
		if err := c.owns(name); err != nil {
			return err
		}
	}
	// Those of the IPC namespace come last, as the user namespace's root, to whom alone the kernel lets them be written.
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	for _, name := range names {
		if rank(name) == ipcRank && c.User != nil {
			if err := becomeRoot(c.User); err != nil {
				return err
			}
		}
		if err := setSysctl(name, c.Sysctls[name]); err != nil {
			return err
		}
	}
	return nil
}

const ipcRank = 1

func rank(sysctl string) int {
	if strings.HasPrefix(sysctl, "net.") {
		return 0
	}
	return ipcRank
}

// becomeRoot makes the calling thread, which ends soon, the root of a user namespace as to file permissions. The system
// calls are made directly: those of package unix would change every thread of the process.
func becomeRoot(user *engine.UserNamespace) error {
	uid, gid := rootOf(user.UIDs), rootOf(user.GIDs)
	for _, call := range []struct{ nr, id uintptr }{{unix.SYS_SETRESGID, gid}, {unix.SYS_SETRESUID, uid}} {
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(call.nr, keep, call.id, keep); errno != 0 {
			return fmt.Errorf("become the root of the user namespace: %w", errno)
		}
	}
	return nil
}

// rootOf is the id outside that is 0 inside, and the one that we have already where there is none.
func rootOf(maps []engine.IDMapping) uintptr {
	for _, m := range maps {
		if m.ContainerID == 0 {
			return uintptr(m.HostID)
		}
	}
	return 0
}

// netDefaults are Docker's and containerd's for network namespaces of containers: low ports and ping need no capability.
// The kernel reads groups as the writer, which is the host's root, sees them.
func netDefaults(user *engine.UserNamespace) map[string]string {
	out := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	switch {
	case user == nil:
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	case len(user.GIDs) > 0 && user.GIDs[0].Length > 0:
		first := uint64(user.GIDs[0].HostID)
		out["net.ipv4.ping_group_range"] = strconv.FormatUint(first, 10) + " " + strconv.FormatUint(first+uint64(user.GIDs[0].Length)-1, 10)
	}
	return out
}

// ipcSysctls are those of the IPC namespace besides fs.mqueue.*.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
	"kernel.shm_rmid_forced",
}

// owns refuses a sysctl that would be set on the host: of no namespace, or of one that the pod does not have for itself
// (docs/reliability.md S24; the caller has refused it already).
func (c *Config) owns(name string) error {
	if c.Net && strings.HasPrefix(name, "net.") || c.IPC && (strings.HasPrefix(name, "fs.mqueue.") || slices.Contains(ipcSysctls, name)) {
		return nil
	}
	return fmt.Errorf("sysctl %.80q is of no namespace that the pod has for itself: %w", name, errdefs.ErrInvalidArgument)
}

// setSysctl writes one, by its name with dots; the value is one line.
func setSysctl(name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	if strings.ContainsAny(value, "\n\x00") {
		return fmt.Errorf("sysctl %s: %.80q is not one value: %w", name, value, errdefs.ErrInvalidArgument)
	}
	root, err := os.OpenRoot("/proc/sys")
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", name, err)
	}
	defer func() { _ = root.Close() }()
	file, err := root.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(value)
		_ = file.Close()
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %.80q: %w: %w", name, value, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// sysctlPath is below /proc/sys. Only names of words are taken: neither slashes nor empty words, which could climb.
func sysctlPath(name string) (string, error) {
	for word := range strings.SplitSeq(name, ".") {
		for _, c := range []byte(word) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
				return "", fmt.Errorf("%.80q is no name of a sysctl: %w", name, errdefs.ErrInvalidArgument)
			}
		}
		if word == "" {
			return "", fmt.Errorf("%.80q is no name of a sysctl: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return strings.ReplaceAll(name, ".", "/"), nil
}
