package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// namespaces are the pod's by path, those of a mode that says so the host's (not listed), and its own: always the mount
// namespace, and with cgroup v2 the cgroup namespace, in which it sees its own subtree only.
func (b *builder) namespaces() error {
	n, pins := &b.c.Spec.Namespaces, &b.c.Pins
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, path string) error {
		if path == "" {
			return invalid("the pod has no %s namespace to join", kind)
		}
		out = append(out, specs.LinuxNamespace{Type: kind, Path: path})
		return nil
	}
	if n.User != nil {
		if err := join(specs.UserNamespace, pins.User); err != nil {
			return err
		}
		if b.c.OCIRuntime {
			// Beside the namespace that has them already: crun reads there only to whom pipes, terminals and the cgroup belong, and
			// runc before 1.2 starts nothing without. A newer runc, as libcontainer, reads the namespace, and logs a warning.
			b.s.Linux.UIDMappings, b.s.Linux.GIDMappings = idMappings(n.User.UIDs), idMappings(n.User.GIDs)
		}
	}
	if n.Network != engine.NamespaceNode {
		// A container in the host's network has the host's name.
		if err := join(specs.NetworkNamespace, pins.Net); err != nil {
			return err
		}
		if err := join(specs.UTSNamespace, pins.UTS); err != nil {
			return err
		}
	}
	if n.IPC != engine.NamespaceNode {
		if err := join(specs.IPCNamespace, pins.IPC); err != nil {
			return err
		}
	}
	switch n.PID {
	case engine.NamespaceNode:
	case engine.NamespaceContainer, "":
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case engine.NamespacePod, engine.NamespaceTarget:
		if err := join(specs.PIDNamespace, pins.PID); err != nil {
			return err
		}
	default:
		return invalid("pid namespace mode %q", n.PID)
	}
	if b.h.CgroupV2 && !b.c.Spec.Security.Privileged {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	b.s.Linux.Namespaces = out
	return nil
}
