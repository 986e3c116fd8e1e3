// Package starving is a process for tests that has no descriptor left: for one thread, or all of it. It is used by tests only.
package starving

import (
	"errors"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Opening runs do where every openat(2) ends with EMFILE whose flags have all of set and none of clear; the rest of the process
// goes on. What do starts in other goroutines goes on too.
func Opening(t testing.TB, set, clear uint32, do func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the filter with it
		err := filter(set, clear)
		if err == nil {
			do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("filter the system calls of a thread: %v", err)
	}
}

// filter is for the calling thread alone.
func filter(set, clear uint32) error {
	const nr, flags = 0, 16 + 2*8 // of struct seccomp_data; the flags are the third argument, whose lower half comes first
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT, Jt: 0, Jf: 4},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: set | clear},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: set, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EMFILE)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	code := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&code))); errno != 0 {
		return errno
	}
	return nil
}

// Process takes all descriptors from this process until given is called, those that it has excepted.
func Process(t testing.TB) (given func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(now syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
			t.Fatal(err)
		}
	}
	limit(syscall.Rlimit{Cur: 0, Max: old.Max})
	if _, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC); !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("a descriptor was had: %v", err)
	}
	return func() { limit(old) }
}
