package docker

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"

	"crishim/engine"
)

// The exit codes by which dockerd says that a process never started; see its daemon/errors.go.
const (
	exitCannotInvoke = 126
	exitNotFound     = 127
	exitUnknown      = 128
	// exitKilled is 128 + SIGKILL.
	exitKilled = 137
)

// object is what an inspected container is to us.
type object int

const (
	foreign object = iota
	sandbox
	workload
)

// classify tells our objects, dockershim's and cri-dockerd's from those that others made, also where they bear our labels.
func classify(labels map[string]string, name string) object {
	container, _, _, ok := parseName(name)
	if !ok {
		return foreign
	}
	switch labels[labelType] {
	case typeSandbox:
		if container == sandboxName {
			return sandbox
		}
	case typeContainer:
		if container != sandboxName && validID(labels[labelSandbox]) {
			return workload
		}
	}
	return foreign
}

// kindOf is classify, but a container that is in our records is ours also where somebody renamed it.
func (s *session) kindOf(id string, labels map[string]string, name string) object {
	kind := classify(labels, name)
	if kind != foreign || s.recorded == nil || !validID(id) || !s.recorded(id) {
		return kind
	}
	if labels[labelType] == typeSandbox {
		return sandbox
	}
	return workload
}

// complete says whether an inspect has the parts that the functions below read.
func complete(in *container.InspectResponse) bool {
	return in.ContainerJSONBase != nil && in.State != nil && in.HostConfig != nil && in.Config != nil && validID(in.ID)
}

// podStatus reads a sandbox; what /proc and the pins know is added by the caller.
func podStatus(in *container.InspectResponse) engine.PodStatus {
	_, key, attempt, _ := parseName(in.Name)
	key.Attempt = attempt
	status := engine.PodStatus{
		ID:        engine.PodID(in.ID),
		Key:       key,
		State:     engine.PodNotReady,
		CreatedAt: parseTime(in.Created),
		StartedAt: parseTime(in.State.StartedAt),
		Spec:      podSpecOf(in, key),
	}
	if in.State.Running && !in.State.Restarting && !in.State.Dead {
		status.State, status.PID = engine.PodReady, in.State.Pid
	}
	if in.NetworkSettings != nil {
		for _, network := range sortedKeys(in.NetworkSettings.Networks) {
			endpoint := in.NetworkSettings.Networks[network]
			for _, ip := range []string{endpoint.IPAddress, endpoint.GlobalIPv6Address} {
				if ip != "" {
					status.IPs = append(status.IPs, ip)
				}
			}
		}
	}
	return status
}

// containerStatus reads a container; what /proc knows is added by the caller.
func containerStatus(in *container.InspectResponse) engine.ContainerStatus {
	name, pod, attempt, _ := parseName(in.Name)
	key := engine.ContainerKey{Name: name, Attempt: attempt}
	status := engine.ContainerStatus{
		ID:         engine.ContainerID(in.ID),
		Pod:        engine.PodID(in.Config.Labels[labelSandbox]),
		PodKey:     pod,
		Key:        key,
		CreatedAt:  parseTime(in.Created),
		StartedAt:  parseTime(in.State.StartedAt),
		FinishedAt: parseTime(in.State.FinishedAt),
		UpperDir:   in.GraphDriver.Data["UpperDir"],
		ImageID:    engine.ImageID(in.Image),
		StopSignal: signalName(in.Config.StopSignal),
		Spec:       containerSpecOf(in, pod, key),
	}
	status.State = containerState(in.State, status.StartedAt, status.FinishedAt)
	switch status.State {
	case engine.ContainerRunning:
		status.PID, status.FinishedAt = in.State.Pid, time.Time{}
	case engine.ContainerExited:
		status.ExitCode = int32(in.State.ExitCode)
		status.Reason = exitReason(in.State, status.StartedAt)
		status.Message = in.State.Error
		if status.FinishedAt.IsZero() {
			// It never ran: CRI wants times all the same.
			status.FinishedAt = status.CreatedAt
		}
		if status.StartedAt.IsZero() || status.StartedAt.After(status.FinishedAt) {
			// dockerd notes the start of a process after it, so that a short-lived one ends before.
			status.StartedAt = status.FinishedAt
		}
	}
	return status
}

// containerState goes by Docker's fields, never by its text (peers' fault 10).
func containerState(s *container.State, started, finished time.Time) engine.ContainerState {
	switch {
	case s.Running || s.Paused:
		return engine.ContainerRunning
	case !finished.IsZero():
		return engine.ContainerExited
	case s.Dead:
		return engine.ContainerUnknown
	case started.IsZero() && s.ExitCode == 0:
		return engine.ContainerCreated
	case started.IsZero():
		// dockerd leaves a container that could not start "created", with an exit code.
		return engine.ContainerExited
	}
	return engine.ContainerUnknown
}

func exitReason(s *container.State, started time.Time) string {
	switch {
	case started.IsZero() && s.ExitCode != 0:
		return engine.ReasonStartError
	case s.OOMKilled && s.ExitCode == exitKilled:
		// Docker notes every OOM kill in the container, and the kernel's log tells which of them it outlived.
		return engine.ReasonOOMKilled
	case s.ExitCode == 0:
		return engine.ReasonCompleted
	}
	return engine.ReasonError
}

