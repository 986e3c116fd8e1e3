package nri

import (
	"maps"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
	"crishim/engine/native/hook"
)

// podToNRI copies: the adaptation edits what it is given.
func podToNRI(p *hook.Pod) *api.PodSandbox {
	pod := &api.PodSandbox{
		Id: string(p.ID), Name: p.Key.Name, Uid: p.Key.UID, Namespace: p.Key.Namespace, Pid: uint32(p.PID), Ips: p.IPs,
		Linux: &api.LinuxPodSandbox{CgroupsPath: p.CgroupPath, Namespaces: api.FromOCILinuxNamespaces(p.Namespaces)},
	}
	if s := p.Spec; s != nil {
		pod.Labels, pod.Annotations, pod.RuntimeHandler = maps.Clone(s.Labels), maps.Clone(s.Annotations), s.RuntimeHandler
		pod.Linux.CgroupParent = s.CgroupParent
		pod.Linux.PodOverhead, pod.Linux.PodResources = resourcesToNRI(s.Overhead), resourcesToNRI(s.Resources)
	}
	return pod
}

var states = map[engine.ContainerState]api.ContainerState{
	engine.ContainerCreated: api.ContainerState_CONTAINER_CREATED,
	engine.ContainerRunning: api.ContainerState_CONTAINER_RUNNING,
	engine.ContainerExited:  api.ContainerState_CONTAINER_STOPPED,
}

// containerToNRI is the container as CRI asked for it and, where there is one, as its OCI spec has it.
func containerToNRI(c *hook.Container) *api.Container {
	out := &api.Container{
		Id: string(c.ID), PodSandboxId: string(c.Pod), Name: c.Key.Name, State: states[c.State], Pid: uint32(c.PID),
		CreatedAt: nanoseconds(c.CreatedAt), StartedAt: nanoseconds(c.StartedAt), FinishedAt: nanoseconds(c.FinishedAt),
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message, Linux: &api.LinuxContainer{},
	}
	if s := c.Spec; s != nil {
		out.Labels, out.Annotations = maps.Clone(s.Labels), maps.Clone(s.Annotations)
		out.Image = &api.Image{Name: s.Image.Name, Digest: s.Image.RepoDigest, ConfigDigest: string(s.Image.ID)}
		if out.Image.Name == "" {
			out.Image.Name = s.Image.UserSpecified
		}
		for _, name := range s.CDIDevices {
			out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: name})
		}
		out.Linux.SeccompProfile = profileToNRI(&s.Security.Seccomp)
	}
	if u := c.User; u != nil {
		out.User = &api.User{Uid: uint32(u.UID), Gid: uint32(u.GID)}
		for _, gid := range u.Groups {
			out.User.AdditionalGids = append(out.User.AdditionalGids, uint32(gid))
		}
	}
	if c.OCI != nil {
		describeOCI(out, c.OCI)
	}
	return out
}

func describeOCI(out *api.Container, s *specs.Spec) {
	out.Mounts, out.Hooks = api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	if p := s.Process; p != nil {
		out.Args, out.Env = api.DupStringSlice(p.Args), api.DupStringSlice(p.Env)
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		out.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		out.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		out.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
	}
	l := s.Linux
	if l == nil {
		return
	}
	out.Linux.Namespaces, out.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	out.Linux.Resources, out.Linux.CgroupsPath = limitsToNRI(l.Resources), l.CgroupsPath
	if l.Seccomp != nil {
		out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	out.Linux.Sysctl = maps.Clone(l.Sysctl)
	out.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
}

func profileToNRI(p *engine.Profile) *api.SecurityProfile {
	switch p.Type {
	case engine.ProfileRuntimeDefault:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
	case engine.ProfileLocalhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: p.LocalhostRef}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
}

// nanoseconds since the epoch, 0 for no time.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
