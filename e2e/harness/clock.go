package harness

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Clock is what one daemon takes for the time of day: the machine's, and so much more or less. CLOCK_REALTIME is the same in
// every namespace, so that what changes is the code by which the process asks for it, in its own copy of the vDSO.
// What it starts has the machine's clock.
type Clock struct {
	mu     sync.Mutex
	offset time.Duration
	pid    int
	memory *os.File // of the process
	at     int64    // of the offset in it
}

// NewClock is a clock that goes right. It skips the test where there is no code for this architecture.
func NewClock(t testing.TB) *Clock {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skipf("a clock for one process is there for amd64, and this is %s", runtime.GOARCH)
	}
	if scope := strings.TrimSpace(readString("/proc/sys/kernel/yama/ptrace_scope")); scope == "3" {
		t.Skip("kernel.yama.ptrace_scope=3: no process may be traced here, as one is whose clock goes wrong")
	}
	c := &Clock{}
	t.Cleanup(func() {
		if c.memory != nil {
			_ = c.memory.Close()
		}
	})
	return c
}

// Set has the daemon's clock go wrong by so much from now on, to the second; its monotonic clock stays.
func (c *Clock) Set(t T, offset time.Duration) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset = offset.Truncate(time.Second)
	if c.pid == 0 || syscall.Kill(c.pid, 0) != nil {
		return // it counts from the next start on
	}
	if err := c.write(); err != nil {
		t.Errorf("setting the clock of process %d: %v", c.pid, err)
	}
}

func (c *Clock) write() error {
	var seconds [8]byte
	binary.LittleEndian.PutUint64(seconds[:], uint64(int64(c.offset/time.Second)))
	_, err := c.memory.WriteAt(seconds[:], c.at)
	return err
}

// start starts a daemon that has the clock from its first instruction on.
func (c *Clock) start(cmd *exec.Cmd) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // only the thread that traces a process lets it go on
		defer runtime.UnlockOSThread()
		result <- c.startTraced(cmd)
	}()
	return <-result
}

func (c *Clock) startTraced(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	var status syscall.WaitStatus
	_, err := syscall.Wait4(pid, &status, 0, nil)
	if err == nil && !status.Stopped() {
		err = fmt.Errorf("process %d did not stop at its first instruction: %#x", pid, status)
	}
	if err == nil {
		err = c.install(pid)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("giving a process a clock of its own: %w", err), cmd.Process.Kill())
	}
	return syscall.PtraceDetach(pid)
}

// clockFunction is what programs call for clock_gettime(2).
const clockFunction = "__vdso_clock_gettime"

// install replaces the function in a process that stands still.
func (c *Clock) install(pid int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.memory != nil {
		_ = c.memory.Close()
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	c.pid, c.memory = pid, memory
	base, size, err := vdso(pid)
	if err != nil {
		return err
	}
	image := make([]byte, size)
	if _, err := memory.ReadAt(image, base); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	for _, symbol := range symbols {
		if symbol.Name != clockFunction {
			continue
		}
		begin := base + int64(symbol.Value)
		code, at := clockCode(begin)
		if len(code) > int(symbol.Size) {
			return fmt.Errorf("%s has %d bytes, %d are needed", clockFunction, symbol.Size, len(code))
		}
		if _, err := memory.WriteAt(code, begin); err != nil {
			return fmt.Errorf("write to the vDSO: %w", err)
		}
		c.at = at
		return c.write()
	}
	return fmt.Errorf("the vDSO has no %s", clockFunction)
}

// clockCode is the function for an address, and where in it the offset is, aligned so that it is read and written at once.
func clockCode(begin int64) (code []byte, offsetAt int64) {
	code = []byte{
		0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: is it CLOCK_REALTIME?
		0x75, 0x0a, // jne end
		0x48, 0x8b, 0x0d, 0, 0, 0, 0, // mov rcx, [rip+…]
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3, // end: ret
	}
	const operand, next = 14, 18 // of the mov
	offsetAt = (begin + int64(len(code)) + 7) &^ 7
	binary.LittleEndian.PutUint32(code[operand:], uint32(offsetAt-begin-next))
	return append(code, make([]byte, offsetAt+8-begin-int64(len(code)))...), offsetAt
}

// vdso is where a process has the kernel's part of itself.
func vdso(pid int) (base, size int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			var end int64
			_, err := fmt.Sscanf(line, "%x-%x", &base, &end)
			return base, end - base, err
		}
	}
	return 0, 0, errors.New("the process has no vDSO")
}
