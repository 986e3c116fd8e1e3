package harness

import (
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program that gets no thread ends, whichever call it asks for one with: that is no limit of processes.
func TestThreadsAreToldFromProcesses(t *testing.T) {
	for _, flags := range []uint64{0, unix.CLONE_VFORK | unix.CLONE_VM, unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_VM} {
		arguments := &[11]uint64{flags} // struct clone_args
		want := flags&unix.CLONE_THREAD != 0
		for _, asked := range []notification{
			{pid: uint32(os.Getpid()), call: unix.SYS_CLONE, args: [6]uint64{flags}},
			{pid: uint32(os.Getpid()), call: unix.SYS_CLONE3, args: [6]uint64{uint64(uintptr(unsafe.Pointer(arguments)))}},
		} {
			if got := asked.makesThread(); got != want {
				t.Errorf("call %d with flags %#x: %v", asked.call, flags, got)
			}
		}
		runtime.KeepAlive(arguments)
	}
	if (&notification{pid: uint32(os.Getpid()), call: unix.SYS_CONNECT, args: [6]uint64{unix.CLONE_THREAD}}).makesThread() {
		t.Error("a connection makes a thread")
	}
}
