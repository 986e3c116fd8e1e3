package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// init keeps other goroutines off the main thread: a test that enters a namespace lets its thread die with the goroutine,
// which the main thread cannot, and /proc/self would be in that namespace from then on.
func init() { runtime.LockOSThread() }

// insideVariable marks the second start of the test program, inside its namespaces.
const insideVariable = "CRISHIM_E2E_INSIDE"

// reexecInNamespaces starts this test program again in new network and mount namespaces and returns its exit status.
func reexecInNamespaces() int {
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), insideVariable+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if err := again.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "starting the tests in namespaces of their own:", err)
		return 1
	}
	// `go test` asks a test that takes too long for its stacks, and a person stops it: both are meant for the one inside.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			_ = again.Process.Signal(s)
		}
	}()
	err := again.Wait()
	if exit := (&exec.ExitError{}); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "waiting for the tests:", err)
		return 1
	}
	return 0
}

// prepareNamespaces cuts the mounts off from the host's and brings the loopback device up.
func prepareNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	// Shared among ourselves: the engine and the daemon are to see each other's mounts as on a real host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making the mounts shared: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// onHostNetwork runs f on a thread that is in the host's network namespace; processes that f starts are there too.
func onHostNetwork(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends, and /proc/self shows its namespaces: take another one.
			defer runtime.UnlockOSThread()
			result <- onHostNetwork(f)
			return
		}
		// Never unlocked: the thread ends with this goroutine, the other network with it.
		if err := enterNetworkOf(os.Getppid()); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// enterNetworkOf moves the calling thread to the network namespace of a process. The parent of a test program inside its
// namespaces is the one outside (see Main).
func enterNetworkOf(pid int) error {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the host's network: %w", err)
	}
	return nil
}
