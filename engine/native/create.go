package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/imageuser"
	"crishim/engine/native/checkpoint"
	"crishim/engine/native/host"
	"crishim/engine/native/ns"
	"crishim/engine/native/rootfs"
	"crishim/engine/native/spec"
	"crishim/engine/podfiles"
	"crishim/internal/failpoint"
	"crishim/internal/seal"
)

// CreateContainer implements engine.Containers: the root file system is mounted and the OCI spec decided; there is no
// process before StartContainer.
func (e *Engine) CreateContainer(ctx context.Context, s *engine.ContainerSpec) (_ engine.ContainerStatus, err error) {
	if err := e.check(ctx); err != nil {
		return engine.ContainerStatus{}, err
	}
	p, err := e.pod(s.Pod)
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	if e.monitorOf(s.Pod) == nil {
		return engine.ContainerStatus{}, fmt.Errorf("pod sandbox %s has ended, nothing can be made in it: %w", s.Pod, errdefs.ErrFailedPrecondition)
	}
	for _, old := range e.containersOf(s.Pod) {
		if old.Spec.Key != s.Key {
			continue
		}
		klog.InfoS("Removing a container that a crash left", "container", s.Key.Name, "id", old.ID)
		if err := e.RemoveContainer(ctx, old.ID); err != nil {
			return engine.ContainerStatus{}, fmt.Errorf("remove what a crash left of the container: %w", err)
		}
	}
	for _, image := range imagesOf(s) {
		if err := e.images.Ready(ctx, image); err != nil {
			return engine.ContainerStatus{}, diskError(err)
		}
	}
	e.cgroups.ExpectJoin() // the start mostly follows at once
	id := engine.ContainerID(newID())
	c := newContainer(containerRecord{
		header: header{Version: recordVersion, Boot: boot()}, ID: id, Spec: *s, CreatedAt: time.Now(), Cgroup: e.cgroups.Container(p.Cgroup, id),
	})
	// From here on the images are in use, as RemoveImage and a repair see it; a removal that came first is found by the look-up of the
	// layers, which waits for a repair.
	e.mu.Lock()
	e.containers[id] = c
	e.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		if undone := e.forget(context.WithoutCancel(ctx), c); undone != nil {
			err = errors.Join(err, undone)
			e.containerChanged(c) // what is left is listed, so that its removal is asked for
		}
	}()
	if err := e.saveContainer(c); err != nil {
		return engine.ContainerStatus{}, err
	}
	if err := e.unpackCheckpoint(ctx, c); err != nil {
		return engine.ContainerStatus{}, diskError(err)
	}
	var root rootfs.Rootfs
	if err := failpoint.Around("native.container.mount", func() (err error) { root, err = e.mountRoot(ctx, p, c); return err }); err != nil {
		return engine.ContainerStatus{}, diskError(err)
	}
	oci, err := e.ociSpec(ctx, p, c, root)
	if err != nil {
		return engine.ContainerStatus{}, diskError(err)
	}
	if s.Checkpoint != nil && s.Checkpoint.Exact {
		if err := checkpoint.CheckProcess(e.checkpointDir(id), oci); err != nil {
			return engine.ContainerStatus{}, err
		}
	}
	if err := e.adjust(ctx, p, c, oci); err != nil {
		return engine.ContainerStatus{}, err
	}
	if err := failpoint.Around("native.container.bundle", func() error { return e.writeBundle(id, oci) }); err != nil {
		return engine.ContainerStatus{}, diskError(err)
	}
	if err := e.saveContainer(c); err != nil {
		return engine.ContainerStatus{}, err
	}
	e.containerChanged(c)
	e.tellCreated(ctx, c)
	return e.ContainerStatus(ctx, id)
}

// forget takes a container back that could not be made.
func (e *Engine) forget(ctx context.Context, c *container) error {
	ctx, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	return e.RemoveContainer(ctx, c.ID)
}

