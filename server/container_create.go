package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/crilog"
	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/state"
	"crishim/translator"
)

// containerCreation identifies a creation before the container has an id.
type containerCreation struct {
	pod engine.PodID
	key engine.ContainerKey
}

// CreateContainer makes a container in a running pod. A repeated call with the same metadata joins the work in flight or
// gets the same id, as with RunPodSandbox.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return s.makeContainer(ctx, req, nil)
}

// makeContainer makes a container, whose processes are those of the checkpoint unless that is nil.
func (s *Server) makeContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest, checkpoint *engine.CheckpointRef) (*runtimeapi.CreateContainerResponse, error) {
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	eng, err := s.engineOf(pod.Engine)
	if err != nil {
		return nil, err
	}
	if err := s.podIsUsed(&pod); err != nil {
		return nil, err
	}
	if !pod.Recorded && listedPod(&pod) {
		// Its containers have its cgroup, among other things, of which a list knows nothing.
		if pod, err = s.lookAtPod(ctx, pod); err != nil {
			return nil, fmt.Errorf("look at pod sandbox %s: %w", pod.ID, err)
		}
	}
	if pod.Spec.LogDirectory == "" { // adopted: the engine does not know it
		pod.Spec.LogDirectory = req.GetSandboxConfig().GetLogDirectory()
	}
	if pod.Adopted || !pod.Recorded {
		// The engine does not know of every pod whether it may have privileged containers: Docker's of older versions do not say.
		// The kubelet does with each container. That opens nothing: whoever may ask for a container here is root on this node,
		// and may as well ask for a privileged pod. A record of our own stands against it all the same.
		pod.Spec.Security.Privileged = pod.Spec.Security.Privileged || req.GetSandboxConfig().GetLinux().GetSecurityContext().GetPrivileged()
	}
	spec, err := translator.Container(&pod.Spec, pod.ID, req.GetConfig(), s.opts.Translation)
	if err != nil {
		return nil, err
	}
	spec.LogDirectory = pod.Spec.LogDirectory
	info := eng.Info()
	if err := translator.CheckContainer(spec, info.FeaturesOf(pod.Spec.Handler)); err != nil {
		return nil, err
	}
	spec.Checkpoint = checkpoint
	if err := s.findCheckpoint(ctx, eng, spec); err != nil {
		return nil, err
	}
	if err := s.fetchImages(ctx, eng, spec); err != nil {
		return nil, err
	}
	creation := containerCreation{pod.ID, spec.Key}
	hash := translator.ContainerConfigHash(req.GetConfig())
	id, err := s.containerFlights.do(ctx, creation, hash, func(ctx context.Context, awaited func() bool) (engine.ContainerID, error) {
		if id, err := s.reuseContainer(ctx, creation, hash); id != "" || err != nil {
			return id, err
		}
		return s.createContainer(ctx, eng, spec, hash, awaited)
	})
	if err != nil {
		return nil, err
	}
	err = s.markContainerReturned(id)
	// The work may be older than this call, and than the end of the pod. The container goes with the pod.
	if ended := s.podTakes(pod.ID); ended != nil {
		return nil, fmt.Errorf("container %s cannot be used: %w", id, ended)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: string(id)}, nil
}

// reuseContainer is reusePod for containers: one that has been started or removed halfway is not handed out again.
func (s *Server) reuseContainer(ctx context.Context, creation containerCreation, hash string) (engine.ContainerID, error) {
	c, ok := s.store.ContainerByKey(creation.pod, creation.key)
	if !ok {
		return "", nil
	}
	fresh := c.Phase == state.PhaseCreated && c.State == engine.ContainerCreated
	switch {
	case fresh && c.ConfigHash == hash:
		return c.ID, nil
	case !c.Recorded && c.State == engine.ContainerCreated:
		// The engine made it although its answer was lost, or could not take it back, and never started it.
	case c.Returned && c.Phase != state.PhaseIntent:
		return "", fmt.Errorf("container %s, attempt %d, of pod sandbox %s exists already as %s, %s; remove it first: %w",
			creation.key.Name, creation.key.Attempt, creation.pod, c.ID, c.State, errdefs.ErrAlreadyExists)
	}
	klog.InfoS("Removing a half-made container whose id no caller got", "container", creation.key.Name, "pod", creation.pod, "id", c.ID, "phase", c.Phase)
	return "", s.removeContainer(ctx, c)
}

