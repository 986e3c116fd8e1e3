package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/state"
)

// A pod's checkpoint is a folder with podCheckpointFile and the archives of its containers, of engine.CheckpointContainers.
const (
	podCheckpointFile    = "pod.json"
	podCheckpointVersion = 1
	maxPodCheckpoint     = 4 << 20
)

type podCheckpoint struct {
	Version int           `json:"version"`
	Engine  string        `json:"engine"`
	Handler string        `json:"handler,omitempty"`
	Pod     engine.PodKey `json:"pod"`
	Taken   time.Time     `json:"taken"`
	Members []podMember   `json:"containers"`
}

// podMember is a container; its archive's name is made here, and read back as a name of that form only.
type podMember struct {
	Name    string `json:"name"`
	Archive string `json:"archive"`
}

// CheckpointPod writes a checkpoint of containers of a pod, all of one moment, into an empty folder.
func (s *Server) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := s.checkpointsOn(); err != nil {
		return nil, err
	}
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	eng, err := s.engineOf(pod.Engine)
	if err != nil {
		return nil, err
	}
	checkpointer, err := s.checkpointer(ctx, eng)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(noOptions(req.GetOptions()), s.podTakes(pod.ID), emptyFolder(req.GetOutputPath())); err != nil {
		return nil, err
	}
	content := podCheckpoint{Version: podCheckpointVersion, Engine: eng.Name(), Handler: pod.Spec.Handler, Pod: pod.Spec.Key, Taken: time.Now()}
	locations := map[engine.ContainerID]string{}
	unlock, err := s.lockMembers(ctx, pod.ID, req.GetContainerIds(), func(c state.ContainerView) {
		archive := fmt.Sprintf("container-%d.tar", len(content.Members))
		content.Members = append(content.Members, podMember{c.Spec.Key.Name, archive})
		locations[c.ID] = filepath.Join(req.GetOutputPath(), archive)
	})
	defer unlock()
	if err != nil {
		return nil, err
	}
	if err := checkpointer.CheckpointContainers(ctx, locations); err != nil {
		return nil, fmt.Errorf("checkpoint pod sandbox %s: %w", pod.ID, err)
	}
	if err := writePodCheckpoint(req.GetOutputPath(), &content); err != nil {
		return nil, fmt.Errorf("checkpoint pod sandbox %s: %w", pod.ID, err)
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// lockMembers locks running containers of the pod and calls add with each. unlock is never nil.
func (s *Server) lockMembers(ctx context.Context, pod engine.PodID, ids []string, add func(state.ContainerView)) (unlock func(), err error) {
	var locked []func()
	unlock = func() {
		for _, u := range locked {
			u()
		}
	}
	if len(ids) == 0 {
		return unlock, fmt.Errorf("container_ids is empty: %w", errdefs.ErrInvalidArgument)
	}
	ids = slices.Sorted(slices.Values(ids)) // the same order in every call
	if len(slices.Compact(slices.Clone(ids))) != len(ids) {
		return unlock, fmt.Errorf("container_ids has duplicates: %w", errdefs.ErrInvalidArgument)
	}
	for _, id := range ids {
		c, free, err := s.lockContainer(ctx, id)
		if err != nil {
			return unlock, err
		}
		locked = append(locked, free)
		switch {
		case c.PodID != pod || string(c.ID) != id:
			return unlock, fmt.Errorf("container %s is not one of pod sandbox %s: %w", id, pod, errdefs.ErrInvalidArgument)
		case c.State != engine.ContainerRunning:
			return unlock, fmt.Errorf("container %s is %s, only a running one can be checkpointed: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
		}
		add(c)
	}
	return unlock, nil
}

func (s *Server) checkpointer(ctx context.Context, eng engine.Engine) (engine.Checkpointer, error) {
	if err := s.checkpointsOn(); err != nil {
		return nil, err
	}
	checkpointer, ok := eng.(engine.Checkpointer)
	if !ok {
		return nil, fmt.Errorf("engine %s cannot checkpoint a whole pod: %w", eng.Name(), errdefs.ErrNotImplemented)
	}
	if err := checkpointer.Checkpoints(ctx); err != nil {
		return nil, fmt.Errorf("engine %s has no checkpoints: %w", eng.Name(), err)
	}
	return checkpointer, nil
}

// noOptions: there are none that we know, and others are to be refused.
func noOptions(options map[string]string) error {
	if len(options) == 0 {
		return nil
	}
	return fmt.Errorf("options %q are not known: %w", slices.Sorted(maps.Keys(options)), errdefs.ErrInvalidArgument)
}

func emptyFolder(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("output_path %q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("output_path: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(entries) > 0 {
		return fmt.Errorf("output_path %s is not empty: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// writePodCheckpoint completes what is in dir, or empties it.
func writePodCheckpoint(dir string, content *podCheckpoint) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	data, err := json.Marshal(content)
	if err == nil {
		err = root.WriteFile(podCheckpointFile, data, 0o600)
	}
	if err != nil {
		for _, m := range content.Members {
			_ = root.Remove(m.Archive)
		}
		_ = root.Remove(podCheckpointFile)
	}
	return err
}

// RestorePod makes a pod and, in it, containers that go on with what was checkpointed as soon as they are started.
func (s *Server) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (_ *runtimeapi.RestorePodResponse, err error) {
	eng, handler, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if _, err := s.checkpointer(ctx, eng); err != nil {
		return nil, err
	}
	if err := noOptions(req.GetOptions()); err != nil {
		return nil, err
	}
	archives, err := readPodCheckpoint(req.GetCheckpointPath(), eng.Name(), handler.Runtime)
	if err != nil {
		return nil, fmt.Errorf("restore the pod from %s: %w", req.GetCheckpointPath(), err)
	}
	if err := sameContainers(archives, req.GetContainerConfigs()); err != nil {
		return nil, err
	}
	run := &runtimeapi.RunPodSandboxRequest{Config: req.GetConfig(), RuntimeHandler: req.GetRuntimeHandler()}
	spec, err := s.podSpec(eng, handler, run)
	if err != nil {
		return nil, err
	}
	if pod, ok := s.store.PodByKey(spec.Key); ok {
		return nil, fmt.Errorf("pod sandbox %s of %s/%s exists already as %s; remove it first: %w", spec.Key.Name, spec.Key.Namespace, spec.Key.Name, pod.ID, errdefs.ErrAlreadyExists)
	}
	made, err := s.RunPodSandbox(ctx, run)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTimeout)
		defer cancel()
		if _, rerr := s.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: made.PodSandboxId}); rerr != nil {
			klog.ErrorS(rerr, "Could not remove a pod sandbox that could not be restored", "id", made.PodSandboxId)
			err = fmt.Errorf("%w; and taking it back failed: %w", err, rerr)
		}
	}()
	resp := &runtimeapi.RestorePodResponse{PodSandboxId: made.PodSandboxId}
	for _, config := range req.GetContainerConfigs() {
		name := config.GetMetadata().GetName()
		c, err := s.makeContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: made.PodSandboxId, Config: config, SandboxConfig: req.GetConfig()},
			&engine.CheckpointRef{Path: filepath.Join(req.GetCheckpointPath(), archives[name]), Exact: true})
		if err != nil {
			return nil, fmt.Errorf("restore container %s: %w", name, err)
		}
		resp.RestoredContainers = append(resp.RestoredContainers, &runtimeapi.RestoredContainer{Name: name, ContainerId: c.ContainerId})
	}
	return resp, nil
}