// mountRoot stacks the image's layers under a writable one and looks up who the container runs as.
func (e *Engine) mountRoot(ctx context.Context, p *pod, c *container) (rootfs.Rootfs, error) {
	layers, err := e.images.LayerDirs(ctx, c.Spec.Image.ID)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	labels, err := e.labels(p, c)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	root, err := e.roots.Mount(ctx, c.ID, &rootfs.Layers{Dirs: layers, Idmap: e.idmap(p), Label: labels.Mount, Fill: e.fillRoot(ctx, c, layers)})
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	config, err := e.images.Config(ctx, c.Spec.Image.ID)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	user, err := imageuser.Resolve(&c.Spec.Security, config.Config.User, func() ([]byte, []byte, error) { return rootfs.UserFiles(root.Path) })
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	stop, _, err := spec.StopSignal(&c.Spec, config.Config.StopSignal)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.Upper, c.User, c.StopSignal = root.Upper, user, stop
	return root, nil
}

func (e *Engine) labels(p *pod, c *container) (host.Labels, error) {
	return host.ContainerLabels(p.Labels, c.Spec.Security.SELinux, c.Spec.Security.Privileged)
}

// mountsPasswd says that what is mounted at a path is, or may have, the container's /etc/passwd.
func mountsPasswd(path string) bool {
	return slices.Contains([]string{"/", "/etc", "/etc/passwd"}, filepath.Clean("/"+path))
}

func (e *Engine) idmap(p *pod) *rootfs.Idmap {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.Spec.Namespaces.User == nil {
		return nil
	}
	return &rootfs.Idmap{Namespace: p.Spec.Namespaces.User, Path: p.pins[ns.User]}
}

