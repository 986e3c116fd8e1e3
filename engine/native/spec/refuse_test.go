package spec

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/host"
)

// Rows: S20 (part), S30 (part), S61 (part)
func TestWhatCannotBeExpressedIsRefused(t *testing.T) {
	for name, change := range map[string]func(h *host.Host, c *Container){
		"no command":                 func(_ *host.Host, c *Container) { c.Image = imagespec.ImageConfig{} },
		"NUL in an argument":         func(_ *host.Host, c *Container) { c.Spec.Args = []string{"a\x00"} },
		"variable with =":            func(_ *host.Host, c *Container) { c.Spec.Env = []engine.EnvVar{{Name: "A=B"}} },
		"variable with NUL":          func(_ *host.Host, c *Container) { c.Spec.Env = []engine.EnvVar{{Name: "A", Value: []byte{0}}} },
		"variable that is no text":   func(_ *host.Host, c *Container) { c.Spec.Env = []engine.EnvVar{{Name: "A", Value: []byte{0xff}}} },
		"large variable":             func(_ *host.Host, c *Container) { c.Spec.Env = []engine.EnvVar{{Name: "A", Value: bytesOf(128 << 10)}} },
		"large environment":          func(_ *host.Host, c *Container) { c.Spec.Env = manyVariables() },
		"negative uid":               func(_ *host.Host, c *Container) { c.User.UID = -1 },
		"uid that means no change":   func(_ *host.Host, c *Container) { c.User.UID = 1<<32 - 1 },
		"no network namespace":       func(_ *host.Host, c *Container) { c.Pins.Net = "" },
		"no user namespace":          func(_ *host.Host, c *Container) { c.Spec.Namespaces.User = mapping() },
		"no pid namespace":           func(_ *host.Host, c *Container) { c.Spec.Namespaces.PID = engine.NamespacePod },
		"unknown pid mode":           func(_ *host.Host, c *Container) { c.Spec.Namespaces.PID = "OTHER" },
		"seccomp without a kernel's": func(h *host.Host, _ *Container) { h.Seccomp = false },
		"empty seccomp profile":      func(_ *host.Host, c *Container) { c.Spec.Security.Seccomp = localhost("") },
		"seccomp profile of nothing": func(_ *host.Host, c *Container) { c.Spec.Security.Seccomp = localhost("{}") },
		"seccomp profile without rule": func(_ *host.Host, c *Container) {
			c.Spec.Security.Seccomp = localhost(`{"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`)
		},
		"unknown seccomp type": func(_ *host.Host, c *Container) { c.Spec.Security.Seccomp.Type = "Other" },
		"AppArmor default not loaded": func(h *host.Host, c *Container) {
			h.AppArmorDefault = ""
			c.Spec.Security.AppArmor.Type = engine.ProfileRuntimeDefault
		},
		"AppArmor profile, no AppArmor": func(h *host.Host, c *Container) {
			h.AppArmor = false
			c.Spec.Security.AppArmor = engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: "x"}
		},
		"mount over the root":         withMount(engine.Mount{ContainerPath: "/.", HostPath: "/a"}),
		"relative container path":     withMount(engine.Mount{ContainerPath: "a", HostPath: "/a"}),
		"relative host path":          withMount(engine.Mount{ContainerPath: "/a", HostPath: "a"}),
		"writable image volume":       withMount(engine.Mount{ContainerPath: "/a", Image: &engine.ImageRef{}}),
		"image volume that is absent": withMount(engine.Mount{ContainerPath: "/a", Image: &engine.ImageRef{}, Readonly: true}),
		"rro of a writable mount":     withMount(engine.Mount{ContainerPath: "/a", HostPath: "/a", RecursiveReadonly: true}),
		"rro that follows the host": withMount(engine.Mount{ContainerPath: "/a", HostPath: "/a", RecursiveReadonly: true, Readonly: true,
			Propagation: engine.PropagationHostToContainer}),
		"unknown mount option":           withMount(engine.Mount{ContainerPath: "/a", HostPath: "/a", Options: []string{"suid"}}),
		"unknown propagation":            withMount(engine.Mount{ContainerPath: "/a", HostPath: "/a", Propagation: "OTHER"}),
		"id mapping without a namespace": withMount(engine.Mount{ContainerPath: "/a", HostPath: "/a", UIDMappings: mapping().UIDs}),
		"recursive read-only on an old kernel": func(h *host.Host, c *Container) {
			h.Kernel.RecursiveReadonly = false
			withMount(engine.Mount{ContainerPath: "/a", HostPath: "/a", RecursiveReadonly: true, Readonly: true})(h, c)
		},
		"device without permissions":      withDevice("/dev/x", ""),
		"device with unknown permissions": withDevice("/dev/x", "rx"),
		"device at a relative path":       withDevice("dev/x", "r"),
	} {
		t.Run(name, func(t *testing.T) {
			h, c := v2Host(), podContainer()
			change(h, c)
			s, _, err := Build(h, c)
			if s != nil || !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
				t.Fatalf("%v, %v", s, err)
			}
		})
	}
}

