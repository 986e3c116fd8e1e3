package docker

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-connections/nat"

	"crishim/engine"
	"crishim/engine/imageuser"
)

// Fixed settings of a pause container; the shares and the score are the kubelet's for its sandboxes, the size Docker's.
const (
	pauseCPUShares   = 2
	pauseOOMScoreAdj = -998
	shmSize          = 64 << 20
	// minMemory is Docker's: a lower limit is refused by it.
	minMemory = 6 << 20
	// noMemoryLimit is what the kernel shows for "no limit" (cgroup v1, 4 KiB pages). Docker takes 0 for "unchanged".
	noMemoryLimit = 9223372036854771712
)

// createBody is the body of POST /containers/create and the name in its query.
type createBody struct {
	Name       string
	Config     *container.Config
	HostConfig *container.HostConfig
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// lowerPod decides the pause container of a pod: it holds the namespaces that the pod's containers join.
func lowerPod(spec *engine.PodSpec, f *facts) (*createBody, error) {
	name, err := podName(spec.Key)
	if err != nil {
		return nil, err
	}
	if spec.Namespaces.User != nil {
		return nil, invalid("Docker has no user namespace per pod")
	}
	labels, err := makeLabels(spec.Labels, spec.Annotations, map[string]string{
		labelType:       typeSandbox,
		labelContainer:  sandboxName,
		labelPrivileged: strconv.FormatBool(spec.Security.Privileged),
	})
	if err != nil {
		return nil, err
	}
	parent, err := lowerCgroupParent(spec.CgroupParent, f)
	if err != nil {
		return nil, err
	}
	security := spec.Security
	if security.Seccomp.Type == engine.ProfileUnset {
		// Nil means unconfined for a workload; the pause process needs nothing that the default profile denies.
		security.Seccomp.Type = engine.ProfileRuntimeDefault
	}
	security.NoNewPrivs, security.Privileged = true, false
	securityOpt, err := lowerSecurityOpt(&security, f)
	if err != nil {
		return nil, err
	}
	user, err := numericUser(&spec.Security)
	if err != nil {
		return nil, err
	}
	exposed, bindings, err := lowerPorts(spec.Ports)
	if err != nil {
		return nil, err
	}
	config := &container.Config{
		Hostname:     spec.Hostname,
		Image:        spec.PauseImage,
		Labels:       labels,
		User:         user,
		ExposedPorts: exposed,
		// Its network namespace is CNI's: one of Docker's own in it costs 20.10 a run of itself, half of the start.
		NetworkDisabled: ownFiles(spec, f),
		Healthcheck:     &container.HealthConfig{Test: []string{"NONE"}},
	}
	host := &container.HostConfig{
		NetworkMode:    "none",
		PortBindings:   bindings,
		IpcMode:        container.IPCModeShareable,
		CgroupnsMode:   cgroupNamespace(false, f),
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:      lowerLog(f),
		OomScoreAdj:    int(max(pauseOOMScoreAdj, f.oomScoreAdjMin)),
		ReadonlyRootfs: spec.Security.ReadonlyRootfs,
		SecurityOpt:    securityOpt,
		GroupAdd:       groupStrings(spec.Security.SupplementalGroups),
		ShmSize:        shmSize,
		Sysctls:        spec.Sysctls,
		Runtime:        lowerHandler(spec.Handler),
		// Docker's own masked and read-only paths, by their absence: CRI has none for a pod. Root in a container that sees the
		// pause process reaches /proc/PID/root/proc, where a writable /proc/sys is the host's.
		Resources: container.Resources{CPUShares: pauseCPUShares, CgroupParent: parent},
	}
	if spec.Namespaces.Network == engine.NamespaceNode {
		// A container in the host's network has the host's names; Docker refuses a hostname beside its UTS namespace.
		host.NetworkMode, host.UTSMode, config.Hostname = "host", "host", ""
	} else if f.bridge {
		host.NetworkMode = "bridge"
	}
	if spec.Namespaces.IPC == engine.NamespaceNode {
		host.IpcMode = container.IPCModeHost
	}
	if spec.Namespaces.PID == engine.NamespaceNode {
		host.PidMode = "host"
	}
	return &createBody{Name: name, Config: config, HostConfig: host}, nil
}

// numericUser is the pause process's user: CRI has only numbers for it.
func numericUser(s *engine.Security) (string, error) {
	if s.UID == nil {
		if s.GID != nil {
			return "", invalid("run_as_group without run_as_user")
		}
		return "", nil
	}
	if err := imageuser.CheckID("run_as_user", *s.UID); err != nil {
		return "", err
	}
	user := strconv.FormatInt(*s.UID, 10)
	if s.GID != nil {
		if err := imageuser.CheckID("run_as_group", *s.GID); err != nil {
			return "", err
		}
		user += ":" + strconv.FormatInt(*s.GID, 10)
	}
	return user, nil
}

// lowerContainer decides a container; user is what resolveUser made of the spec and the image, mountsDir the folder in
// which the mounts that Docker cannot make will be. They are there where the body has labelMounts, the folder's name.
func lowerContainer(spec *engine.ContainerSpec, user processUser, mountsDir string, f *facts) (*createBody, error) {
	name, err := containerName(spec.PodKey, spec.Key)
	if err != nil {
		return nil, err
	}
	if !validID(string(spec.Pod)) {
		return nil, notFound("pod", string(spec.Pod))
	}
	if spec.Namespaces.User != nil {
		return nil, invalid("Docker has no user namespace per pod")
	}
	if len(spec.Security.CapAmbient) > 0 {
		return nil, invalid("Docker cannot raise ambient capabilities")
	}
	own := map[string]string{
		labelType:         typeContainer,
		labelSandbox:      string(spec.Pod),
		labelLogPath:      spec.LogPath,
		labelLogDirectory: spec.LogDirectory,
		labelMounts:       "", // an image's label of that name must not stay
	}
	if slices.ContainsFunc(spec.Mounts, func(m engine.Mount) bool { return prepared(&m, spec.Handler, f) }) {
		own[labelMounts] = path.Base(mountsDir)
	}
	labels, err := makeLabels(spec.Labels, spec.Annotations, own)
	if err != nil {
		return nil, err
	}
	config, err := lowerConfig(spec)
	if err != nil {
		return nil, err
	}
	config.Labels, config.User = labels, user.User
	resources, err := lowerResources(&spec.Resources, f)
	if err != nil {
		return nil, err
	}
	if resources.CgroupParent, err = lowerCgroupParent(spec.CgroupParent, f); err != nil {
		return nil, err
	}
	resources.Devices = lowerDevices(spec.Devices)
	if resources.DeviceRequests, err = lowerCDI(spec.CDIDevices, f); err != nil {
		return nil, err
	}
	mounts, err := lowerMounts(spec, mountsDir, f)
	if err != nil {
		return nil, err
	}
	securityOpt, err := lowerSecurityOpt(&spec.Security, f)
	if err != nil {
		return nil, err
	}
	joined := "container:" + string(spec.Pod)
	host := &container.HostConfig{
		NetworkMode:    container.NetworkMode(joined),
		IpcMode:        container.IpcMode(joined),
		CgroupnsMode:   cgroupNamespace(spec.Security.Privileged, f),
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:      lowerLog(f),
		OomScoreAdj:    int(max(spec.Resources.OOMScoreAdj, f.oomScoreAdjMin)),
		Privileged:     spec.Security.Privileged,
		CapAdd:         spec.Security.CapAdd,
		CapDrop:        spec.Security.CapDrop,
		ReadonlyRootfs: spec.Security.ReadonlyRootfs,
		SecurityOpt:    securityOpt,
		GroupAdd:       user.GroupAdd,
		ShmSize:        shmSize,
		Runtime:        lowerHandler(spec.Handler),
		Mounts:         mounts,
		MaskedPaths:    orEmpty(spec.Security.MaskedPaths),
		ReadonlyPaths:  orEmpty(spec.Security.ReadonlyPaths),
		Resources:      resources,
	}
	if spec.Namespaces.Network == engine.NamespaceNode {
		host.UTSMode = "host"
	}
	if host.PidMode, err = lowerPIDMode(spec); err != nil {
		return nil, err
	}
	return &createBody{Name: name, Config: config, HostConfig: host}, nil
}

func lowerConfig(spec *engine.ContainerSpec) (*container.Config, error) {
	env, err := lowerEnv(spec.Env)
	if err != nil {
		return nil, err
	}
	image := string(spec.Image.ID)
	if image == "" {
		image = spec.Image.Ref
	}
	return &container.Config{
		Image: image,
		// Docker takes the image's Cmd only where neither is given, and the image's Entrypoint only where that is not.
		Entrypoint:  spec.Command,
		Cmd:         spec.Args,
		WorkingDir:  spec.WorkingDir,
		Env:         env,
		Tty:         spec.TTY,
		OpenStdin:   spec.Stdin,
		StdinOnce:   spec.StdinOnce,
		StopSignal:  spec.StopSignal,
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}, nil
}

// lowerEnv refuses what the Engine API's text would change on the way.
func lowerEnv(vars []engine.EnvVar) ([]string, error) {
	env := make([]string, 0, len(vars))
	for _, v := range vars {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || !utf8.ValidString(v.Name) {
			return nil, invalid("environment variable name %.80q", v.Name)
		}
		if bytes.IndexByte(v.Value, 0) >= 0 || !utf8.Valid(v.Value) {
			return nil, invalid("environment variable %.80s: the Docker API carries UTF-8 without NUL only", v.Name)
		}
		env = append(env, v.Name+"="+string(v.Value))
	}
	return env, nil
}

func lowerPIDMode(spec *engine.ContainerSpec) (container.PidMode, error) {
	switch spec.Namespaces.PID {
	case engine.NamespacePod:
		return container.PidMode("container:" + string(spec.Pod)), nil
	case engine.NamespaceNode:
		return "host", nil
	case engine.NamespaceTarget:
		if !validID(string(spec.Namespaces.PIDTarget)) {
			return "", invalid("target container %.80q is not a container id", spec.Namespaces.PIDTarget)
		}
		return container.PidMode("container:" + string(spec.Namespaces.PIDTarget)), nil
	case engine.NamespaceContainer, "":
		return "", nil
	}
	return "", invalid("pid namespace mode %q", spec.Namespaces.PID)
}

// lowerResources never uses NanoCPUs (it excludes quota and period later on) and always says what swap is, because
// Docker's 0 means twice the memory.
func lowerResources(r *engine.Resources, f *facts) (container.Resources, error) {
	if err := checkResources(r, f); err != nil {
		return container.Resources{}, err
	}
	out := container.Resources{
		CPUPeriod:  r.CPUPeriod,
		CPUQuota:   r.CPUQuota,
		CPUShares:  r.CPUShares,
		CpusetCpus: r.CpusetCPUs,
		CpusetMems: r.CpusetMems,
		Memory:     r.MemoryLimit,
		MemorySwap: r.MemorySwap,
	}
	if r.MemoryLimit > 0 && r.MemorySwap == 0 {
		out.MemorySwap = r.MemoryLimit
	}
	if r.MemoryLimit == 0 {
		// Docker has no swap limit without a memory limit. On cgroup v1 swappiness 0 keeps a pod without limit out of swap;
		// on v2 afterStart writes memory.swap.max.
		out.MemorySwap = 0
		if !f.cgroupV2 && r.MemorySwap == 0 {
			out.MemorySwappiness = new(int64)
		}
	}
	return out, nil
}

func checkResources(r *engine.Resources, f *facts) error {
	switch {
	case r.MemoryLimit > 0 && r.MemoryLimit < minMemory:
		return invalid("memory limit %d is below Docker's minimum of %d bytes (6 MiB)", r.MemoryLimit, minMemory)
	case len(r.Unified) > 0 && !f.cgroupV2:
		return invalid("unified resources need cgroup v2, this host has v1")
	}
	return r.Check()
}

// lowerCgroupParent converts CRI's path to what Docker's driver takes: the path with cgroupfs, the last slice's name
// with systemd.
func lowerCgroupParent(parent string, f *facts) (string, error) {
	if parent == "" {
		return "", nil
	}
	if slices.Contains(strings.Split(parent, "/"), "..") || strings.ContainsAny(parent, "\x00\n") || len(parent) > 1024 {
		return "", invalid("cgroup parent %.80q", parent)
	}
	if f.cgroupDriver != engine.SystemdDriver {
		return path.Clean(parent), nil
	}
	slice := path.Base(parent)
	if !strings.HasSuffix(slice, ".slice") {
		return "", invalid("cgroup parent %.80q is not a slice, and Docker's cgroup driver is systemd: the kubelet's cgroupDriver must be the same", parent)
	}
	return slice, nil
}

// cgroupNamespace is private where the container then sees its own subtree only (cgroup v2), the host's otherwise.
func cgroupNamespace(privileged bool, f *facts) container.CgroupnsMode {
	if f.cgroupV2 && !privileged {
		return container.CgroupnsModePrivate
	}
	return container.CgroupnsModeHost
}

func lowerHandler(handler string) string {
	if handler == Name {
		return ""
	}
	return handler
}

// lowerLog pins the log driver: the CRI log is written from Docker's json-file, which is bounded because nobody else
// rotates it. Nor is it compressed, as log-opts of daemon.json may have it: while nobody reads it the unread part would be.
func lowerLog(f *facts) container.LogConfig {
	return container.LogConfig{Type: "json-file", Config: map[string]string{
		"max-size": strconv.FormatInt(f.log.maxSize, 10),
		"max-file": strconv.Itoa(f.log.maxFiles),
		"compress": "false",
	}}
}

// lowerSecurityOpt spells everything out, so that defaults of daemon.json do not leak in.
func lowerSecurityOpt(s *engine.Security, f *facts) ([]string, error) {
	opts := []string{"no-new-privileges=" + strconv.FormatBool(s.NoNewPrivs)}
	if !s.Privileged {
		// A privileged container runs without this profile, whatever was asked; newer engines would apply one.
		seccomp, err := lowerSeccomp(&s.Seccomp, f)
		if err != nil {
			return nil, err
		}
		opts = append(opts, seccomp...)
	}
	appArmor, err := lowerAppArmor(&s.AppArmor)
	if err != nil {
		return nil, err
	}
	opts = append(opts, appArmor...)
	if l := s.SELinux; l != nil {
		for _, field := range []struct{ name, value string }{{"user", l.User}, {"role", l.Role}, {"type", l.Type}, {"level", l.Level}} {
			if field.value != "" {
				opts = append(opts, "label="+field.name+":"+field.value)
			}
		}
	}
	return opts, nil
}

func lowerSeccomp(p *engine.Profile, f *facts) ([]string, error) {
	switch p.Type {
	case engine.ProfileUnset, engine.ProfileUnconfined:
		return []string{"seccomp=unconfined"}, nil
	case engine.ProfileRuntimeDefault:
		if f.atLeast("1.42") {
			return []string{"seccomp=builtin"}, nil
		}
		// Docker 20.10 knows no name for its default.
		return nil, nil
	case engine.ProfileLocalhost:
		if len(p.Content) == 0 {
			return nil, invalid("seccomp profile %.200q is empty", p.LocalhostRef)
		}
		return []string{"seccomp=" + string(p.Content)}, nil
	}
	return nil, invalid("seccomp profile type %q", p.Type)
}

func lowerAppArmor(p *engine.Profile) ([]string, error) {
	switch p.Type {
	case engine.ProfileUnset, engine.ProfileRuntimeDefault:
		return nil, nil
	case engine.ProfileUnconfined:
		return []string{"apparmor=unconfined"}, nil
	case engine.ProfileLocalhost:
		if p.LocalhostRef == "" {
			return nil, invalid("AppArmor profile without a name")
		}
		return []string{"apparmor=" + p.LocalhostRef}, nil
	}
	return nil, invalid("AppArmor profile type %q", p.Type)
}

// prepared says whether m is made on the host before the create (hostMounts): what Docker has no word for, or not with
// this API or runtime, and image volumes wherever that is possible: a graph driver's Docker makes one layer for a
// container and an image, so the same image twice in a container would fail, and mount options it has not.
func prepared(m *engine.Mount, handler string, f *facts) bool {
	switch {
	case m.Image != nil:
		return f.preparesImages()
	case len(m.Options) > 0:
		return true
	}
	return m.RecursiveReadonly && !f.recursiveReadonly[lowerHandler(handler)]
}

func lowerMounts(spec *engine.ContainerSpec, dir string, f *facts) ([]mount.Mount, error) {
	var out []mount.Mount
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		err := checkMount(m)
		var lowered mount.Mount
		switch {
		case err != nil:
		case prepared(m, spec.Handler, f):
			lowered, err = lowerPrepared(m, path.Join(dir, strconv.Itoa(i)), f)
		case m.Image != nil:
			lowered, err = lowerImageMount(m, f)
		default:
			lowered, err = lowerMount(m, f)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %.200s: %w", m.ContainerPath, err)
		}
		out = append(out, lowered)
	}
	return out, nil
}

