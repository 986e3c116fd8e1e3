package ociruntime

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/engine/native/monitor/serve"
)

// The pipes of a container are its root's: a process in there could not open /dev/stdout else.
func TestTheContainersRootOwnsItsStdio(t *testing.T) {
	for name, c := range map[string]struct {
		uids, gids []specs.LinuxIDMapping
		uid, gid   int
	}{
		"the host's users": {},
		"users of its own": {
			[]specs.LinuxIDMapping{{ContainerID: 1, HostID: 7, Size: 10}, {ContainerID: 0, HostID: 100000, Size: 1}},
			[]specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}, 100000, 200000,
		},
		"no root": {[]specs.LinuxIDMapping{{ContainerID: 1, HostID: 7, Size: 10}}, nil, 0, 0},
	} {
		spec, err := json.Marshal(&specs.Spec{Process: &specs.Process{Args: []string{"sh"}}, Root: &specs.Root{Path: "/"}, Linux: &specs.Linux{
			UIDMappings: c.uids, GIDMappings: c.gids,
		}})
		if err != nil {
			t.Fatal(err)
		}
		plan, err := new(Runtime).Plan("c", &monitor.CreateArgs{Spec: spec, OCIRuntime: "/usr/sbin/runc"})
		if err != nil {
			t.Fatal(err)
		}
		if uid, gid := plan.Owner(); uid != c.uid || gid != c.gid {
			t.Errorf("%s: %d:%d, want %d:%d", name, uid, gid, c.uid, c.gid)
		}
	}
}

// A program that ends as soon as it has sent the terminal may be through before its connection is taken: what waits in the
// socket arrives all the same.
func TestATerminalThatIsSentAtTheLastMomentArrives(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // nobody takes the connection before fork waits for something
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	_ = ours.Close()
	defer func() { _ = conn.Close() }()
	c := &cli{runtime: &Runtime{Root: t.TempDir()}, id: "c", program: "/nonexistent", dir: t.TempDir()}
	program := func(cmd *exec.Cmd) error {
		option := func(name string) string { return cmd.Args[slices.Index(cmd.Args, name)+1] }
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: option("--console-socket")})
		}
		if err == nil {
			err = unix.Sendmsg(fd, []byte("terminal"), unix.UnixRights(fd), nil, 0)
		}
		return errors.Join(err, unix.Close(fd), os.WriteFile(option("--pid-file"), []byte("2"), 0o600))
	}
	_, err = c.fork(program, serve.Stdio{Console: theirs}, "exec", "--detach")
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := monitor.ReceiveFile(conn.(*net.UnixConn))
	if err != nil {
		t.Fatalf("the terminal did not arrive: %v", err)
	}
	_ = terminal.Close()
}
