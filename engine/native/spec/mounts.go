package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// mounts are those of every container, the pod's files, and CRI's. One of CRI's takes the place of a default one at the
// same path, and hides what is below it.
func (b *builder) mounts() error {
	asked := make([]specs.Mount, 0, len(b.c.Spec.Mounts))
	for i := range b.c.Spec.Mounts {
		m, err := b.lowerMount(i, &b.c.Spec.Mounts[i])
		if err != nil {
			return fmt.Errorf("mount %.200q: %w", b.c.Spec.Mounts[i].ContainerPath, err)
		}
		asked = append(asked, m)
	}
	hidden := func(m specs.Mount) bool {
		return slices.ContainsFunc(asked, func(a specs.Mount) bool { return within(m.Destination, a.Destination) })
	}
	defaults := slices.DeleteFunc(slices.Concat(b.defaultMounts(), b.podFiles(), b.volumes()), hidden)
	b.s.Mounts = append(defaults, asked...)
	// A mount must come before what is mounted into it; equal depths keep their order.
	slices.SortStableFunc(b.s.Mounts, func(x, y specs.Mount) int { return depth(x.Destination) - depth(y.Destination) })
	return nil
}

// maxVolumes is far above real images. Each is a folder and a mount, and an image's configuration has room for hundreds of
// thousands, which would keep the daemon busy for minutes and take gigabytes of its memory.
const maxVolumes = 1024

// Volumes are the clean paths of the image's volumes (VOLUME) that are made for a container: not those that a mount of CRI's,
// or one that every container has, takes the place of. ErrInvalidArgument for a path that cannot be one.
func Volumes(s *engine.ContainerSpec, image *imagespec.ImageConfig) ([]string, error) {
	var out []string
	if n := len(image.Volumes); n > maxVolumes {
		return nil, invalid("the image declares %d volumes, at most %d are made", n, maxVolumes)
	}
	for _, volume := range slices.Sorted(maps.Keys(image.Volumes)) {
		clean := path.Clean("/" + volume)
		switch {
		case clean == "/", strings.ContainsRune(clean, 0):
			return nil, invalid("the image declares the volume %.200q", volume)
		case slices.Contains(out, clean),
			slices.ContainsFunc(kernelPaths, func(dir string) bool { return within(clean, dir) }),
			slices.ContainsFunc(s.Mounts, func(m engine.Mount) bool { return clean == path.Clean(m.ContainerPath) }):
			continue
		}
		out = append(out, clean)
	}
	return out, nil
}

// kernelPaths have nothing of an image.
var kernelPaths = []string{"/proc", "/sys", "/dev"}

// volumes are mounted writable, whatever the root is.
func (b *builder) volumes() []specs.Mount {
	var out []specs.Mount
	for _, destination := range slices.Sorted(maps.Keys(b.c.Volumes)) {
		out = append(out, specs.Mount{Destination: destination, Type: "bind", Source: b.c.Volumes[destination], Options: []string{"rbind", "rprivate"}})
	}
	return out
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// defaultMounts follow the runtime spec's list of default file systems. What the kernel does not let be mounted from a
// user namespace that does not own the matching other namespace is bound from the host.
func (b *builder) defaultMounts() []specs.Mount {
	n, privileged := &b.c.Spec.Namespaces, b.c.Spec.Security.Privileged
	writable := "ro"
	if privileged {
		writable = "rw"
	}
	bind := func(dir string, options ...string) specs.Mount {
		return specs.Mount{Destination: dir, Type: "bind", Source: dir, Options: append([]string{"rbind", "rslave", "nosuid", "noexec", "nodev"}, options...)}
	}
	proc := specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
	if n.User != nil && n.PID == engine.NamespaceNode {
		proc = bind("/proc")
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", writable}}
	if n.User != nil && n.Network == engine.NamespaceNode {
		sys = bind("/sys", "rro")
	}
	mqueue := []specs.Mount{{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}}
	shm := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: b.c.Shm, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}}
	if n.IPC == engine.NamespaceNode {
		shm.Source = "/dev/shm"
		if n.User != nil {
			// Without the host's mount the queues work, and cannot be seen as files.
			mqueue = nil
			if b.h.Mqueue {
				mqueue = []specs.Mount{bind("/dev/mqueue")}
			}
		}
	}
	return append(mqueue, []specs.Mount{
		proc,
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: b.devptsOptions()},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", writable}},
		shm,
	}...)
}

// ttyGroup owns terminals; a user namespace may not map it.
const ttyGroup = 5

func (b *builder) devptsOptions() []string {
	options := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	user := b.c.Spec.Namespaces.User
	if user == nil || slices.ContainsFunc(user.GIDs, func(m engine.IDMapping) bool {
		return m.ContainerID <= ttyGroup && ttyGroup-m.ContainerID < m.Length
	}) {
		options = append(options, "gid=5")
	}
	return options
}

