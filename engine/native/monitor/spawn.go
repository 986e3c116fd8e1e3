package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/internal/failpoint"
	"crishim/internal/process"
)

// The descriptors that a monitor is started with, beside /dev/null as its stdin and stdout and LogName as its stderr.
const (
	ListenerFD = 3 // a bound, listening socket
	ConfigFD   = 4 // configName, the Config as JSON
)

// configName stays in the run directory for who looks into an incident.
const configName = "config.json"

// Argv is how a monitor is called; the pod's name follows for the process table.
var Argv = []string{"crishim-monitor", "monitor"}

// Spawn starts a monitor from the helper (engine/native/helper.Open) in config.Dir, which is made (0700) where absent. It
// must not hold a monitor that lives: ErrAlreadyExists. The monitor ends by itself unless Commit or Create follow in time.
func Spawn(ctx context.Context, helper *os.File, config *Config) (*Client, error) {
	if err := ownDir(config.Dir); err != nil {
		return nil, err
	}
	if record, err := ReadRecord(config.Dir); err == nil && !process.Gone(record.PID, record.StartTicks) {
		return nil, fmt.Errorf("monitor %d of pod %s lives in %s: %w", record.PID, record.Pod, config.Dir, errdefs.ErrAlreadyExists)
	}
	listener, err := listen(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("make the socket of a monitor in %s: %w", config.Dir, err)
	}
	pid, err := start(helper, config, listener)
	// The monitor's is the only one from here on: were it held here too, who connects to a monitor that dies before it
	// answers would wait for ever.
	_ = listener.Close()
	if err != nil {
		return nil, fmt.Errorf("start the monitor of pod %s: %w", config.Pod, err)
	}
	// A child of ours: the pid stays its own until it is reaped.
	watch, err := process.WatchExit(pid, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		reap(pid)
		return nil, fmt.Errorf("watch the monitor of pod %s: %w", config.Pod, err)
	}
	c, err := newClient(ctx, config.Dir, watch, func() { reap(pid) })
	if err != nil {
		return nil, fmt.Errorf("the monitor of pod %s does not answer (see %s/%s): %w", config.Pod, config.Dir, LogName, err)
	}
	return c, nil
}

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// ownDir makes dir, or sees that it is a folder of ours that nobody else can enter.
func ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a monitor's run directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("make a monitor's run directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("the monitor's run directory %s is not a folder of ours: %w", dir, errdefs.ErrFailedPrecondition)
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close a monitor's run directory: %w", err)
		}
	}
	return nil
}

// listen makes the socket: connections wait in its backlog while the monitor starts, none is refused.
func listen(dir string) (*os.File, error) {
	handle, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(handle) }()
	if err := unix.Unlinkat(handle, SocketName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	listener := os.NewFile(uintptr(fd), SocketName)
	// Nobody but root gets into the folder, so the mode of the moment before Chmod does not matter.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", handle, SocketName)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = listener.Close()
		return nil, err
	}
	return listener, nil
}

func start(helper *os.File, config *Config, listener *os.File) (pid int, err error) {
	data, err := json.Marshal(config)
	if err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	log, err := os.OpenFile(config.Dir+"/"+LogName, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	settings, err := os.OpenFile(config.Dir+"/"+configName, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { _ = settings.Close() }()
	if _, err := settings.WriteAt(data, 0); err != nil {
		return 0, err
	}
	// By our own pid: in the child low numbers of descriptors are taken before the program is opened.
	program := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), helper.Fd())
	return syscall.ForkExec(program, append(append([]string(nil), Argv...), config.Pod), &syscall.ProcAttr{
		Dir: "/",
		// libcontainer passes GOMAXPROCS on; nothing else of the daemon's environment is of use.
		Env:   append(failpoint.Environ(), "GOMAXPROCS=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
		Files: []uintptr{null.Fd(), null.Fd(), log.Fd(), listener.Fd(), settings.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}
