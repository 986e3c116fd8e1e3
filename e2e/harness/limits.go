package harness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limit is something of which the kernel can have no more.
type Limit struct {
	Name string
	// errno is what the calls then end with. Without calls it is the limit of descriptors, which the kernel itself enforces.
	errno unix.Errno
	calls []uintptr
}

// Limits makes one daemon hit limits of its node, and nobody else: its system calls end as they do at the limit, while those of
// what it starts go on.
type Limits struct {
	mu       sync.Mutex
	pid      int
	now      *Limit
	hits     int
	filtered bool
}

// NewLimits are limits of which none is hit yet. It skips the test where this kernel does not ask another process about a system
// call.
func NewLimits(t testing.TB) *Limits {
	t.Helper()
	// Monitors and containers of the native engine would have the filter, and outlive the tests that answer for it.
	l := &Limits{filtered: !Native()}
	action := uint32(unix.SECCOMP_RET_USER_NOTIF)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno == 0 { // a kernel that knows the flags, too, misses the filter only
		const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		if _, _, without := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, 0); without != unix.EFAULT {
			errno = without
		}
	}
	if l.filtered && (errno != 0 || auditArch[runtime.GOARCH] == 0) {
		t.Skipf("no process can decide here (%s) what a system call of another one ends with: %v", runtime.GOARCH, errno)
	}
	return l
}

// opening are the calls that make a descriptor.
var opening = []uintptr{unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_SOCKET, unix.SYS_ACCEPT4, unix.SYS_PIPE2, unix.SYS_PIDFD_OPEN,
	unix.SYS_EPOLL_CREATE1, unix.SYS_INOTIFY_INIT1, unix.SYS_EVENTFD2}

// forking are the calls that make a process. Threads of the daemon are made by SYS_CLONE too, and a Go program that gets none ends.
var forking = []uintptr{unix.SYS_CLONE, unix.SYS_CLONE3}

// All are the limits that can be hit here.
func (l *Limits) All() []*Limit {
	all := []*Limit{{Name: "descriptors of the process"}}
	if l.filtered {
		all = append(all,
			&Limit{"files of the system", unix.ENFILE, opening},
			&Limit{"processes", unix.EAGAIN, forking},
			&Limit{"memory of the kernel", unix.ENOMEM, slices.Concat(opening, forking, []uintptr{unix.SYS_MOUNT, unix.SYS_MOVE_MOUNT,
				unix.SYS_MKDIRAT, unix.SYS_EPOLL_CTL, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_CONNECT})},
			&Limit{"mounts", unix.ENOSPC, []uintptr{unix.SYS_MOUNT, unix.SYS_MOVE_MOUNT, unix.SYS_FSMOUNT, unix.SYS_OPEN_TREE}},
			&Limit{"inotify", unix.EMFILE, []uintptr{unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH}},
			&Limit{"connections", unix.EAGAIN, []uintptr{unix.SYS_CONNECT}},
		)
	}
	return all
}

// Hit has the daemon be at the limit until done, which says how often it was, where that is counted.
func (l *Limits) Hit(t T, limit *Limit) (done func() int) {
	t.Helper()
	if limit.calls == nil {
		var old unix.Rlimit
		err := unix.Prlimit(l.pid, unix.RLIMIT_NOFILE, nil, &old)
		if err == nil {
			err = unix.Prlimit(l.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}, nil)
		}
		if err != nil {
			t.Fatalf("taking descriptors from the daemon: %v", err)
		}
		return func() int {
			if err := unix.Prlimit(l.pid, unix.RLIMIT_NOFILE, &old, nil); err != nil {
				t.Errorf("giving the daemon descriptors again: %v", err)
			}
			return 0 // the kernel does not count them
		}
	}
	l.set(limit)
	return func() int { return l.set(nil) }
}

func (l *Limits) set(limit *Limit) (hits int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hits, l.now, l.hits = l.hits, limit, 0
	return hits
}

// limitedVariable marks the start of this test program that becomes the daemon, with a filter of system calls.
const limitedVariable = "CRISHIM_E2E_LIMITED"

// listenerFD is the socket by which it hands the filter's listener over.
const listenerFD = 3