// parseTime reads Docker's RFC 3339; its year 1 is the zero time.
func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	return t
}

// signalName gives Docker's "15", "TERM" and "SIGTERM" one form; Docker's default is SIGTERM.
func signalName(s string) string {
	if s == "" {
		return "SIGTERM"
	}
	if n, err := strconv.Atoi(s); err == nil {
		if name := nameOfSignal(n); name != "" {
			return name
		}
		return s
	}
	if s = strings.ToUpper(s); !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	return s
}

// podSpecOf is what a sandbox says about itself: enough to serve a pod whose record is lost or another shim's.
func podSpecOf(in *container.InspectResponse, key engine.PodKey) *engine.PodSpec {
	host := in.HostConfig
	labels, annotations := splitLabels(in.Config.Labels, true)
	security := securityOf(in)
	if in.Config.Labels[labelPrivileged] == "true" { // the other shims' pause containers are themselves privileged
		security.Privileged = true
	}
	spec := &engine.PodSpec{
		Key:            key,
		Handler:        host.Runtime,
		RuntimeHandler: "",
		Hostname:       in.Config.Hostname,
		Labels:         labels,
		Annotations:    annotations,
		CgroupParent:   host.CgroupParent,
		Ports:          portsOf(host),
		Namespaces: engine.Namespaces{
			Network: nodeOr(host.NetworkMode.IsHost(), engine.NamespacePod),
			IPC:     nodeOr(host.IpcMode.IsHost(), engine.NamespacePod),
			PID:     nodeOr(host.PidMode.IsHost(), engine.NamespaceContainer),
		},
		Sysctls:    host.Sysctls,
		Security:   security,
		PauseImage: in.Config.Image,
	}
	return spec
}

// containerSpecOf is what a container says about itself.
func containerSpecOf(in *container.InspectResponse, pod engine.PodKey, key engine.ContainerKey) *engine.ContainerSpec {
	host, config := in.HostConfig, in.Config
	labels, annotations := splitLabels(config.Labels, false)
	id := config.Labels[labelSandbox]
	spec := &engine.ContainerSpec{
		Pod:          engine.PodID(id),
		PodKey:       pod,
		Key:          key,
		Handler:      host.Runtime,
		Image:        engine.ImageRef{Ref: config.Image, ID: engine.ImageID(in.Image)},
		Command:      config.Entrypoint,
		Args:         config.Cmd,
		WorkingDir:   config.WorkingDir,
		Labels:       labels,
		Annotations:  annotations,
		LogPath:      config.Labels[labelLogPath],
		LogDirectory: config.Labels[labelLogDirectory],
		Stdin:        config.OpenStdin,
		StdinOnce:    config.StdinOnce,
		TTY:          config.Tty,
		StopSignal:   config.StopSignal,
		Mounts:       mountsOf(in),
		Security:     securityOf(in),
		Resources:    resourcesOf(host),
		CgroupParent: host.CgroupParent,
		Namespaces: engine.Namespaces{
			Network: nodeOr(host.UTSMode.IsHost() || host.NetworkMode.IsHost(), engine.NamespacePod),
			IPC:     nodeOr(host.IpcMode.IsHost(), engine.NamespacePod),
		},
	}
	for _, entry := range config.Env {
		name, value, _ := strings.Cut(entry, "=")
		spec.Env = append(spec.Env, engine.EnvVar{Name: name, Value: []byte(value)})
	}
	for _, d := range host.Devices {
		spec.Devices = append(spec.Devices, engine.Device{ContainerPath: d.PathInContainer, HostPath: d.PathOnHost, Permissions: d.CgroupPermissions})
	}
	switch target := host.PidMode.Container(); {
	case host.PidMode.IsHost():
		spec.Namespaces.PID = engine.NamespaceNode
	case target == id && target != "":
		spec.Namespaces.PID = engine.NamespacePod
	case target != "":
		spec.Namespaces.PID, spec.Namespaces.PIDTarget = engine.NamespaceTarget, engine.ContainerID(target)
	default:
		spec.Namespaces.PID = engine.NamespaceContainer
	}
	return spec
}

func nodeOr(node bool, other engine.NamespaceMode) engine.NamespaceMode {
	if node {
		return engine.NamespaceNode
	}
	return other
}

func portsOf(host *container.HostConfig) []engine.PortMapping {
	var ports []engine.PortMapping
	for port, bindings := range host.PortBindings {
		for _, b := range bindings {
			hostPort, err := strconv.ParseInt(b.HostPort, 10, 32)
			if err != nil {
				continue
			}
			ports = append(ports, engine.PortMapping{
				Protocol: port.Proto(), ContainerPort: int32(port.Int()), HostPort: int32(hostPort), HostIP: b.HostIP,
			})
		}
	}
	sortPorts(ports)
	return ports
}

