package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/podfiles"
	"crishim/internal/failpoint"
	"crishim/internal/rmtree"
)

// CreatePod makes the pause container. Its image is made present first.
func (e *Engine) CreatePod(ctx context.Context, spec *engine.PodSpec) (engine.PodID, error) {
	s, err := e.session()
	if err != nil {
		return "", fmt.Errorf("create pod: %w", err)
	}
	if err := checkAppArmor(&spec.Security.AppArmor, s.facts, appArmorProfiles); err != nil {
		return "", err
	}
	if _, err := podfiles.Texts(spec); err != nil {
		return "", err
	}
	body, err := lowerPod(spec, s.facts)
	if err != nil {
		return "", err
	}
	image, err := e.images.EnsurePause(ctx, spec.PauseImage)
	if err != nil {
		return "", fmt.Errorf("pause image %s: %w", spec.PauseImage, err)
	}
	if image != "" {
		body.Config.Image = string(image)
	}
	id, err := e.create(ctx, body)
	return engine.PodID(id), err
}

// create makes a container. Where its name is taken by one of ours (of a crash, or of a caller who left) that is removed
// first: the caller has no record of it.
func (e *Engine) create(ctx context.Context, body *createBody) (string, error) {
	return ask(ctx, e, "create "+body.Name, slowLimit, func(ctx context.Context, s *session) (string, error) {
		for attempt := 0; ; attempt++ {
			e.own.begin(body.Name)
			made, err := s.cli.ContainerCreate(ctx, body.Config, body.HostConfig, nil, nil, body.Name)
			id := e.own.end(body.Name)
			if err == nil {
				e.cgroups.made(made.ID, body.HostConfig.CgroupParent, s.facts)
				return made.ID, nil
			}
			if id != "" {
				s.watch.lookAt(id, classify(body.Config.Labels, body.Name))
			}
			if unanswered(err) {
				return "", errors.Join(err, e.removeUnanswered(ctx, s, body))
			}
			if !errdefs.IsConflict(err) || attempt == 5 {
				return "", err
			}
			if cerr := e.removeLeftover(ctx, s, body); cerr != nil {
				return "", fmt.Errorf("%w: %w", err, cerr)
			}
		}
	})
}

// removeUnanswered removes what a request to create made whose answer never came: its id is not known. Where the engine is
// away it does nothing; the comparison when it is back finds the container.
func (e *Engine) removeUnanswered(ctx context.Context, s *session, body *createBody) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickLimit)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	if s.life.Err() != nil {
		return nil
	}
	return failpoint.Around("undo.unanswered create", func() error { return e.removeLeftover(ctx, s, body) })
}