// checkMount checks what holds for every mount.
func checkMount(m *engine.Mount) error {
	switch {
	case len(m.UIDMappings)+len(m.GIDMappings) > 0:
		return invalid("Docker has no id-mapped mounts")
	case !path.IsAbs(m.ContainerPath):
		return invalid("the container path is not absolute")
	case m.Image != nil && m.HostPath != "":
		return invalid("an image volume has no host path")
	case m.Image != nil && !m.Readonly:
		return invalid("an image volume must be read-only")
	case m.Image == nil && !path.IsAbs(m.HostPath):
		return invalid("host path %.200q is not absolute", m.HostPath)
	case m.Image == nil && m.RecursiveReadonly && !m.Readonly:
		return invalid("recursive read-only without read-only")
	case m.RecursiveReadonly && m.Propagation != engine.PropagationPrivate && m.Propagation != "":
		return invalid("a recursive read-only mount must have private propagation")
	}
	for _, option := range m.Options {
		if mountAttributes[option] == 0 {
			return invalid("mount option %.80q", option)
		}
	}
	return nil
}

// lowerPrepared binds what is prepared at source. Never read-only: for that the OCI runtime would mount it again, and the
// flags that were prepared would go.
func lowerPrepared(m *engine.Mount, source string, f *facts) (mount.Mount, error) {
	if !f.prepares {
		if len(m.Options) > 0 {
			return mount.Mount{}, invalid("mount options cannot be given to this engine (see the warnings in the runtime's status)")
		}
		return mount.Mount{}, invalid("recursive read-only mounts need Docker API 1.44 and an OCI runtime that has them, this engine has %s", f.api)
	}
	propagation, err := lowerPropagation(m.Propagation)
	if err != nil {
		return mount.Mount{}, err
	}
	return mount.Mount{Type: mount.TypeBind, Source: source, Target: m.ContainerPath, BindOptions: &mount.BindOptions{Propagation: propagation}}, nil
}