// start starts a daemon whose calls are asked for here.
func (l *Limits) start(cmd *exec.Cmd) error {
	if !l.filtered {
		err := cmd.Start()
		if err == nil {
			l.pid = cmd.Process.Pid
		}
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "listener"), os.NewFile(uintptr(pair[1]), "listener")
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	cmd.Args = slices.Concat([]string{cmd.Args[0], cmd.Path}, cmd.Args[1:])
	cmd.Path, cmd.Env, cmd.ExtraFiles = "/proc/self/exe", append(cmd.Env, limitedVariable+"=1"), []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = theirs.Close()
	listener, err := receiveFD(int(ours.Fd()))
	if err != nil {
		return errors.Join(fmt.Errorf("the daemon that is to have limits: %w", err), cmd.Process.Kill())
	}
	l.mu.Lock()
	l.pid = cmd.Process.Pid
	l.mu.Unlock()
	go l.answer(listener)
	return nil
}

func receiveFD(socket int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	n, controlled, _, _, err := unix.Recvmsg(socket, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("no filter was made: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlled])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	return fds[0], nil
}

// notification is struct seccomp_notif, answer struct seccomp_notif_resp.
type (
	notification struct {
		id          uint64
		pid, flags  uint32
		call        int32
		arch        uint32
		instruction uint64
		args        [6]uint64
	}
	answer struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

// answer decides of every call until nobody is left that has the filter.
func (l *Limits) answer(listener int) {
	defer func() { _ = unix.Close(listener) }()
	for {
		polled := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if polled[0].Revents&unix.POLLIN == 0 {
			return
		}
		var asked notification
		if ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&asked)) != 0 {
			continue // who asked has died meanwhile
		}
		said := answer{id: asked.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if errno := l.decide(&asked); errno != 0 {
			said.errno, said.flags = -int32(errno), 0
		}
		ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&said))
	}
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument))
	return errno
}

// decide is what a call ends with, 0 for what the kernel makes of it.
func (l *Limits) decide(asked *notification) unix.Errno {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now == nil || !slices.Contains(l.now.calls, uintptr(asked.call)) {
		return 0
	}
	if asked.makesThread() {
		return 0
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", l.pid, asked.pid)); err != nil {
		return 0 // a child of the daemon
	}
	l.hits++
	return l.now.errno
}

// makesThread says whether the call is for a thread. clone3(2), by which a C library makes those of a program with the race
// detector, has its flags first in what its argument points to.
func (n *notification) makesThread() bool {
	flags := n.args[0]
	switch uintptr(n.call) {
	case unix.SYS_CLONE:
	case unix.SYS_CLONE3:
		var first [8]byte
		local := []unix.Iovec{{Base: &first[0], Len: uint64(len(first))}}
		if read, err := unix.ProcessVMReadv(int(n.pid), local, []unix.RemoteIovec{{Base: uintptr(n.args[0]), Len: len(first)}}, 0); err != nil || read != len(first) {
			return false
		}
		flags = binary.NativeEndian.Uint64(first[:])
	default:
		return false
	}
	return flags&unix.CLONE_THREAD != 0
}

// auditArch are the architectures by the name that a filter knows them by.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// filter has the listener be asked for the calls that a limit is about.
func filter(arch uint32, calls []uintptr) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	give := func(verdict uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: verdict}
	}
	equal := func(k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: uint8(yes), Jf: uint8(no)}
	}
	program := []unix.SockFilter{load(4), equal(arch, 0, len(calls)+1), load(0)}
	for i, call := range calls {
		program = append(program, equal(uint32(call), len(calls)-i, 0))
	}
	return append(program, give(unix.SECCOMP_RET_ALLOW), give(unix.SECCOMP_RET_USER_NOTIF))
}

// becomeLimited gives the calling thread the filter, its listener to the test, and becomes the program that the arguments name.
// It returns where that failed.
func becomeLimited() error {
	var calls []uintptr
	for _, limit := range (&Limits{filtered: true}).All() {
		calls = append(calls, limit.calls...)
	}
	slices.Sort(calls)
	program := filter(auditArch[runtime.GOARCH], slices.Compact(calls))
	environment := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, limitedVariable+"=") })
	code := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	runtime.LockOSThread()
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&code)))
	if errno != 0 {
		return fmt.Errorf("filtering system calls: %w", errno)
	}
	if err := unix.Sendmsg(listenerFD, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return fmt.Errorf("handing the filter's listener over: %w", err)
	}
	_, _ = unix.Close(int(listener)), unix.Close(listenerFD)
	return syscall.Exec(os.Args[1], os.Args[1:], environment)
}
