package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// BuildExec is a further process in the container that runs s, with the rights of its first one and no more: user, groups,
// capabilities, labels, no_new_privs, limits and environment (docs/reliability.md S19).
func BuildExec(s *specs.Spec, e *engine.ExecSpec) (*specs.Process, error) {
	if len(e.Command) == 0 || e.Command[0] == "" {
		return nil, invalid("no command to run")
	}
	if err := checkArguments(e.Command); err != nil {
		return nil, err
	}
	p := *s.Process
	p.Args = slices.Clone(e.Command)
	p.Env = slices.Clone(s.Process.Env)
	p.Terminal, p.ConsoleSize, p.CommandLine = e.TTY, nil, ""
	if e.TTY && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p, checkSizes(&p)
}