func lowerMount(m *engine.Mount, f *facts) (mount.Mount, error) {
	propagation, err := lowerPropagation(m.Propagation)
	if err != nil {
		return mount.Mount{}, err
	}
	bind := &mount.BindOptions{Propagation: propagation}
	if m.RecursiveReadonly {
		bind.ReadOnlyForceRecursive = true
	} else if m.Readonly && f.atLeast("1.44") {
		// From this API on read-only is recursive unless said otherwise; CRI's is not.
		bind.ReadOnlyNonRecursive = true
	}
	return mount.Mount{
		Type: mount.TypeBind, Source: m.HostPath, Target: m.ContainerPath, ReadOnly: m.Readonly, BindOptions: bind,
	}, nil
}

func lowerImageMount(m *engine.Mount, f *facts) (mount.Mount, error) {
	switch {
	case !f.atLeast("1.48"):
		return mount.Mount{}, invalid("image volumes need Docker API 1.48 or its overlay2 storage, this engine has %s", f.api)
	case len(m.Options) > 0:
		return mount.Mount{}, invalid("mount options of an image volume need Docker's overlay2 storage")
	}
	out := mount.Mount{Type: mount.TypeImage, Source: string(m.Image.ID), Target: m.ContainerPath}
	if m.ImageSubPath != "" {
		out.ImageOptions = &mount.ImageOptions{Subpath: m.ImageSubPath}
	}
	return out, nil
}