// ociSpec looks up everything that the OCI spec depends on, and builds it.
func (e *Engine) ociSpec(ctx context.Context, p *pod, c *container, root rootfs.Rootfs) (*specs.Spec, error) {
	s, err := e.namingItsCommand(c)
	if err != nil {
		return nil, err
	}
	config, err := e.images.Config(ctx, s.Image.ID)
	if err != nil {
		return nil, err
	}
	if err := e.host.CheckAppArmor(&s.Security.AppArmor); err != nil {
		return nil, err
	}
	in := &spec.Container{
		Spec: s, Image: config.Config, User: c.User, Rootfs: root.Path, Pins: e.specPins(p),
		CgroupsPath: c.Cgroup.CgroupsPath, OCIRuntime: p.Spec.Handler != "", Volumes: map[string]string{}, ImageVolumes: map[int]string{},
	}
	if in.Hostname, err = podfiles.Hostname(&p.Spec); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(s.Mounts, func(m engine.Mount) bool { return mountsPasswd(m.ContainerPath) }) {
		if in.Home, err = rootfs.Home(root.Path, c.User.UID); err != nil {
			return nil, err
		}
	}
	if in.Labels, err = e.labels(p, c); err != nil {
		return nil, err
	}
	if in.Devices, err = host.Devices(s.Devices); err != nil {
		return nil, err
	}
	if s.Security.Privileged {
		all, err := host.AllDevices()
		if err != nil {
			return nil, err
		}
		in.Devices = append(all, in.Devices...)
	}
	if err := rootfs.PrepareSources(s.Mounts, in.Labels.Mount); err != nil {
		return nil, err
	}
	for i, m := range s.Mounts {
		if m.Image == nil {
			continue
		}
		layers, err := e.images.LayerDirs(ctx, m.Image.ID)
		if err != nil {
			return nil, err
		}
		err = failpoint.Around("native.container.volume", func() error {
			in.ImageVolumes[i], err = e.roots.MountImage(ctx, c.ID, i, &rootfs.ImageVolume{
				Layers: rootfs.Layers{Dirs: layers, Idmap: e.idmap(p), Label: in.Labels.Mount}, SubPath: m.ImageSubPath, Options: m.Options,
			})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("mount image volume %s: %w", m.ContainerPath, err)
		}
	}
	volumes, err := spec.Volumes(s, &config.Config)
	if err != nil {
		return nil, err
	}
	for i, path := range volumes {
		err := failpoint.Around("native.container.imagevolume", func() (err error) {
			in.Volumes[path], err = e.roots.MakeVolume(ctx, c.ID, i, path, &rootfs.Layers{Idmap: e.idmap(p), Label: in.Labels.Mount})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(volumes) > 0 {
		e.mu.Lock()
		c.Disk = root.Disk()
		e.mu.Unlock()
	}
	in.Files = spec.Files{Hosts: p.Files.Hosts, Hostname: p.Files.Hostname, ResolvConf: p.Files.ResolvConf}
	if in.Shm = p.Files.Shm; s.Namespaces.IPC == engine.NamespaceNode {
		in.Shm = "/dev/shm"
	}
	if in.Pins.PID, err = e.pidPin(p, s, c.ID); err != nil {
		return nil, err
	}
	oci, warnings, err := spec.Build(e.host, in)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 {
		e.counts.clamped.Add(1)
		klog.V(2).InfoS("The container gets less than was asked for, as this host allows no more", "container", s.Key.Name, "id", c.ID, "warnings", warnings)
	}
	if err := e.cdi.Inject(oci, s.CDIDevices); err != nil {
		return nil, err
	}
	return oci, nil
}

// pidPin is the PID namespace to join: the pod's, another container's, or "" for one of its own (or the host's).
func (e *Engine) pidPin(p *pod, s *engine.ContainerSpec, id engine.ContainerID) (string, error) {
	switch s.Namespaces.PID {
	case engine.NamespacePod:
		e.mu.Lock()
		defer e.mu.Unlock()
		return p.pins[ns.PID], nil
	case engine.NamespaceTarget:
		target, _, err := e.running(s.Namespaces.PIDTarget)
		if err != nil {
			return "", fmt.Errorf("share the PID namespace: %w", err)
		}
		e.mu.Lock()
		pid, ticks := target.pid, target.ticks
		e.mu.Unlock()
		path := ""
		err = failpoint.Around("native.container.pin", func() error { path, err = e.pins.Pin(p.ID, string(id), ns.PID, pid, ticks); return err })
		return path, err
	}
	return "", nil
}

func (e *Engine) writeBundle(id engine.ContainerID, oci *specs.Spec) error {
	data, err := seal.Marshal(oci)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(e.bundle(id), 0o700); err != nil {
		return err
	}
	return replaceFile(e.bundle(id), bundleConfig, data)
}

// bundleConfig is OCI's name for a container's specification.
const bundleConfig = "config.json"

func (e *Engine) readBundle(id engine.ContainerID) (*specs.Spec, error) {
	data, err := e.readRawBundle(id)
	if err != nil {
		return nil, err
	}
	oci, err := decodeBundle(data)
	if err != nil {
		return nil, damagedBundle(id, err)
	}
	return oci, nil
}

func (e *Engine) readRawBundle(id engine.ContainerID) (json.RawMessage, error) {
	data, err := os.ReadFile(filepath.Join(e.bundle(id), bundleConfig))
	if err != nil {
		return nil, fmt.Errorf("read the container's OCI spec: %w", err)
	}
	if err := seal.Check(data); err != nil {
		return nil, damagedBundle(id, err)
	}
	return data, nil
}

func damagedBundle(id engine.ContainerID, err error) error {
	return fmt.Errorf("the OCI spec of container %s is damaged: %w: %w", id, err, errdefs.ErrDataLoss)
}

// decodeBundle reads a spec that Check has found whole. It has what each of ours has.
func decodeBundle(data []byte) (*specs.Spec, error) {
	oci := new(specs.Spec)
	if err := json.Unmarshal(data, oci); err != nil {
		return nil, err
	}
	if oci.Process == nil || oci.Linux == nil || oci.Linux.Resources == nil {
		return nil, errors.New("it has no process, or no limits")
	}
	return oci, nil
}