func bytesOf(n int) []byte { return []byte(strings.Repeat("x", n)) }

func manyVariables() []engine.EnvVar {
	var all []engine.EnvVar
	for i := range 20 {
		all = append(all, engine.EnvVar{Name: fmt.Sprint("A", i), Value: bytesOf(120 << 10)})
	}
	return all
}

func localhost(text string) engine.Profile {
	return engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: "/p.json", Content: []byte(text)}
}

func withDevice(path, access string) func(*host.Host, *Container) {
	return func(_ *host.Host, c *Container) {
		c.Devices = []host.Device{{LinuxDevice: specs.LinuxDevice{Path: path, Type: "c", Major: 10, Minor: 1}, Access: access}}
	}
}

func withMount(m engine.Mount) func(*host.Host, *Container) {
	return func(_ *host.Host, c *Container) { c.Spec.Mounts = []engine.Mount{m} }
}

func TestAnEntrypointOfOneEmptyWordIsNone(t *testing.T) {
	for name, test := range map[string]struct{ command, cmd, args, want []string }{
		"with cmd":       {cmd: []string{"sh", "-c", "true"}, want: []string{"sh", "-c", "true"}},
		"with arguments": {cmd: []string{"sh"}, args: []string{"id"}, want: []string{"id"}},
		"with nothing":   {},
		// What the pod itself says is taken by its word.
		"of the pod": {command: []string{""}, cmd: []string{"sh"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := podContainer()
			c.Image.Entrypoint, c.Image.Cmd = []string{""}, test.cmd
			c.Spec.Command, c.Spec.Args = test.command, test.args
			s, _, err := Build(v2Host(), c)
			if test.want == nil {
				if !errdefs.IsInvalidArgument(err) {
					t.Fatal(err)
				}
				return
			}
			if err != nil || !slices.Equal(s.Process.Args, test.want) {
				t.Fatalf("%v, %v", s, err)
			}
		})
	}
}

