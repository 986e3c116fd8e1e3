package spec

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// maxString is the kernel's MAX_ARG_STRLEN without the final NUL; maxStrings is below what it takes of arguments and
	// environment together with an 8 MiB stack.
	maxString  = 128<<10 - 1
	maxStrings = 2<<20 - 64<<10
)

func (b *builder) process() error {
	spec, p := b.c.Spec, b.s.Process
	var err error
	if p.Args, err = arguments(b.c); err != nil {
		return err
	}
	if p.Env, err = environment(b.c); err != nil {
		return err
	}
	if err := checkSizes(p); err != nil {
		return err
	}
	p.Cwd = spec.WorkingDir
	if p.Cwd == "" {
		p.Cwd = b.c.Image.WorkingDir
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !strings.HasPrefix(p.Cwd, "/") {
		p.Cwd = "/" + p.Cwd // as Docker takes an image's
	}
	if strings.ContainsRune(p.Cwd, 0) {
		return invalid("working directory %.80q", p.Cwd)
	}
	p.Terminal = spec.TTY
	p.User, err = processUser(&b.c.User)
	if err != nil {
		return err
	}
	p.Capabilities = b.capabilities()
	p.NoNewPrivileges = spec.Security.NoNewPrivs
	p.SelinuxLabel = b.c.Labels.Process
	p.Rlimits = b.rlimits()
	p.OOMScoreAdj = b.oomScoreAdj(spec.Resources.OOMScoreAdj)
	return nil
}

func processUser(u *engine.User) (specs.User, error) {
	out := specs.User{UID: uint32(u.UID), GID: uint32(u.GID)}
	for _, id := range slices.Concat([]int64{u.UID, u.GID}, u.Groups) {
		if id < 0 || id >= 1<<32-1 {
			return out, invalid("id %d is no uid or gid", id)
		}
	}
	// The primary group is among them: a process without it could pass a check that denies the group (CVE-2023-25173).
	groups := append([]int64{u.GID}, u.Groups...)
	slices.Sort(groups)
	for _, g := range slices.Compact(groups) {
		out.AdditionalGids = append(out.AdditionalGids, uint32(g))
	}
	return out, nil
}

// arguments follow Kubernetes: a command replaces the image's entrypoint and cmd, arguments replace its cmd. An image whose
// entrypoint is one empty word has none: ENTRYPOINT [""] is how a Dockerfile takes back that of its base.
func arguments(c *Container) ([]string, error) {
	command, args := c.Spec.Command, c.Spec.Args
	if len(command) == 0 {
		if command = c.Image.Entrypoint; slices.Equal(command, []string{""}) {
			command = nil
		}
		if len(args) == 0 {
			args = c.Image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, invalid("neither the container nor its image names a command")
	}
	return all, checkArguments(all)
}

func checkArguments(args []string) error {
	for i, a := range args {
		if strings.ContainsRune(a, 0) {
			return invalid("argument %d has a NUL", i)
		}
	}
	return nil
}

// environment is the image's, overridden by CRI's, with what every container expects.
func environment(c *Container) ([]string, error) {
	var env []string
	at := map[string]int{}
	set := func(name, variable string) {
		if i, ok := at[name]; ok {
			env[i] = variable
			return
		}
		at[name] = len(env)
		env = append(env, variable)
	}
	set("PATH", defaultPath)
	if c.Hostname != "" {
		set("HOSTNAME", "HOSTNAME="+c.Hostname)
	}
	if c.Spec.TTY {
		set("TERM", "TERM=xterm")
	}
	for _, variable := range c.Image.Env {
		name, _, ok := strings.Cut(variable, "=")
		if !ok || name == "" || strings.ContainsRune(variable, 0) {
			continue // images have such lines; other runtimes pass over them too
		}
		set(name, variable)
	}
	for _, v := range c.Spec.Env {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") {
			return nil, invalid("environment variable name %.80q", v.Name)
		}
		if bytes.IndexByte(v.Value, 0) >= 0 || !utf8.Valid(v.Value) {
			// A spec is JSON, which would change other bytes silently.
			return nil, invalid("environment variable %.80s: an OCI spec carries UTF-8 without NUL only", v.Name)
		}
		set(v.Name, v.Name+"="+string(v.Value))
	}
	if i, ok := at["HOME"]; c.Home != "" && (!ok || env[i] == "HOME=") {
		set("HOME", "HOME="+c.Home)
	}
	return env, nil
}

// checkSizes says clearly what the kernel would answer with E2BIG (docs/reliability.md S30).
func checkSizes(p *specs.Process) error {
	total := 0
	for _, s := range slices.Concat(p.Args, p.Env) {
		if len(s) > maxString {
			return invalid("%.80q… has %d bytes, an argument or variable may have %d", s, len(s), maxString)
		}
		total += len(s) + 1 + 8 // and its pointer
	}
	if total > maxStrings {
		return invalid("arguments and environment have %d bytes together, at most %d are possible", total, maxStrings)
	}
	return nil
}

// rlimits lowers the operator's limits to what can be set here.
func (b *builder) rlimits() []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, r := range b.c.Rlimits {
		if limit, ok := b.h.HardLimits[r.Type]; ok && r.Hard > limit {
			b.warn("%s is lowered from %d to %d, which this host allows", r.Type, r.Hard, limit)
			r.Hard, r.Soft = limit, min(r.Soft, limit)
		}
		out = append(out, r)
	}
	return out
}

func (b *builder) oomScoreAdj(asked int64) *int {
	score := int(asked)
	if score < b.h.OOMScoreAdjMin {
		b.warn("oom_score_adj is raised from %d to %d, which this host allows", score, b.h.OOMScoreAdjMin)
		score = b.h.OOMScoreAdjMin
	}
	return &score
}