// removeLeftover removes the container that has the name. It never goes by what an error says.
func (e *Engine) removeLeftover(ctx context.Context, s *session, body *createBody) error {
	old, err := s.cli.ContainerInspect(ctx, body.Name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !complete(&old) || classify(old.Config.Labels, old.Name) == foreign ||
		old.Config.Labels[labelType] != body.Config.Labels[labelType] || strings.TrimPrefix(old.Name, "/") != body.Name {
		return fmt.Errorf("the name %s is taken by container %s, which is not ours: %w", body.Name, old.ID, errdefs.ErrAlreadyExists)
	}
	if recorded := s.recorded != nil && s.recorded(old.ID); recorded && old.State.Running && old.Config.Labels[labelSandbox] != body.Config.Labels[labelSandbox] {
		// The name has the pod's uid, the caller's records the sandbox: it is no leftover but another sandbox's, and was not to end.
		return fmt.Errorf("container %s of the same name and attempt runs in pod sandbox %s: %w", old.ID, old.Config.Labels[labelSandbox], errdefs.ErrAlreadyExists)
	}
	e.cgroups.made(old.ID, old.HostConfig.CgroupParent, s.facts)
	if err := e.removeWhole(ctx, s, old.ID); err != nil {
		return err
	}
	e.cgroups.forget(old.ID)
	return errors.Join(e.pins.release(engine.PodID(old.ID)), e.podFiles.remove(engine.PodID(old.ID)), e.dropMounts(ctx, old.Config.Labels[labelMounts]))
}

// removeWhole is removeContainer with whatever dockerd has forgotten of the container.
func (e *Engine) removeWhole(ctx context.Context, s *session, id string) error {
	if err := e.killForgotten(ctx, id, s.facts); err != nil {
		return err
	}
	cgroup, _ := e.cgroups.of(id) // before its event makes it forgotten
	if err := removeContainer(ctx, s, id); err != nil {
		return err
	}
	removeForgottenCgroups(cgroup, id, s.facts)
	removeForgottenRoot(id, s.facts)
	return nil
}

// removeContainer removes by force and returns when it is gone, also where another removal is under way. What dockerd
// cannot remove of its writable layer is removed here.
func removeContainer(ctx context.Context, s *session, id string) error {
	emptied := false
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		err := s.cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case errdefs.IsInternal(err) && !emptied:
			layer := writableLayer(ctx, s, id)
			if layer == "" {
				return err
			}
			// dockerd holds a descriptor for each folder on its way down: a tree deeper than its limit of them never goes, and
			// costs others theirs meanwhile (docs/reliability.md S13).
			if rerr := rmtree.Remove(ctx, layer); rerr != nil {
				return errors.Join(err, rerr)
			}
			emptied = true
			continue
		case !errdefs.IsConflict(err):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// StartPod starts the pause container, pins its network namespace and writes what its containers read in /etc.
func (e *Engine) StartPod(ctx context.Context, id engine.PodID, spec *engine.PodSpec) (engine.PodStatus, error) {
	if !validID(string(id)) {
		return engine.PodStatus{}, notFound("pod", string(id))
	}
	return ask(ctx, e, "start pod "+string(id), slowLimit, func(ctx context.Context, s *session) (engine.PodStatus, error) {
		own := ownFiles(spec, s.facts)
		if own {
			if err := e.podFiles.write(id, spec, s.facts, ""); err != nil {
				return engine.PodStatus{}, err
			}
		}
		in, err := e.startPause(ctx, s, string(id))
		if err != nil {
			return engine.PodStatus{}, err
		}
		status := e.podStatus(in, s.facts)
		seen := status
		s.watch.saw(observed{id: in.ID, kind: sandbox, state: in.State.Status, pod: &seen})
		hostNetwork := spec.Namespaces.Network == engine.NamespaceNode
		switch {
		case status.State != engine.PodReady:
			return status, fmt.Errorf("the pause container ended at once (exit code %d, %s): %w", in.State.ExitCode, in.State.Error, errdefs.ErrFailedPrecondition)
		case status.NetNSPath == "" && !hostNetwork:
			// Again, for the reason.
			if status.NetNSPath, err = e.pins.pin(id, status.PID, status.StartTicks); err != nil {
				return status, err
			}
		}
		switch {
		case own:
			return status, e.podFiles.relabel(id, in.MountLabel)
		case spec.DNS == nil && s.facts.bridge:
			return status, nil
		}
		return status, writeResolvConf(in, s.facts, spec)
	})
}

// startPause starts the pause container and inspects it, in place of the watcher.
func (e *Engine) startPause(ctx context.Context, s *session, id string) (_ *container.InspectResponse, err error) {
	defer e.starts.take(ctx)()
	e.own.begin(id)
	defer func() {
		if e.own.end(id); err != nil {
			s.watch.lookAt(id, sandbox)
		}
	}()
	if err := s.cli.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return nil, err
	}
	return inspect(ctx, s, id, sandbox)
}

// inspect returns a container of the kind; others do not exist for us.
func inspect(ctx context.Context, s *session, id string, kind object) (*container.InspectResponse, error) {
	if !validID(id) {
		return nil, notFound("container", id)
	}
	in, err := s.cli.ContainerInspect(ctx, id)
	if err != nil {
		return nil, err
	}
	if !complete(&in) {
		return nil, fmt.Errorf("the engine's answer about %s is incomplete: %w", id, errdefs.ErrDataLoss)
	}
	if s.kindOf(in.ID, in.Config.Labels, in.Name) != kind {
		return nil, notFound("container", id)
	}
	return &in, nil
}

// StopPod kills the pause process, which has nothing to finish, and lets go of volumes that containers which were never started would have
// had: the kubelet unmounts them next, and collects those containers only later. The network namespace stays pinned.
func (e *Engine) StopPod(ctx context.Context, id engine.PodID) error {
	if !validID(string(id)) {
		return nil
	}
	return e.do(ctx, "stop pod "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		if err := e.killAndWait(ctx, s, string(id)); err != nil {
			return err
		}
		if err := e.mounts.unmountOf(id); err != nil {
			klog.ErrorS(err, "Cannot unmount what was prepared for a container", "pod", id)
		}
		return e.killForgotten(ctx, string(id), s.facts)
	})
}

// ReleaseNetNS drops the pin.
func (e *Engine) ReleaseNetNS(_ context.Context, id engine.PodID) error { return e.pins.release(id) }

// RemovePod removes the pause container, the pin and the pod's files.
func (e *Engine) RemovePod(ctx context.Context, id engine.PodID) error {
	if !validID(string(id)) {
		return nil
	}
	err := e.do(ctx, "remove pod "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		return e.removeWhole(ctx, s, string(id))
	})
	if err != nil {
		return err
	}
	e.cgroups.forget(string(id))
	e.processes.forget(string(id))
	return errors.Join(e.pins.release(id), e.podFiles.remove(id), e.payMounts(ctx))
}

// UpdatePod does nothing: the pod's cgroup is the kubelet's.
func (e *Engine) UpdatePod(context.Context, engine.PodID, *engine.Resources, *engine.Resources) error {
	return nil
}

// PodStatus asks the engine.
func (e *Engine) PodStatus(ctx context.Context, id engine.PodID) (engine.PodStatus, error) {
	return ask(ctx, e, "inspect pod "+string(id), quickLimit, func(ctx context.Context, s *session) (engine.PodStatus, error) {
		in, err := inspect(ctx, s, string(id), sandbox)
		if err != nil {
			return engine.PodStatus{}, err
		}
		return e.podStatus(in, s.facts), nil
	})
}
