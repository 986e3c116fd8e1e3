//go:build cgo

package run

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor/serve"
)

// checkProcess refuses what libcontainer would not, or only with a text that does not help.
func checkProcess(p *specs.Process) error {
	refuse := func(why string) error { return fmt.Errorf("%s: %w", why, errdefs.ErrInvalidArgument) }
	switch {
	case p == nil:
		return refuse("the specification has no process")
	case len(p.Args) == 0:
		return refuse("the process has no command")
	case !filepath.IsAbs(p.Cwd):
		return refuse(fmt.Sprintf("the working directory %q is not absolute", p.Cwd))
	}
	return nil
}

// newProcess translates the half of a specification that specconv leaves out (arguments, environment, user, limits,
// AppArmor profile, …), and again what it does not leave out: what is set here counts, for an exec too.
func newProcess(p *specs.Process, stdio serve.Stdio) (*libcontainer.Process, error) {
	process := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             p.Cwd,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Label:           p.SelinuxLabel,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		ConsoleSocket:   stdio.Console,
		LogLevel:        logLevel,
	}
	for _, gid := range p.User.AdditionalGids {
		process.AdditionalGroups = append(process.AdditionalGroups, int(gid))
	}
	if p.ConsoleSize != nil {
		process.ConsoleWidth, process.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	// Without capabilities in the specification a process has none, not those of the container.
	process.Capabilities = &configs.Capabilities{}
	if caps := p.Capabilities; caps != nil {
		process.Capabilities = &configs.Capabilities{Bounding: caps.Bounding, Effective: caps.Effective,
			Inheritable: caps.Inheritable, Permitted: caps.Permitted, Ambient: caps.Ambient}
	}
	for _, limit := range p.Rlimits {
		number, ok := rlimits[limit.Type]
		if !ok {
			return nil, fmt.Errorf("the resource limit %q: %w", limit.Type, errdefs.ErrInvalidArgument)
		}
		process.Rlimits = append(process.Rlimits, configs.Rlimit{Type: number, Hard: limit.Hard, Soft: limit.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, fmt.Errorf("the CPU affinity: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	process.CPUAffinity = affinity
	// A nil *os.File in an interface would not be nil.
	if stdio.Stdin != nil {
		process.Stdin = stdio.Stdin
	}
	if stdio.Stdout != nil {
		process.Stdout = stdio.Stdout
	}
	if stdio.Stderr != nil {
		process.Stderr = stdio.Stderr
	}
	return process, nil
}

// logLevel is logrus's warning level, for the first process's words to its parent.
const logLevel = "3"

var rlimits = map[string]int{
	"RLIMIT_AS":         unix.RLIMIT_AS,
	"RLIMIT_CORE":       unix.RLIMIT_CORE,
	"RLIMIT_CPU":        unix.RLIMIT_CPU,
	"RLIMIT_DATA":       unix.RLIMIT_DATA,
	"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
	"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE":       unix.RLIMIT_NICE,
	"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
	"RLIMIT_RSS":        unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK":      unix.RLIMIT_STACK,
}
