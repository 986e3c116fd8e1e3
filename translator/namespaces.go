package translator

import (
	"math"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

const namespaceField = "linux.security_context.namespace_options"

// podNamespaces translates the sandbox's namespaces. nil is CRI's default: POD for all of them.
func podNamespaces(p *problems, in *runtimeapi.NamespaceOption) engine.Namespaces {
	n := engine.Namespaces{
		Network: mode(p, namespaceField+".network", in.GetNetwork(), engine.NamespacePod, engine.NamespaceNode),
		PID:     mode(p, namespaceField+".pid", in.GetPid(), engine.NamespacePod, engine.NamespaceContainer, engine.NamespaceNode),
		IPC:     mode(p, namespaceField+".ipc", in.GetIpc(), engine.NamespacePod, engine.NamespaceNode),
		User:    userNamespace(p, in.GetUsernsOptions()),
	}
	if in.GetTargetId() != "" {
		p.add(namespaceField+".target_id", "is for containers only")
	}
	if n.User != nil && (n.Network == engine.NamespaceNode || n.PID == engine.NamespaceNode || n.IPC == engine.NamespaceNode) {
		p.add(namespaceField+".userns_options", "a user namespace of its own cannot be combined with the host's network, pid or ipc namespace")
	}
	return n
}

// containerNamespaces resolves the container's namespaces in its pod's. POD is whatever the pod has, so also the host's;
// NODE in a pod that is not on the host would give the container more than its pod has and is refused. nil asks for nothing, and
// in a pod of CONTAINER no process shares its PID namespace.
func containerNamespaces(p *problems, in *runtimeapi.NamespaceOption, pod *engine.Namespaces) engine.Namespaces {
	n := engine.Namespaces{
		Network: mode(p, namespaceField+".network", in.GetNetwork(), engine.NamespacePod, engine.NamespaceNode),
		PID: mode(p, namespaceField+".pid", in.GetPid(),
			engine.NamespacePod, engine.NamespaceContainer, engine.NamespaceNode, engine.NamespaceTarget),
		IPC:  mode(p, namespaceField+".ipc", in.GetIpc(), engine.NamespacePod, engine.NamespaceNode),
		User: pod.User,
	}
	n.Network = inPod(p, namespaceField+".network", n.Network, pod.Network)
	n.PID = inPod(p, namespaceField+".pid", n.PID, pod.PID)
	n.IPC = inPod(p, namespaceField+".ipc", n.IPC, pod.IPC)
	if in == nil && pod.PID == engine.NamespaceContainer {
		n.PID = engine.NamespaceContainer
	}
	target := in.GetTargetId()
	switch {
	case n.PID == engine.NamespaceTarget && target == "":
		p.add(namespaceField+".target_id", "is required with pid TARGET")
	case n.PID != engine.NamespaceTarget && target != "":
		p.add(namespaceField+".target_id", "%.80q needs pid TARGET", target)
	case target != "" && (len(target) > maxName || !onlyRunes(target, isAlnum)):
		p.add(namespaceField+".target_id", "%.80q is no container id", target)
	default:
		n.PIDTarget = engine.ContainerID(target)
	}
	// Without userns_options the container is in its pod's user namespace, like in the others.
	if in.GetUsernsOptions() != nil && !sameUserNamespace(userNamespace(p, in.GetUsernsOptions()), pod.User) {
		p.add(namespaceField+".userns_options", "differ from the pod sandbox's")
	}
	return n
}

func mode(p *problems, field string, m runtimeapi.NamespaceMode, allowed ...engine.NamespaceMode) engine.NamespaceMode {
	name := engine.NamespaceMode(m.String())
	if !slices.Contains(allowed, name) {
		p.add(field, "is %s, allowed are %v", name, allowed)
		return engine.NamespacePod
	}
	return name
}

func inPod(p *problems, field string, own, pod engine.NamespaceMode) engine.NamespaceMode {
	switch {
	case own == engine.NamespaceNode && pod != engine.NamespaceNode:
		p.add(field, "is NODE, but the pod sandbox's is %s", pod)
	case own == engine.NamespacePod && pod == engine.NamespaceNode:
		return engine.NamespaceNode
	}
	return own
}

// userNamespace is nil for the host's.
func userNamespace(p *problems, in *runtimeapi.UserNamespace) *engine.UserNamespace {
	const field = namespaceField + ".userns_options"
	if in == nil {
		return nil
	}
	switch in.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(in.GetUids())+len(in.GetGids()) > 0 {
			p.add(field, "have mappings, but mode NODE")
		}
		return nil
	case runtimeapi.NamespaceMode_POD:
		oneMapping(p, field+".uids", in.GetUids())
		oneMapping(p, field+".gids", in.GetGids())
		return &engine.UserNamespace{UIDs: idMappings(p, field+".uids", in.GetUids()), GIDs: idMappings(p, field+".gids", in.GetGids())}
	}
	p.add(field+".mode", "is %s, allowed are POD and NODE", in.GetMode())
	return nil
}

// oneMapping asks for what critest and the other runtimes ask for.
func oneMapping(p *problems, field string, in []*runtimeapi.IDMapping) {
	if len(in) != 1 {
		p.add(field, "have %d mappings, exactly one is allowed", len(in))
	} else if in[0].GetContainerId() != 0 {
		p.add(field, "do not map the container's id 0")
	}
}

// idMappings checks that each mapping has a length and that none overlaps another or leaves the range of ids.
func idMappings(p *problems, field string, in []*runtimeapi.IDMapping) []engine.IDMapping {
	if len(in) > maxIDMappings {
		p.add(field, "have %d mappings, at most %d are allowed", len(in), maxIDMappings)
		return nil
	}
	var out []engine.IDMapping
	for _, m := range in {
		next := engine.IDMapping{HostID: m.GetHostId(), ContainerID: m.GetContainerId(), Length: m.GetLength()}
		switch {
		case next.Length == 0:
			p.add(field, "have a mapping without a length")
		case uint64(max(next.HostID, next.ContainerID))+uint64(next.Length) > math.MaxUint32:
			p.add(field, "map ids above 4294967294")
		case slices.ContainsFunc(out, func(o engine.IDMapping) bool {
			return overlap(o.HostID, o.Length, next.HostID, next.Length) || overlap(o.ContainerID, o.Length, next.ContainerID, next.Length)
		}):
			p.add(field, "have mappings that overlap")
		}
		out = append(out, next)
	}
	return out
}

// maxIDMappings is the kernel's bound for a user namespace.
const maxIDMappings = 340

func overlap(a, lenA, b, lenB uint32) bool {
	return uint64(a) < uint64(b)+uint64(lenB) && uint64(b) < uint64(a)+uint64(lenA)
}

func sameUserNamespace(a, b *engine.UserNamespace) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.UIDs, b.UIDs) && slices.Equal(a.GIDs, b.GIDs)
}
