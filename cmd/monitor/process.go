//go:build cgo

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

const oomScoreFile = "/proc/self/oom_score_adj"

// becomeMonitor sets up the process, which the daemon started in a session of its own with the root as its folder. It
// returns the OOM score that it had.
func becomeMonitor(config *monitor.Config) (oomScoreAdj int, err error) {
	for _, dir := range config.Cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return 0, fmt.Errorf("enter the monitors' cgroup: %w", err)
		}
	}
	// The name would be the number of the descriptor that the program was started from. It is for people only.
	_ = os.WriteFile("/proc/self/comm", []byte(monitor.Argv[0]), 0)
	// Execs inherit it, where libcontainer gives a container's first process this one; and cgroups, through which root of a
	// user namespace goes to its own, are made with it. The daemon's is closed.
	unix.Umask(0o022)
	// Orphans of containers that share the host's PID namespace come to us.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become a subreaper: %w", err)
	}
	// Nothing of a container can trace or read it, not even while a child of ours is on its way there.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become non-dumpable: %w", err)
	}
	// Caught and dropped, not ignored: a container's process would start with ignored signals ignored.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	return protectFromOOM(), nil
}

// protectFromOOM lowers the OOM score as far as this machine lets us: without CAP_SYS_RESOURCE it stays.
func protectFromOOM() (before int) {
	if data, err := os.ReadFile(oomScoreFile); err == nil {
		before, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	_ = os.WriteFile(oomScoreFile, []byte("-999"), 0)
	return before
}

// takeListener takes the socket that the daemon made.
func takeListener() (*net.UnixListener, error) {
	// Listening again makes this process the peer that a client sees, instead of the daemon.
	if err := unix.Listen(monitor.ListenerFD, 128); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	f := os.NewFile(monitor.ListenerFD, monitor.SocketName)
	defer func() { _ = f.Close() }()
	listener, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	l, ok := listener.(*net.UnixListener)
	if !ok {
		return nil, errors.New("it is no unix socket")
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// childSignals ticks after children have exited.
func childSignals() <-chan struct{} {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	ticks := make(chan struct{})
	go func() {
		for range signals {
			ticks <- struct{}{}
		}
	}()
	return ticks
}
