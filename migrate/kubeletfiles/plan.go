package kubeletfiles

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// The minor versions of Kubernetes at which the kubelet's settings changed.
const (
	minorWithoutDockershim = 24 // before: --container-runtime=remote beside an endpoint, or the kubelet runs dockershim
	minorEndpointInConfig  = 27 // from here: containerRuntimeEndpoint in the configuration, and no --container-runtime
)

// dockershimFlags went from the kubelet with dockershim, in 1.24: an upgraded kubelet does not start with them. What they
// said is said to crishim.
var dockershimFlags = []string{
	"network-plugin", "cni-conf-dir", "cni-bin-dir", "cni-cache-dir", "network-plugin-mtu", "non-masquerade-cidr", "docker-endpoint",
	"image-pull-progress-deadline", "experimental-dockershim-root-directory", "redirect-container-streaming",
}

// Target is what the kubelet shall use.
type Target struct {
	Endpoint string // unix:///PATH
	Minor    int    // the kubelet's minor version, as 23 in v1.23.17
}

// Edit is one file as it is to be.
type Edit struct {
	Path   string      `json:"path"`
	Before string      `json:"before,omitempty"`
	After  string      `json:"after"`
	Mode   fs.FileMode `json:"mode"`
	New    bool        `json:"new"` // it is not there yet
	// Why says what is changed, for people.
	Why []string `json:"why"`
}

// Plan decides what to change so that the kubelet uses the target, and nothing else; nothing is written. Without edits all
// is as it shall be. ErrFailedPrecondition where the files cannot be edited safely, with what to do by hand.
func (f *Files) Plan(t Target) ([]Edit, error) {
	if len(f.Units) == 0 {
		return nil, fmt.Errorf("there is no kubelet.service: start the kubelet with --container-runtime-endpoint=%s by hand: %w", t.Endpoint, errdefs.ErrFailedPrecondition)
	}
	if f.inShell() {
		return nil, fmt.Errorf("ExecStart of kubelet.service gives a shell what it shall run, where flags cannot be told apart: set --container-runtime-endpoint=%s there by hand: %w", t.Endpoint, errdefs.ErrFailedPrecondition)
	}
	p := &planner{now: f.clone(), target: t, why: map[string][]string{}}
	for _, step := range []func() error{p.dropFlags, p.containerRuntime, p.endpoint} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return p.edits(f), nil
}

// inShell says that the kubelet's command line is an argument of a shell: a flag that is added to the unit's is not the kubelet's.
func (f *Files) inShell() bool {
	return slices.Contains([]string{"sh", "ash", "bash", "busybox", "dash", "ksh", "zsh"}, base(f.program)) &&
		slices.ContainsFunc(f.args, func(a Argument) bool {
			return strings.HasPrefix(a.Text, "-") && !strings.HasPrefix(a.Text, "--") && strings.HasSuffix(a.Text, "c")
		})
}

func (f *Files) clone() *Files {
	c := &Files{Units: slices.Clone(f.Units), Environments: slices.Clone(f.Environments), Configs: slices.Clone(f.Configs), args: f.args}
	if f.Instance != nil {
		instance := *f.Instance
		c.Instance = &instance
	}
	return c
}

// planner edits a copy of the files, reading the command line anew after each step.
type planner struct {
	now    *Files
	target Target
	why    map[string][]string // path → reasons
}

func (p *planner) dropFlags() error {
	for _, name := range dockershimFlags {
		if err := p.setFlag(name, ""); err != nil {
			return err
		}
	}
	return nil
}

// containerRuntime is a word that 1.23 and older need and that 1.27 does not know any more.
func (p *planner) containerRuntime() error {
	if p.target.Minor > 0 && p.target.Minor < minorWithoutDockershim {
		if flag, ok := p.now.Flag("container-runtime"); ok && flag.Value == "remote" {
			return nil
		} else if ok {
			return p.setFlag("container-runtime", "remote")
		}
		return p.addFlag("container-runtime", "remote")
	}
	if p.target.Minor >= minorEndpointInConfig {
		return p.setFlag("container-runtime", "")
	}
	return nil
}

