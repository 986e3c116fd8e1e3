package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"k8s.io/klog/v2"

	"crishim/internal/accept"
)

// Listen opens the CRI sockets: those that systemd hands over, else addresses ("unix:///run/…" or a path), mode 0660,
// root and the given group ("" is root's). A stale socket file is replaced; a living one, a symlink or any other file is
// an error. The sockets' own folders are made 0755 if absent; one that others may write is closed to them, since they could
// put a socket of their own in its place (a sticky one, as /tmp, stays).
func Listen(addresses []string, group string) ([]net.Listener, error) {
	handed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	var listeners []net.Listener
	for _, l := range handed {
		if l != nil {
			listeners = append(listeners, l)
		}
	}
	gid, err := GroupID(group)
	if err != nil {
		return nil, err
	}
	if len(listeners) > 0 && group != "" {
		klog.Warningf("socket_group = %q does nothing for a socket that systemd holds: set SocketGroup= in its unit (systemctl edit crishim.socket)", group)
	}
	for _, address := range addresses {
		path := strings.TrimPrefix(address, "unix://")
		if slices.ContainsFunc(listeners, func(l net.Listener) bool { return isAt(l, path) }) {
			continue
		}
		l, err := listenUnix(path, gid)
		if err != nil {
			for _, opened := range listeners {
				_ = opened.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// isAt says that l is the socket at path, which may be written in another way: /var/run is a link to /run on most hosts.
func isAt(l net.Listener, path string) bool {
	if l.Addr().String() == path {
		return true
	}
	there, err1 := os.Lstat(path)
	own, err2 := os.Lstat(l.Addr().String())
	return err1 == nil && err2 == nil && os.SameFile(there, own)
}

// closedDir makes dir, or takes the right to write from its group and others.
func closedDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if mode := info.Mode(); mode.Perm()&0o022 != 0 && mode&os.ModeSticky == 0 {
		return os.Chmod(dir, mode&^0o022)
	}
	return nil
}

// GroupID is the id of a group by its name or number; "" is root's.
func GroupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("socket group %q: %w; create it or set socket_group to another", name, err)
	}
	return strconv.Atoi(g.Gid)
}

func listenUnix(path string, gid int) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path must be absolute")
	}
	if err := closedDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("there is a %s that is not a socket; remove it", info.Mode().Type())
	default:
		if err := accept.Taken(path); err != nil {
			return nil, err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	// The umask makes the socket 0600 from its first moment; it is opened to the group when it has its owner.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}