// readPodCheckpoint says which archive is whose.
func readPodCheckpoint(dir, engineName, handler string) (archives map[string]string, err error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("checkpoint_path is not an absolute path: %w", errdefs.ErrInvalidArgument)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer func() { _ = root.Close() }()
	info, err := root.Lstat(podCheckpointFile)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxPodCheckpoint {
		return nil, fmt.Errorf("it has no %s that can be read: %w", podCheckpointFile, errors.Join(err, errdefs.ErrInvalidArgument))
	}
	data, err := root.ReadFile(podCheckpointFile)
	if err != nil {
		return nil, err
	}
	var content podCheckpoint
	if err := json.Unmarshal(data, &content); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", podCheckpointFile, err, errdefs.ErrInvalidArgument)
	}
	if content.Version != podCheckpointVersion || content.Engine != engineName || content.Handler != handler {
		return nil, fmt.Errorf("it is of version %d, engine %q and handler %q, not of %d, %q and %q: %w", content.Version, content.Engine, content.Handler,
			podCheckpointVersion, engineName, handler, errdefs.ErrFailedPrecondition)
	}
	archives = map[string]string{}
	for _, m := range content.Members {
		info, err := root.Lstat(m.Archive)
		if err != nil || filepath.Base(m.Archive) != m.Archive || !info.Mode().IsRegular() || archives[m.Name] != "" {
			return nil, fmt.Errorf("the archive %q of container %q cannot be used: %w", m.Archive, m.Name, errors.Join(err, errdefs.ErrInvalidArgument))
		}
		archives[m.Name] = m.Archive
	}
	return archives, nil
}

// sameContainers: each container of the checkpoint has one config, and the other way round.
func sameContainers(archives map[string]string, configs []*runtimeapi.ContainerConfig) error {
	named := map[string]bool{}
	for _, config := range configs {
		named[config.GetMetadata().GetName()] = true
	}
	if len(named) == len(configs) && maps.EqualFunc(archives, named, func(string, bool) bool { return true }) && len(named) > 0 {
		return nil
	}
	return fmt.Errorf("container_configs names %q, the checkpoint has %q: %w", slices.Sorted(maps.Keys(named)), slices.Sorted(maps.Keys(archives)), errdefs.ErrInvalidArgument)
}