// endpoint is set where it is set now; else where kubeadm keeps it, in the configuration where the kubelet reads it there,
// or in a drop-in.
func (p *planner) endpoint() error {
	_, isFlag := p.now.Flag("container-runtime-endpoint")
	if p.now.Instance != nil {
		if err := p.setConfig(p.now.Instance); err != nil {
			return err
		}
	}
	_, path := p.now.Value("containerRuntimeEndpoint")
	if path == "" && !isFlag && p.target.Minor >= minorEndpointInConfig && len(p.now.Configs) > 0 && !p.now.Kubeadm() {
		path = p.now.Configs[0].Path
	}
	for i := range p.now.Configs {
		if p.now.Configs[i].Path == path || path != "" && p.now.Configs[i].Path == KubeadmConfig {
			if err := p.setConfig(&p.now.Configs[i]); err != nil {
				return err
			}
		}
	}
	switch {
	case isFlag:
		return p.setFlag("container-runtime-endpoint", p.target.Endpoint)
	case path != "":
		return nil
	}
	return p.addFlag("container-runtime-endpoint", p.target.Endpoint)
}

func (p *planner) setConfig(f *File) error {
	if values, err := parseConfig(f.Data); err == nil && values["containerRuntimeEndpoint"] == p.target.Endpoint {
		return nil
	}
	data, err := setConfig(f.Data, "containerRuntimeEndpoint", p.target.Endpoint)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", f.Path, err, errdefs.ErrFailedPrecondition)
	}
	f.Data = data
	p.because(f.Path, "containerRuntimeEndpoint: "+p.target.Endpoint)
	return nil
}

// setFlag gives a flag another value wherever it stands, or takes it away ("").
func (p *planner) setFlag(name, value string) error {
	wrong := func(f Flag) bool { return f.Name == name && (value == "" || f.Value != value) }
	// Each replacement moves the others, so they are looked for anew.
	for range p.now.Flags() {
		flags := p.now.Flags()
		i := slices.IndexFunc(flags, wrong)
		if i < 0 {
			return nil
		}
		flag := flags[i]
		words, reason := []string(nil), "without --"+name+" (was "+flag.Value+")"
		if value != "" {
			words, reason = []string{"--" + name + "=" + value}, "--"+name+"="+value+" (was "+flag.Value+")"
		}
		if err := p.replace(flag, words, reason); err != nil {
			return err
		}
	}
	return nil // check tells where one is left
}

// addFlag puts a new flag where kubeadm's are, else at the end of the command line.
func (p *planner) addFlag(name, value string) error {
	text := "--" + name + "=" + value
	if p.now.Kubeadm() {
		words := []string{}
		for _, arg := range p.now.args {
			if arg.Variable == kubeadmVariable {
				words = append(words, arg.Text)
			}
		}
		return p.setVariable(KubeadmFlags, kubeadmVariable, append(words, text), text)
	}
	u, err := parseUnit(p.now.Units, p.environment)
	if err != nil {
		return err
	}
	return p.setExec(append(slices.Clone(u.exec), text), text)
}

// replace puts words in the place of a flag, in its variable or in ExecStart.
func (p *planner) replace(flag Flag, words []string, reason string) error {
	if flag.Variable != "" {
		var all []string
		for i, arg := range p.now.args {
			if i == flag.first {
				all = append(all, words...)
			}
			if arg.Variable == flag.Variable && (i < flag.first || i >= flag.first+flag.words) {
				all = append(all, arg.Text)
			}
		}
		return p.setVariable(flag.File, flag.Variable, all, reason)
	}
	u, err := parseUnit(p.now.Units, p.environment)
	if err != nil {
		return err
	}
	// Arguments that come from variables are one word each in ExecStart: find the flag's own words there.
	var exec []string
	for i := 0; i < len(u.exec); i++ {
		if expand(u.exec[i], u.env) == p.now.args[flag.first].Text && i > 0 {
			exec = append(exec, words...)
			i += flag.words - 1
			words = nil
			continue
		}
		exec = append(exec, u.exec[i])
	}
	return p.setExec(exec, reason)
}