func mountsOf(in *container.InspectResponse) []engine.Mount {
	asked := map[string]mount.Mount{}
	for _, m := range in.HostConfig.Mounts {
		asked[m.Target] = m
	}
	var mounts []engine.Mount
	for _, m := range in.Mounts {
		if m.Type != mount.TypeBind && m.Type != mount.TypeImage || isPodFile(&m, in.Config.Labels[labelSandbox]) {
			continue
		}
		out := engine.Mount{ContainerPath: m.Destination, Readonly: !m.RW, Propagation: propagationOf(m.Propagation)}
		a := asked[m.Destination]
		if m.Type == mount.TypeImage {
			out.Readonly = true
			out.Image = &engine.ImageRef{Ref: a.Source, ID: engine.ImageID(a.Source)}
			if a.ImageOptions != nil {
				out.ImageSubPath = a.ImageOptions.Subpath
			}
		} else {
			out.HostPath = m.Source
			out.RecursiveReadonly = a.BindOptions != nil && a.BindOptions.ReadOnlyForceRecursive
			out.SELinuxRelabel = strings.ContainsAny(m.Mode, "zZ")
		}
		mounts = append(mounts, out)
	}
	sortMounts(mounts)
	return mounts
}

func propagationOf(p mount.Propagation) engine.Propagation {
	switch p {
	case mount.PropagationRShared, mount.PropagationShared:
		return engine.PropagationBidirectional
	case mount.PropagationRSlave, mount.PropagationSlave:
		return engine.PropagationHostToContainer
	}
	return engine.PropagationPrivate
}

// resourcesOf reads limits; what UpdateContainer writes for "none" is none again.
func resourcesOf(host *container.HostConfig) engine.Resources {
	r := engine.Resources{
		CPUPeriod:   host.CPUPeriod,
		CPUQuota:    max(host.CPUQuota, 0),
		CPUShares:   host.CPUShares,
		CpusetCPUs:  host.CpusetCpus,
		CpusetMems:  host.CpusetMems,
		MemoryLimit: host.Memory,
		MemorySwap:  host.MemorySwap,
		OOMScoreAdj: int64(host.OomScoreAdj),
	}
	if r.MemoryLimit >= noMemoryLimit {
		r.MemoryLimit, r.MemorySwap = 0, 0
	}
	if r.MemorySwap >= noMemoryLimit || r.MemorySwap == math.MaxInt64 {
		r.MemorySwap = -1
	}
	return r
}

func securityOf(in *container.InspectResponse) engine.Security {
	host := in.HostConfig
	s := engine.Security{
		Privileged:     host.Privileged,
		CapAdd:         capabilities(host.CapAdd),
		CapDrop:        capabilities(host.CapDrop),
		ReadonlyRootfs: host.ReadonlyRootfs,
		MaskedPaths:    host.MaskedPaths,
		ReadonlyPaths:  host.ReadonlyPaths,
		Seccomp:        engine.Profile{Type: engine.ProfileRuntimeDefault},
		AppArmor:       engine.Profile{Type: engine.ProfileRuntimeDefault},
	}
	if s.Privileged {
		s.Seccomp.Type, s.AppArmor.Type = engine.ProfileUnconfined, engine.ProfileUnconfined
	}
	user, group, _ := strings.Cut(in.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		s.UID = &uid
	} else {
		s.Username = user
	}
	if gid, err := strconv.ParseInt(group, 10, 64); err == nil {
		s.GID = &gid
	}
	for _, g := range host.GroupAdd {
		if gid, err := strconv.ParseInt(g, 10, 64); err == nil {
			s.SupplementalGroups = append(s.SupplementalGroups, gid)
		}
	}
	for _, opt := range host.SecurityOpt {
		readSecurityOpt(&s, opt)
	}
	return s
}

func readSecurityOpt(s *engine.Security, opt string) {
	key, value, ok := strings.Cut(opt, "=")
	if !ok {
		key, value, _ = strings.Cut(opt, ":")
	}
	switch key {
	case "no-new-privileges":
		s.NoNewPrivs = value != "false"
	case "seccomp":
		switch value {
		case "unconfined":
			s.Seccomp = engine.Profile{Type: engine.ProfileUnconfined}
		case "builtin":
		default:
			s.Seccomp = engine.Profile{Type: engine.ProfileLocalhost, Content: []byte(value)}
		}
	case "apparmor":
		if value == "unconfined" {
			s.AppArmor = engine.Profile{Type: engine.ProfileUnconfined}
		} else {
			s.AppArmor = engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: value}
		}
	case "label":
		field, v, ok := strings.Cut(value, ":")
		if !ok {
			return
		}
		if s.SELinux == nil {
			s.SELinux = &engine.SELinuxOption{}
		}
		switch field {
		case "user":
			s.SELinux.User = v
		case "role":
			s.SELinux.Role = v
		case "type":
			s.SELinux.Type = v
		case "level":
			s.SELinux.Level = v
		}
	}
}

// capabilities takes Docker's "CAP_" off.
func capabilities(names []string) []string {
	var out []string
	for _, name := range names {
		out = append(out, strings.TrimPrefix(name, "CAP_"))
	}
	return out
}
