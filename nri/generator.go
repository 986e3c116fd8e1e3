package nri

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// generator makes the single edits that NRI's generator decides on. Upstream's own one is internal, and the module that it
// came from is not kept up. The spec is one of the engine's: process, Linux and resources are there.
type generator struct {
	spec *specs.Spec
}

var _ generate.UnderlyingGenerator = (*generator)(nil)

func (g *generator) Spec() *specs.Spec { return g.spec }

func (g *generator) AddAnnotation(key, value string) { setKey(&g.spec.Annotations, key, value) }
func (g *generator) RemoveAnnotation(key string)     { delete(g.spec.Annotations, key) }

func (g *generator) AddLinuxSysctl(key, value string) { setKey(&g.spec.Linux.Sysctl, key, value) }
func (g *generator) RemoveLinuxSysctl(key string)     { delete(g.spec.Linux.Sysctl, key) }

func (g *generator) AddDevice(d specs.LinuxDevice) {
	g.RemoveDevice(d.Path)
	g.spec.Linux.Devices = append(g.spec.Linux.Devices, d)
}

func (g *generator) RemoveDevice(path string) {
	g.spec.Linux.Devices = slices.DeleteFunc(g.spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

var namespaceTypes = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace,
	specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
}

func (g *generator) AddOrReplaceLinuxNamespace(kind, path string) error {
	if err := g.RemoveLinuxNamespace(kind); err != nil {
		return err
	}
	g.spec.Linux.Namespaces = append(g.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: path})
	return nil
}

func (g *generator) RemoveLinuxNamespace(kind string) error {
	if !slices.Contains(namespaceTypes, specs.LinuxNamespaceType(kind)) {
		return fmt.Errorf("there is no namespace of type %.20q: %w", kind, errdefs.ErrInvalidArgument)
	}
	g.spec.Linux.Namespaces = slices.DeleteFunc(g.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return string(n.Type) == kind })
	return nil
}

func (g *generator) hooks() *specs.Hooks {
	if g.spec.Hooks == nil {
		g.spec.Hooks = &specs.Hooks{}
	}
	return g.spec.Hooks
}

func (g *generator) AddPreStartHook(h specs.Hook) {
	//lint:ignore SA1019 plugins still ask for it
	g.hooks().Prestart = append(g.hooks().Prestart, h)
}

func (g *generator) AddPostStartHook(h specs.Hook) {
	g.hooks().Poststart = append(g.hooks().Poststart, h)
}
func (g *generator) AddPostStopHook(h specs.Hook) { g.hooks().Poststop = append(g.hooks().Poststop, h) }

func (g *generator) AddProcessEnv(name, value string) {
	for i, e := range g.spec.Process.Env {
		if strings.HasPrefix(e, name+"=") {
			g.spec.Process.Env[i] = name + "=" + value
			return
		}
	}
	g.spec.Process.Env = append(g.spec.Process.Env, name+"="+value)
}

// ClearProcessEnv makes room for a new slice: the caller still walks the old one.
func (g *generator) ClearProcessEnv()             { g.spec.Process.Env = nil }
func (g *generator) SetProcessArgs(args []string) { g.spec.Process.Args = args }
func (g *generator) SetProcessOOMScoreAdj(n int)  { g.spec.Process.OOMScoreAdj = &n }

func (g *generator) AddMount(m specs.Mount) { g.spec.Mounts = append(g.spec.Mounts, m) }
func (g *generator) ClearMounts()           { g.spec.Mounts = nil }
func (g *generator) Mounts() []specs.Mount  { return g.spec.Mounts }

func (g *generator) RemoveMount(destination string) {
	g.spec.Mounts = slices.DeleteFunc(g.spec.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
}

func (g *generator) SetLinuxCgroupsPath(path string) { g.spec.Linux.CgroupsPath = path }

func (g *generator) SetLinuxRootPropagation(mode string) error {
	g.spec.Linux.RootfsPropagation = mode
	return nil
}

func (g *generator) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := g.spec.Linux.Resources
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

// The limits below are set in another way (see adjust); NRI's generator wants to be able to set them too.

func (g *generator) cpu() *specs.LinuxCPU {
	if g.spec.Linux.Resources.CPU == nil {
		g.spec.Linux.Resources.CPU = &specs.LinuxCPU{}
	}
	return g.spec.Linux.Resources.CPU
}

func (g *generator) memory() *specs.LinuxMemory {
	if g.spec.Linux.Resources.Memory == nil {
		g.spec.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	return g.spec.Linux.Resources.Memory
}

func (g *generator) SetLinuxResourcesCPUCpus(cpus string)        { g.cpu().Cpus = cpus }
func (g *generator) SetLinuxResourcesCPUMems(mems string)        { g.cpu().Mems = mems }
func (g *generator) SetLinuxResourcesCPUPeriod(n uint64)         { g.cpu().Period = &n }
func (g *generator) SetLinuxResourcesCPUQuota(n int64)           { g.cpu().Quota = &n }
func (g *generator) SetLinuxResourcesCPURealtimePeriod(n uint64) { g.cpu().RealtimePeriod = &n }
func (g *generator) SetLinuxResourcesCPURealtimeRuntime(n int64) { g.cpu().RealtimeRuntime = &n }
func (g *generator) SetLinuxResourcesCPUShares(n uint64)         { g.cpu().Shares = &n }
func (g *generator) SetLinuxResourcesMemoryLimit(n int64)        { g.memory().Limit = &n }
func (g *generator) SetLinuxResourcesMemorySwap(n int64)         { g.memory().Swap = &n }
func (g *generator) AddLinuxResourcesUnified(key, value string) {
	setKey(&g.spec.Linux.Resources.Unified, key, value)
}
func (g *generator) AddLinuxResourcesHugepageLimit(size string, n uint64) {
	r := g.spec.Linux.Resources
	r.HugepageLimits = append(slices.DeleteFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size }),
		specs.LinuxHugepageLimit{Pagesize: size, Limit: n})
}

func setKey(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}
