package native

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// agent is a seccomp agent: it answers each system call that it is asked about with EXDEV, which mkdir gives for nothing else.
type agent struct {
	path     string
	listener *net.UnixListener
	states   chan specs.ContainerProcessState
	answered atomic.Int32
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{path: filepath.Join(t.TempDir(), "agent.sock"), states: make(chan specs.ContainerProcessState, 10)}
	var err error
	if a.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: a.path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.listener.Close() })
	go func() {
		for {
			conn, err := a.listener.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				if err := a.serve(conn); err != nil {
					t.Errorf("the agent: %v", err)
				}
			}()
		}
	}()
	return a
}

// serve takes one filter's descriptor and answers until its processes have ended.
func (a *agent) serve(conn *net.UnixConn) error {
	message, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(message, control)
	_ = conn.Close()
	if err != nil {
		return err
	}
	var state specs.ContainerProcessState
	if err := json.Unmarshal(message[:n], &state); err != nil {
		return fmt.Errorf("%q: %w", message[:n], err)
	}
	parts, err := unix.ParseSocketControlMessage(control[:oobn])
	if err != nil || len(parts) != 1 {
		return fmt.Errorf("%d control messages: %w", len(parts), err)
	}
	fds, err := unix.ParseUnixRights(&parts[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	defer func() { _ = unix.Close(fds[0]) }()
	a.states <- state
	for {
		wait := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(wait, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if wait[0].Revents&unix.POLLIN == 0 {
			if wait[0].Revents != 0 {
				return nil // nobody is left
			}
			continue
		}
		var asked [80]byte  // struct seccomp_notif
		var answer [24]byte // struct seccomp_notif_resp
		const receive, send = 0xc0502100, 0xc0182101
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), receive, uintptr(unsafe.Pointer(&asked))); errno != 0 {
			continue // who asked is gone
		}
		copy(answer[:8], asked[:8]) // the question's number
		failed := -int32(unix.EXDEV)
		binary.NativeEndian.PutUint32(answer[16:], uint32(failed))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), send, uintptr(unsafe.Pointer(&answer))); errno == 0 {
			a.answered.Add(1)
		}
	}
}

// state is what came with the next filter.
func (a *agent) state(t *testing.T) specs.ContainerProcessState {
	t.Helper()
	select {
	case state := <-a.states:
		return state
	case <-time.After(time.Minute):
		t.Fatal("no filter came to the agent")
		panic("unreachable")
	}
}

// A localhost profile may leave system calls to an agent (SCMP_ACT_NOTIFY, listenerPath): it gets the filter of the container, and
// that of each exec. Where no agent listens nothing starts, and the error says why.
func TestSystemCallsAreAnsweredByASeccompAgent(t *testing.T) {
	b := serving(t)
	pod, s := b.runPod(t)
	a := newAgent(t)
	start := func(name, listener string) (engine.ContainerID, error) {
		t.Helper()
		spec := b.containerSpec(t, pod, s, name, "mkdir /made 2>/made-says; sleep 1000")
		content := fmt.Sprintf(`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":%q,"listenerMetadata":"of the profile",
			"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_NOTIFY"}]}`, listener)
		spec.Security.Seccomp = engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: "profiles/notify.json", Content: []byte(content)}
		st, err := b.CreateContainer(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.StartContainer(t.Context(), st.ID, spec)
		return st.ID, err
	}
	id, err := start("watched", a.path)
	if err != nil {
		t.Fatal(err)
	}
	if state := a.state(t); state.Metadata != "of the profile" || state.State.ID != string(id) || len(state.Fds) != 1 || state.Fds[0] != specs.SeccompFdName {
		t.Errorf("%+v", state)
	}
	if out := b.sh(t, id, "until grep -q . /made-says; do :; done; cat /made-says; mkdir /other 2>&1; ls -d /made /other 2>/dev/null; true"); strings.Count(out, "Invalid cross-device link") != 2 || strings.Contains(out, "\n/") {
		t.Errorf("mkdir in the container and in an exec: %q", out)
	}
	if state := a.state(t); state.State.Pid != b.status(t, id).PID || state.Pid == state.State.Pid {
		t.Errorf("of the exec: %+v", state)
	}
	if n := a.answered.Load(); n != 2 {
		t.Errorf("the agent answered %d times", n)
	}
	if _, err := start("unwatched", a.path+"-absent"); err == nil || !strings.Contains(err.Error(), "seccomp agent") {
		t.Errorf("a start without the agent: %v", err)
	}
	if _, err := start("pathless", ""); err == nil || !strings.Contains(err.Error(), "listenerPath") {
		t.Errorf("a start of a profile without listenerPath: %v", err)
	}
	b.removePod(t, pod)
}