func (p *planner) environment(path string) (string, bool) {
	for _, e := range p.now.Environments {
		if e.Path == path {
			return e.Data, true
		}
	}
	return "", false
}

// setVariable writes a variable's words where it is set: in an environment file, or, where a unit file sets it, in our
// drop-in, so that no file of a package is changed.
func (p *planner) setVariable(path, name string, words []string, reason string) error {
	value := joinWords(words)
	for i := range p.now.Environments {
		if e := &p.now.Environments[i]; e.Path == path {
			e.Data = setEnv(e.Data, name, value)
			p.because(path, reason)
			return p.now.parse()
		}
	}
	return p.dropIn("Environment="+joinWords([]string{name + "=" + value}), reason, "Environment=\""+name+"=", "Environment="+name+"=")
}

func (p *planner) setExec(words []string, reason string) error {
	return p.dropIn("ExecStart=\nExecStart="+joinWords(words), reason, "ExecStart=")
}

// dropIn sets one line of our drop-in, in place of the lines that begin with one of the prefixes.
func (p *planner) dropIn(line, reason string, instead ...string) error {
	i := slices.IndexFunc(p.now.Units, func(f File) bool { return f.Path == DropIn })
	if i < 0 {
		p.now.Units = append(p.now.Units, File{Path: DropIn, Data: "# Written by crishim adopt; crishim adopt --rollback takes it away.\n[Service]\n", Mode: 0o644})
		i = len(p.now.Units) - 1
	}
	var kept []string
	for old := range strings.Lines(p.now.Units[i].Data) {
		if !slices.ContainsFunc(instead, func(prefix string) bool { return strings.HasPrefix(old, prefix) }) {
			kept = append(kept, old)
		}
	}
	p.now.Units[i].Data = strings.Join(kept, "") + line + "\n"
	slices.SortStableFunc(p.now.Units[1:], func(a, b File) int { return strings.Compare(base(a.Path), base(b.Path)) })
	p.because(DropIn, reason)
	return p.now.parse()
}

func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

func (p *planner) because(path, reason string) {
	if !slices.Contains(p.why[path], reason) {
		p.why[path] = append(p.why[path], reason)
	}
}

// check reads the edited files as the kubelet will.
func (p *planner) check() error {
	got, where := p.now.Endpoint()
	if got != p.target.Endpoint {
		return fmt.Errorf("%s sets the endpoint to %q after all that can be edited: set it to %s there by hand: %w", where, got, p.target.Endpoint, errdefs.ErrFailedPrecondition)
	}
	if image, where := p.now.ImageEndpoint(); image != "" && image != p.target.Endpoint {
		return fmt.Errorf("%s sets the endpoint of images (image-service-endpoint, imageServiceEndpoint) to %s: images and containers would be those of different runtimes; take it away: %w", where, image, errdefs.ErrFailedPrecondition)
	}
	for _, name := range dockershimFlags {
		if flag, ok := p.now.Flag(name); ok {
			return fmt.Errorf("%s has --%s still after all that can be edited: take it away by hand: %w", place(flag), name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func (p *planner) edits(was *Files) []Edit {
	var edits []Edit
	old := map[string]string{}
	for _, f := range was.all() {
		old[f.Path] = f.Data
	}
	for _, f := range p.now.all() {
		before, there := old[f.Path]
		if there && before == f.Data || p.why[f.Path] == nil {
			continue
		}
		edits = append(edits, Edit{Path: f.Path, Before: before, After: f.Data, Mode: f.Mode, New: !there, Why: p.why[f.Path]})
	}
	return edits
}

func (f *Files) all() []File {
	all := slices.Concat(f.Units, f.Environments, f.Configs)
	if f.Instance != nil {
		all = append(all, *f.Instance)
	}
	return all
}