func lowerPropagation(p engine.Propagation) (mount.Propagation, error) {
	switch p {
	case engine.PropagationPrivate, "":
		return mount.PropagationRPrivate, nil
	case engine.PropagationHostToContainer:
		return mount.PropagationRSlave, nil
	case engine.PropagationBidirectional:
		return mount.PropagationRShared, nil
	}
	return "", invalid("mount propagation %q", p)
}

func lowerDevices(devices []engine.Device) []container.DeviceMapping {
	out := make([]container.DeviceMapping, 0, len(devices))
	for _, d := range devices {
		out = append(out, container.DeviceMapping{
			PathOnHost: d.HostPath, PathInContainer: d.ContainerPath, CgroupPermissions: d.Permissions,
		})
	}
	return out
}

func lowerCDI(names []string, f *facts) ([]container.DeviceRequest, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if !f.cdi {
		return nil, invalid("this Docker Engine has no CDI (\"cdi-spec-dirs\" and, before 28.3, \"features\": {\"cdi\": true} in daemon.json)")
	}
	return []container.DeviceRequest{{Driver: "cdi", DeviceIDs: names}}, nil
}

// lowerPorts names the ports as dockershim does, also where CNI maps them and Docker ignores this: an older shim that
// takes the pod back, and adoption, read them from here.
func lowerPorts(ports []engine.PortMapping) (nat.PortSet, nat.PortMap, error) {
	var exposed nat.PortSet
	var bindings nat.PortMap
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		port, err := nat.NewPort(strings.ToLower(p.Protocol), strconv.Itoa(int(p.ContainerPort)))
		if err != nil {
			return nil, nil, invalid("port %d/%.20s", p.ContainerPort, p.Protocol)
		}
		if exposed == nil {
			exposed, bindings = nat.PortSet{}, nat.PortMap{}
		}
		exposed[port] = struct{}{}
		bindings[port] = append(bindings[port], nat.PortBinding{HostIP: p.HostIP, HostPort: strconv.Itoa(int(p.HostPort))})
	}
	return exposed, bindings, nil
}

func groupStrings(groups []int64) []string {
	out := make([]string, 0, len(groups))
	for _, g := range groups {
		out = append(out, strconv.FormatInt(g, 10))
	}
	return out
}

// orEmpty keeps JSON's null away, which Docker takes for "the defaults".
func orEmpty(paths []string) []string {
	if paths == nil {
		return []string{}
	}
	return paths
}
