package streaming

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dialTimeout bounds a connect to a loopback address: a listener that accepts nothing leaves it unanswered.
const dialTimeout = 10 * time.Second

var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// DialPod connects to the TCP port on the loopback address of a network namespace: 127.0.0.1, then ::1. netnsPath is a
// pinned namespace (a bind mount of nsfs); "" is the host's, for pods with the host's network. It runs no program and
// leaves no thread in the namespace.
//
// Errors: ErrInvalidArgument for a port outside 1 to 65535; ErrFailedPrecondition where the path is no network
// namespace of a pod (unpinned, or the host's own); ErrNotFound where it is gone; the connect's own error otherwise.
func DialPod(ctx context.Context, netnsPath string, port int32) (net.Conn, error) {
	if err := checkPort(port); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dial := func(addr netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr.String())
	}
	if netnsPath != "" {
		ns, err := openNetNS(netnsPath)
		if err != nil {
			return nil, err
		}
		defer unix.Close(ns)
		dial = func(addr netip.AddrPort) (net.Conn, error) { return dialIn(ctx, ns, addr) }
	}
	var errs []error
	for _, addr := range loopback {
		conn, err := dial(netip.AddrPortFrom(addr, uint16(port)))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("connect to port %d of the pod: %w", port, errors.Join(errs...))
}

// openNetNS opens a pod's network namespace. What is checked is what is used: the path is not looked at again.
func openNetNS(path string) (int, error) {
	fail := func(why string, err error) (int, error) {
		return -1, fmt.Errorf("network namespace %s %s, stop the pod: %w", path, why, err)
	}
	// O_NONBLOCK: should the path be a FIFO, nobody waits for its writer.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return fail("is gone", errdefs.ErrNotFound)
	}
	if err != nil {
		return -1, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	var fs unix.Statfs_t
	var pod, host unix.Stat_t
	err = errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &pod), unix.Stat("/proc/thread-self/ns/net", &host))
	kind, kindErr := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	switch {
	case err != nil:
		err = fmt.Errorf("check network namespace %s: %w", path, err)
	case fs.Type != unix.NSFS_MAGIC:
		_, err = fail("is not pinned any more", errdefs.ErrFailedPrecondition)
	case kindErr != nil || kind != unix.CLONE_NEWNET:
		_, err = fail("is a namespace of another kind", errdefs.ErrFailedPrecondition)
	case pod.Dev == host.Dev && pod.Ino == host.Ino:
		_, err = fail("is the host's", errdefs.ErrFailedPrecondition)
	default:
		return fd, nil
	}
	_ = unix.Close(fd)
	return -1, err
}

// dialIn connects within the namespace. A socket belongs to the namespace where it was made, so that only making it needs a
// thread there.
func dialIn(ctx context.Context, ns int, addr netip.AddrPort) (net.Conn, error) {
	family := unix.AF_INET
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(addr.Port())}
	if addr.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())}
	}
	fd, err := socketIn(ns, family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), addr.String())
	defer f.Close() // FileConn has its own
	if err := connect(ctx, f, to); err != nil {
		return nil, fmt.Errorf("dial tcp %s: %w", addr, err)
	}
	return net.FileConn(f)
}

// socketIn makes a socket in the namespace, on a thread of its own that is only reused once it is back.
func socketIn(ns, family int) (int, error) {
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread()
		fd, err, back := switchAndMake(ns, family)
		if back {
			runtime.UnlockOSThread() // otherwise the thread ends with this goroutine
		}
		made <- result{fd, err}
	}()
	r := <-made
	return r.fd, r.err
}

func switchAndMake(ns, family int) (fd int, err error, back bool) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the own network namespace: %w", err), true
	}
	defer unix.Close(home)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("enter the pod's network namespace: %w", err), true
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		err = fmt.Errorf("make a socket in the pod's network namespace: %w", err)
	}
	return fd, err, unix.Setns(home, unix.CLONE_NEWNET) == nil
}

// connect waits for the connection without holding a thread.
func connect(ctx context.Context, f *os.File, to unix.Sockaddr) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Now()) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	started := false
	err = raw.Write(func(fd uintptr) bool {
		if !started {
			started = true
			result = unix.Connect(int(fd), to)
			return !errors.Is(result, unix.EINPROGRESS)
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = err
		case code != 0:
			result = unix.Errno(code)
		default:
			_, result = unix.Getpeername(int(fd))
		}
		return !errors.Is(result, unix.ENOTCONN) // woken for nothing
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if result == nil && toItself(raw) {
		return unix.ECONNREFUSED
	}
	return result
}

// toItself says that the kernel took the port that is dialled for the socket's own: then nobody listens there.
func toItself(raw syscall.RawConn) bool {
	same := false
	err := raw.Control(func(fd uintptr) {
		own, err := unix.Getsockname(int(fd))
		peer, peerErr := unix.Getpeername(int(fd))
		if errors.Join(err, peerErr) != nil {
			return
		}
		switch own := own.(type) {
		case *unix.SockaddrInet4:
			peer, ok := peer.(*unix.SockaddrInet4)
			same = ok && own.Port == peer.Port && own.Addr == peer.Addr
		case *unix.SockaddrInet6:
			peer, ok := peer.(*unix.SockaddrInet6)
			same = ok && own.Port == peer.Port && own.Addr == peer.Addr
		}
	})
	return err == nil && same
}