func (s *Server) createContainer(ctx context.Context, eng engine.Engine, spec *engine.ContainerSpec, hash string, awaited func() bool) (_ engine.ContainerID, err error) {
	if err := s.ready(eng.Name()); err != nil {
		return "", err
	}
	if err := s.podTakes(spec.Pod); err != nil {
		return "", fmt.Errorf("a container cannot be made: %w", err)
	}
	if err := s.checkTarget(spec); err != nil {
		return "", err
	}
	image, err := s.resolve(ctx, eng, spec)
	if err != nil {
		return "", err
	}
	record := state.Container{
		PodID: spec.Pod, Engine: eng.Name(), Spec: *spec, ConfigHash: hash, CreatedAt: time.Now(), Phase: state.PhaseIntent,
		ImageID: image, Resources: spec.Resources,
	}
	if err := s.store.PutContainer(record); err != nil {
		return "", fmt.Errorf("record the container: %w", err)
	}
	var status engine.ContainerStatus
	defer func() {
		if err != nil {
			err = s.takeBackContainer(ctx, eng, spec, status.ID, err)
		}
	}()
	if err := failpoint.Hit("CreateContainer.recorded"); err != nil {
		return "", err
	}
	// Once more: a removal of the pod that began before the record was there has not seen it.
	if err := s.podTakes(spec.Pod); err != nil {
		return "", fmt.Errorf("a container cannot be made: %w", err)
	}
	if status, err = eng.CreateContainer(ctx, spec); err != nil {
		return "", fmt.Errorf("create the container: %w", err)
	}
	if err := failpoint.Hit("CreateContainer.created"); err != nil {
		return "", err
	}
	err = s.store.UpdateContainerByKey(spec.Pod, spec.Key, func(c *state.Container) error {
		c.ID, c.Phase, c.Returned = status.ID, state.PhaseCreated, awaited()
		c.StopSignal, c.User = status.StopSignal, status.User
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("record the created container: %w", err)
	}
	s.store.ApplyContainer(status)
	if !awaited() {
		s.parkContainer(ctx, containerCreation{spec.Pod, spec.Key}, status.ID)
	}
	return status.ID, nil
}

// resolve fills in what the translation, which does no I/O, could not know: image ids, profiles, the log's folder. It
// returns the id under which callers are told of the image.
func (s *Server) resolve(ctx context.Context, eng engine.Engine, spec *engine.ContainerSpec) (engine.ImageID, error) {
	told, err := s.resolveImage(ctx, eng, &spec.Image)
	if err != nil {
		return "", err
	}
	for i := range spec.Mounts {
		ref := spec.Mounts[i].Image
		if ref == nil {
			continue
		}
		if _, err := s.resolveImage(ctx, eng, ref); err != nil {
			return "", fmt.Errorf("%w: image volume at %s: %w", errImageVolume, spec.Mounts[i].ContainerPath, err)
		}
	}
	if err := s.loadSeccomp(&spec.Security.Seccomp); err != nil {
		return "", err
	}
	if err := checkDevices(spec); err != nil {
		return "", err
	}
	return told, prepareLog(spec)
}

// prepareLog makes the folder of the log and looks at what has its name, so that a path that cannot be used fails here and
// not at the start.
func prepareLog(spec *engine.ContainerSpec) error {
	if spec.LogPath == "" {
		return nil
	}
	dir, name, err := crilog.MakeParent(spec.LogDirectory, spec.LogPath)
	if err != nil {
		return fmt.Errorf("log_path: %w", err)
	}
	defer func() { _ = dir.Close() }()
	file, err := crilog.OpenExisting(dir, name, os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("log_path: %w", err)
	}
	return file.Close()
}

// checkDevices: a device that is not there would fail at the start only.
func checkDevices(spec *engine.ContainerSpec) error {
	for i, d := range spec.Devices {
		info, err := os.Stat(d.HostPath)
		if err != nil {
			return fmt.Errorf("devices[%d].host_path: %w: %w", i, err, errdefs.ErrInvalidArgument)
		}
		if info.Mode()&os.ModeDevice == 0 && !info.IsDir() {
			return fmt.Errorf("devices[%d].host_path: %s is neither a device nor a folder of devices: %w", i, d.HostPath, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// checkTarget checks a TARGET pid namespace: a running container of the same pod. CRI wants it at create and at start.
func (s *Server) checkTarget(spec *engine.ContainerSpec) error {
	if spec.Namespaces.PID != engine.NamespaceTarget {
		return nil
	}
	target, ok := s.store.Container(spec.Namespaces.PIDTarget)
	if !ok || target.PodID != spec.Pod || target.State != engine.ContainerRunning {
		return fmt.Errorf("namespace_options.target_id %q is no running container of pod sandbox %s: %w", spec.Namespaces.PIDTarget, spec.Pod, errdefs.ErrInvalidArgument)
	}
	return nil
}

// takeBackContainer removes a container whose making failed; where that fails too its record stays for RemoveContainer.
func (s *Server) takeBackContainer(ctx context.Context, eng engine.Engine, spec *engine.ContainerSpec, id engine.ContainerID, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if id == "" {
		var err error
		if id, err = s.store.DeleteContainerIntent(spec.Pod, spec.Key); err != nil {
			// It has no id by which anybody could remove it.
			s.takeBackContainerLater(ctx, containerCreation{spec.Pod, spec.Key}, retryTakeBack)
			return errors.Join(cause, err)
		}
		if id == "" {
			return cause
		}
		// The engine has told of a container although CreateContainer failed.
	}
	undoErr := failpoint.Around("undo.created container", func() error { return eng.RemoveContainer(ctx, id) })
	if undoErr == nil {
		s.store.Bury(string(id))
		err := s.store.DeleteContainerByKey(spec.Pod, spec.Key)
		if err != nil {
			s.takeBackContainerLater(ctx, containerCreation{spec.Pod, spec.Key}, retryTakeBack)
		}
		return errors.Join(cause, err)
	}
	err := fmt.Errorf("%w; and taking it back failed, RemoveContainer will finish it: %w", cause, undoErr)
	return errors.Join(err, s.store.UpdateContainerByKey(spec.Pod, spec.Key, func(c *state.Container) error {
		c.ID, c.Phase, c.Leftover = id, state.PhaseRemoving, err.Error()
		return nil
	}))
}

func (s *Server) markContainerReturned(id engine.ContainerID) error {
	c, ok := s.store.Container(id)
	if !ok {
		return removedMeanwhile("container", string(id))
	}
	if err := s.containerIsUsed(&c); !errdefs.IsNotFound(err) {
		return err
	}
	return removedMeanwhile("container", string(id))
}

// containerIsUsed is podIsUsed for a container.
func (s *Server) containerIsUsed(c *state.ContainerView) error {
	if c.Returned || !c.Recorded {
		return nil
	}
	id := c.ID
	return s.store.UpdateContainer(id, func(c *state.Container) error {
		if c.Phase.Ending() {
			return fmt.Errorf("container %s is being removed, as nobody had asked for it: %w", id, errdefs.ErrUnavailable)
		}
		c.Returned = true
		return nil
	})
}

// parkContainer takes back a container that nobody comes for.
func (s *Server) parkContainer(ctx context.Context, creation containerCreation, id engine.ContainerID) {
	s.later(ctx, parkedFor, func(ctx context.Context) { s.takeBackParkedContainer(ctx, creation, id) })
}

// takeBackParkedContainer is takeBackParkedPod for a container.
func (s *Server) takeBackParkedContainer(ctx context.Context, creation containerCreation, id engine.ContainerID) {
	if err := s.containerFlights.wait(ctx, creation); err != nil {
		return
	}
	c, ok := s.store.ContainerByKey(creation.pod, creation.key)
	if !ok {
		return
	}
	err := s.store.UpdateContainerByKey(creation.pod, creation.key, func(c *state.Container) error {
		if c.ID != id || c.Returned {
			return errUsed
		}
		c.Phase = state.PhaseRemoving
		return nil
	})
	if errors.Is(err, errUsed) {
		return
	}
	if err != nil {
		klog.ErrorS(err, "Could not record that an abandoned container is removed; removing it all the same", "id", id)
	}
	klog.InfoS("Removing a container whose caller never came back", "container", creation.key.Name, "id", id)
	if err := s.removeContainer(ctx, c); err != nil {
		klog.ErrorS(err, "Could not remove an abandoned container; RemoveContainer will", "id", id)
	}
}