func TestResourcesThatCannotBeSetAreRefused(t *testing.T) {
	for name, r := range map[string]engine.Resources{
		"negative memory": {MemoryLimit: -1}, "swap below memory": {MemoryLimit: 2, MemorySwap: 1}, "swap alone": {MemorySwap: 5}, "swap -2": {MemorySwap: -2},
		"tiny quota": {CPUQuota: 999}, "tiny period": {CPUPeriod: 999}, "long period": {CPUPeriod: 1000001}, "negative shares": {CPUShares: -1},
		"oom score": {OOMScoreAdj: 1001}, "unified path": {Unified: map[string]string{"../memory.max": "1"}}, "unified procs": {Unified: map[string]string{"cgroup.procs": "1"}},
		"page size": {Hugepages: []engine.HugepageLimit{{PageSize: "2M"}}}, "page size of another host": {Hugepages: []engine.HugepageLimit{{PageSize: "16MB", Limit: 1}}},
	} {
		if out, err := Resources(v2Host(), &r, nil); !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
	bare := &host.Host{}
	for name, r := range map[string]engine.Resources{
		"unified on v1": {Unified: map[string]string{"memory.high": "1"}}, "cpuset without controller": {CpusetCPUs: "0"}, "swap without accounting": {MemoryLimit: 1, MemorySwap: 2},
	} {
		if out, err := Resources(bare, &r, nil); err == nil {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

func TestAnUpdateLiftsWhatIsNotAskedForAnyMore(t *testing.T) {
	previous := allResources()
	for name, h := range map[string]*host.Host{"v2": v2Host(), "v1": v1Host()} {
		before := previous
		if !h.CgroupV2 {
			before.Unified, before.Hugepages = nil, nil
		}
		out, err := Resources(h, &engine.Resources{}, &before)
		if err != nil {
			t.Fatal(err)
		}
		if *out.CPU.Shares != 1024 || *out.CPU.Period != 100000 || *out.CPU.Quota != -1 || out.CPU.Cpus != h.CPUs || out.CPU.Mems != "0" ||
			*out.Memory.Limit != -1 || *out.Memory.Swap != -1 {
			t.Errorf("%s: %+v, %+v", name, out.CPU, out.Memory)
		}
		if h.CgroupV2 && (len(out.HugepageLimits) != 1 || out.HugepageLimits[0].Limit != noLimit || out.Unified["memory.high"] != "max") {
			t.Errorf("%s: %+v, %v", name, out.HugepageLimits, out.Unified)
		}
	}
	// What is asked for again stays.
	out, err := Resources(v2Host(), &previous, &previous)
	if err != nil || *out.CPU.Quota != 25000 || *out.Memory.Swap != 96<<20 || out.Unified["memory.high"] != "50000000" || out.CPU.Cpus != "0" ||
		len(out.HugepageLimits) != 1 || out.HugepageLimits[0].Limit != previous.Hugepages[0].Limit {
		t.Errorf("%+v, %v", out, err)
	}
}

// Rows: S18 (part)
func TestCapabilitiesAreThoseAskedForAndNeverMore(t *testing.T) {
	every := v2Host().Capabilities
	for name, c := range map[string]struct {
		add, drop, ambient []string
		want               []string
	}{
		"default":        {nil, nil, nil, defaultCapabilities},
		"add":            {[]string{"SYS_TIME"}, nil, nil, append([]string{"CAP_SYS_TIME"}, defaultCapabilities...)},
		"drop":           {nil, []string{"KILL"}, nil, slices.DeleteFunc(slices.Clone(defaultCapabilities), func(c string) bool { return c == "CAP_KILL" })},
		"drop all":       {nil, []string{"ALL"}, nil, nil},
		"all both ways":  {[]string{"ALL"}, []string{"ALL"}, nil, nil},
		"only one":       {[]string{"CHOWN"}, []string{"ALL"}, nil, []string{"CAP_CHOWN"}},
		"add all":        {[]string{"ALL"}, nil, nil, every},
		"all but one":    {[]string{"ALL"}, []string{"KILL"}, nil, slices.DeleteFunc(slices.Clone(every), func(c string) bool { return c == "CAP_KILL" })},
		"add and drop":   {[]string{"SYS_TIME"}, []string{"SYS_TIME"}, nil, defaultCapabilities},
		"ambient":        {nil, []string{"ALL"}, []string{"CHOWN"}, []string{"CAP_CHOWN"}},
		"host lacks it":  {[]string{"SYS_MODULE"}, nil, []string{"SYS_MODULE"}, defaultCapabilities},
		"ambient, gone":  {nil, []string{"CHOWN", "ALL"}, []string{"CHOWN"}, nil},
		"unknown to us":  {[]string{"NO_SUCH"}, nil, nil, defaultCapabilities},
		"twice the same": {[]string{"SYS_TIME", "SYS_TIME"}, []string{"ALL"}, nil, []string{"CAP_SYS_TIME"}},
	} {
		b := &builder{h: v2Host(), c: &Container{Spec: &engine.ContainerSpec{Security: engine.Security{CapAdd: c.add, CapDrop: c.drop, CapAmbient: c.ambient}}}}
		got := b.capabilities()
		want := slices.Clone(c.want)
		slices.Sort(want)
		if !slices.Equal(got.Bounding, want) || !slices.Equal(got.Effective, want) || !slices.Equal(got.Permitted, want) {
			t.Errorf("%s: %v, want %v", name, got.Bounding, want)
		}
		if len(c.ambient) == 0 && len(got.Inheritable)+len(got.Ambient) > 0 || !slices.Equal(got.Inheritable, got.Ambient) {
			t.Errorf("%s: inheritable %v, ambient %v", name, got.Inheritable, got.Ambient)
		}
		if name == "ambient" && !slices.Equal(got.Ambient, want) {
			t.Errorf("%s: ambient %v", name, got.Ambient)
		}
	}
}

func TestTheDefaultSeccompProfileFollowsTheCapabilities(t *testing.T) {
	allowed := func(add ...string) bool {
		c := podContainer()
		c.Spec.Security.CapAdd = add
		s, _, err := Build(v2Host(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range s.Linux.Seccomp.Syscalls {
			if slices.Contains(call.Names, "clock_settime") && call.Action == "SCMP_ACT_ALLOW" {
				return true
			}
		}
		return false
	}
	if allowed() || !allowed("SYS_TIME") {
		t.Error("clock_settime is allowed without, or denied with, SYS_TIME")
	}
}

// Rows: S25 (part)
func TestNoAnnotationOrLabelChangesASpec(t *testing.T) {
	want := marshal(t, podContainer())
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		c := podContainer()
		c.Spec.Annotations, c.Spec.Labels = map[string]string{}, map[string]string{}
		for range random.IntN(5) {
			key := []string{"org.systemd.property.ExecStart", "run.oci.keep_original_groups", "io.kubernetes.cri-o.", "cdi.k8s.io/x", "unified-cgroup"}[random.IntN(5)]
			c.Spec.Annotations[key+fmt.Sprint(random.IntN(100))] = fmt.Sprint(random.Uint64())
			c.Spec.Labels[key] = fmt.Sprint(random.Uint64())
			c.Image.Labels = c.Spec.Labels
		}
		if got := marshal(t, c); got != want {
			t.Fatalf("%v changed the spec to %s", c.Spec.Annotations, got)
		}
	}
}

func marshal(t *testing.T, c *Container) string {
	t.Helper()
	s, _, err := Build(v2Host(), c)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Rows: S19 (part)
func TestAnExecHasTheRightsOfTheContainersProcess(t *testing.T) {
	h, c := goldens["process"]()
	s, _, err := Build(h, c)
	if err != nil {
		t.Fatal(err)
	}
	s.Process.ConsoleSize = nil
	p, err := BuildExec(s, &engine.ExecSpec{Command: []string{"id"}, Streams: engine.Streams{TTY: false}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Args, []string{"id"}) || p.Terminal {
		t.Errorf("%v, terminal %v", p.Args, p.Terminal)
	}
	p.Args, p.Terminal = s.Process.Args, s.Process.Terminal
	if !reflect.DeepEqual(p, s.Process) {
		t.Errorf("%+v, want the rights of %+v", p, s.Process)
	}
	p.Env[0] = "changed"
	if s.Process.Env[0] == "changed" {
		t.Error("an exec shares its environment with the container's spec")
	}
	plain, _, err := Build(v2Host(), podContainer())
	if err != nil {
		t.Fatal(err)
	}
	p, err = BuildExec(plain, &engine.ExecSpec{Command: []string{"sh"}, Streams: engine.Streams{TTY: true}})
	if err != nil || !p.Terminal || !slices.Contains(p.Env, "TERM=xterm") || slices.Contains(plain.Process.Env, "TERM=xterm") {
		t.Errorf("%+v, %v", p, err)
	}
	for _, command := range [][]string{nil, {""}, {"a\x00"}} {
		if _, err := BuildExec(plain, &engine.ExecSpec{Command: command}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", command, err)
		}
	}
}

func TestTheStopSignalIsCRIsOrTheImages(t *testing.T) {
	for _, c := range []struct {
		cri, image, want string
		number           unix.Signal
	}{
		{"", "", "SIGTERM", 15}, {"SIGUSR1", "SIGQUIT", "SIGUSR1", 10}, {"", "quit", "SIGQUIT", 3}, {"", "3", "SIGQUIT", 3},
		{"SIGRTMIN+3", "", "SIGRTMIN+3", 37}, {"SIGRTMAX", "", "SIGRTMAX", 64}, {"SIGRTMAX-1", "", "SIGRTMAX-1", 63}, {"", "37", "SIGRTMIN+3", 37},
		{"SIGIOT", "", "SIGABRT", 6}, {"SIGCLD", "", "SIGCHLD", 17}, {"SIGPOLL", "", "SIGIO", 29}, {"", "poll", "SIGIO", 29},
	} {
		got, number, err := StopSignal(&engine.ContainerSpec{StopSignal: c.cri}, c.image)
		if err != nil || got != c.want || number != c.number {
			t.Errorf("%q, %q: %s %d, %v; want %s %d", c.cri, c.image, got, number, err, c.want, c.number)
		}
	}
	// An image may name anything, and Docker and containerd run it.
	for _, none := range []string{"0", "-9", "65", "32", "SIGNONE", "SIGRTMIN+99", "SIGRTMIN3", "9x"} {
		if got, number, err := StopSignal(&engine.ContainerSpec{}, none); err != nil || got != "SIGTERM" || number != unix.SIGTERM {
			t.Errorf("an image's %s: %q %d, %v", none, got, number, err)
		}
		if got, _, err := StopSignal(&engine.ContainerSpec{StopSignal: none}, "SIGQUIT"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("CRI's %s: %q, %v", none, got, err)
		}
	}
}
