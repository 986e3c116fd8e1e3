// Package userns makes user namespaces, with others inside them, for a program of many threads, which the kernel lets enter
// no new user namespace itself: a process is started in them that does nothing (internal/pause), and whoever needs them
// opens or binds them from it before it is killed.
package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"crishim/internal/pause"
)

// Mapping is one range of ids.
type Mapping struct {
	Inside, Outside, Length uint32
}

// Process holds namespaces until Close.
type Process struct {
	cmd *exec.Cmd
}

// Start makes a user namespace with the mappings, and inside it the namespaces of flags (unix.CLONE_NEWNET, …).
func Start(uids, gids []Mapping, flags uintptr) (*Process, error) {
	program, err := sealed()
	if err != nil {
		return nil, fmt.Errorf("the program that holds namespaces: %w", err)
	}
	cmd := exec.Command("/proc/self/fd/" + strconv.Itoa(int(program.Fd())))
	cmd.Args = []string{"pause"}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | flags,
		UidMappings:                idMaps(uids),
		GidMappings:                idMaps(gids),
		GidMappingsEnableSetgroups: true,
		Setsid:                     true,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return &Process{cmd}, nil
}

// idMaps is in the words of os/exec.
func idMaps(in []Mapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(in))
	for _, m := range in {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Length)})
	}
	return out
}

// Path is the process's namespace of a kind ("user", "net"), valid until Close.
func (p *Process) Path(kind string) string {
	return "/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/ns/" + kind
}

// Open is Path, opened: it outlives Close.
func (p *Process) Open(kind string) (*os.File, error) { return os.Open(p.Path(kind)) }

// Close ends the process. Namespaces that nothing else holds go with it.
func (p *Process) Close() error {
	err := p.cmd.Process.Kill()
	var killed *exec.ExitError
	if werr := p.cmd.Wait(); werr != nil && !errors.As(werr, &killed) {
		err = errors.Join(err, werr)
	}
	return err
}

// sealed is the program in memory, sealed: no namespace that it holds can change what the next one runs.
var sealed = sync.OnceValues(func() (*os.File, error) {
	const name = "crishim-pause"
	// Kernels before 6.3 do not know the flag and make every one executable.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (vm.memfd_noexec must be below 2)", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.Write(pause.Program()); err != nil {
		_ = file.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		_ = file.Close()
		return nil, err
	}
	// Opened anew for reading: a file that is open for writing somewhere cannot be executed.
	reader, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
	_ = file.Close()
	return reader, err
})