// podFiles are bound writable where the root is: programs edit /etc/hosts.
func (b *builder) podFiles() []specs.Mount {
	var out []specs.Mount
	for _, f := range []struct{ path, source string }{
		{"/etc/hosts", b.c.Files.Hosts}, {"/etc/hostname", b.c.Files.Hostname}, {"/etc/resolv.conf", b.c.Files.ResolvConf},
	} {
		if f.source == "" {
			continue
		}
		options := []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}
		if b.c.Spec.Security.ReadonlyRootfs {
			options = append(options, "ro")
		}
		out = append(out, specs.Mount{Destination: f.path, Type: "bind", Source: f.source, Options: options})
	}
	return out
}

// mountOptions are CRI's mount_options.
var mountOptions = []string{"noexec", "nodev", "nosuid"}

func checkMount(m *engine.Mount) error {
	switch {
	case !path.IsAbs(m.ContainerPath) || path.Clean(m.ContainerPath) == "/":
		return invalid("the container path is no absolute path below the root")
	case m.Image != nil && m.HostPath != "":
		return invalid("an image volume has no host path")
	case m.Image != nil && !m.Readonly:
		return invalid("an image volume must be read-only")
	case m.Image == nil && !path.IsAbs(m.HostPath):
		return invalid("host path %.200q is not absolute", m.HostPath)
	case strings.ContainsRune(m.HostPath+m.ContainerPath, 0):
		return invalid("the path has a NUL")
	case m.RecursiveReadonly && !m.Readonly:
		return invalid("recursive read-only without read-only")
	case m.RecursiveReadonly && m.Propagation != engine.PropagationPrivate && m.Propagation != "":
		return invalid("a recursive read-only mount must have private propagation")
	}
	for _, option := range m.Options {
		if !slices.Contains(mountOptions, option) {
			return invalid("mount option %.80q", option)
		}
	}
	return nil
}

// lowerMount binds. A mount that is not asked to be read-only stays what its source is: "rw" would make a read-only file
// system of the host writable.
func (b *builder) lowerMount(i int, m *engine.Mount) (specs.Mount, error) {
	if err := checkMount(m); err != nil {
		return specs.Mount{}, err
	}
	out := specs.Mount{Destination: path.Clean(m.ContainerPath), Type: "bind", Source: m.HostPath, Options: []string{"rbind"}}
	if m.Image != nil {
		if out.Source = b.c.ImageVolumes[i]; out.Source == "" {
			return out, invalid("the image volume is not mounted")
		}
	}
	switch m.Propagation {
	case engine.PropagationPrivate, "":
		out.Options = append(out.Options, "rprivate")
	case engine.PropagationHostToContainer:
		out.Options = append(out.Options, "rslave")
		b.rootPropagation("rslave")
	case engine.PropagationBidirectional:
		out.Options = append(out.Options, "rshared")
		b.rootPropagation("rshared")
	default:
		return out, invalid("mount propagation %q", m.Propagation)
	}
	switch {
	case m.RecursiveReadonly && !b.h.Kernel.RecursiveReadonly:
		return out, invalid("recursive read-only mounts need Linux 5.12")
	case m.RecursiveReadonly:
		out.Options = append(out.Options, "rro")
	case m.Readonly:
		out.Options = append(out.Options, "ro")
	}
	out.Options = append(out.Options, m.Options...)
	return out, b.idMap(m, &out)
}

// rootPropagation lets mounts pass the root as far as the widest of its mounts needs.
func (b *builder) rootPropagation(p string) {
	if b.s.Linux.RootfsPropagation != "rshared" {
		b.s.Linux.RootfsPropagation = p
	}
}

// idMap maps a volume's ids. The pod's own mapping, which is what the kubelet asks for, is taken from the pin of its user
// namespace. An image volume's layers are mapped already.
func (b *builder) idMap(m *engine.Mount, out *specs.Mount) error {
	if len(m.UIDMappings)+len(m.GIDMappings) == 0 || m.Image != nil {
		return nil
	}
	user := b.c.Spec.Namespaces.User
	switch {
	case user == nil:
		return invalid("an id-mapped mount needs a pod with a user namespace")
	case !b.h.Kernel.IDMappedMounts:
		return invalid("this host has no id-mapped mounts")
	case slices.Equal(m.UIDMappings, user.UIDs) && slices.Equal(m.GIDMappings, user.GIDs):
		out.Options = append(out.Options, "idmap")
	default:
		out.UIDMappings, out.GIDMappings = idMappings(m.UIDMappings), idMappings(m.GIDMappings)
	}
	return nil
}

func idMappings(in []engine.IDMapping) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(in))
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Length})
	}
	return out
}
