package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/docker/logpump"
	"crishim/internal/failpoint"
	"crishim/internal/hostpath"
	"crishim/internal/process"
	"crishim/internal/sysfs"
	"crishim/internal/undo"
)

// CreateContainer makes a container after everything that Docker would notice at the start only has been checked.
func (e *Engine) CreateContainer(ctx context.Context, spec *engine.ContainerSpec) (status engine.ContainerStatus, err error) {
	s, err := e.session()
	if err != nil {
		return status, fmt.Errorf("create container: %w", err)
	}
	if err := checkAppArmor(&spec.Security.AppArmor, s.facts, appArmorProfiles); err != nil {
		return status, err
	}
	if err := e.checkCDI(ctx, spec, s.facts); err != nil {
		return status, err
	}
	imageLabels, err := e.checkImage(ctx, spec)
	if err != nil {
		return status, err
	}
	user, err := e.userOf(ctx, spec)
	if err != nil {
		return status, err
	}
	key := e.mounts.reserve()
	defer e.mounts.unreserve(key)
	body, err := lowerContainer(spec, user, e.mounts.path(key), s.facts)
	if err != nil {
		return status, err
	}
	if err := hideImageLabels(body.Config.Labels, imageLabels); err != nil {
		return status, err
	}
	files, err := e.podFilesOf(ctx, s, spec)
	if err != nil {
		return status, err
	}
	body.HostConfig.Mounts = append(body.HostConfig.Mounts, files...)
	if err := e.checkImagePaths(ctx, spec, s.facts); err != nil {
		return status, err
	}
	if err := makeMountSources(spec.Mounts); err != nil {
		return status, err
	}
	var back undo.Stack
	defer func() {
		if uerr := back.Run(ctx); uerr != nil {
			e.mounts.owed.Store(true)
			err = errors.Join(err, uerr)
		}
	}()
	if body.Config.Labels[labelMounts] == key {
		back.Push("prepared mounts", func(ctx context.Context) error { return e.dropMounts(ctx, key) })
		if err := e.prepareMounts(ctx, spec, key, s.facts); err != nil {
			return status, err
		}
	}
	id, err := e.create(ctx, body)
	if err != nil {
		return status, err
	}
	if body.Config.Labels[labelMounts] == key {
		e.mounts.belong(engine.ContainerID(id), preparedMounts{key, spec.Pod})
	}
	back.Push("container", func(ctx context.Context) error { return e.RemoveContainer(ctx, engine.ContainerID(id)) })
	status, mountLabel, err := e.justCreated(ctx, s, engine.ContainerID(id), spec, body)
	if err != nil {
		return status, err
	}
	if err := relabelMounts(spec, mountLabel, hostpath.SetLabel); err != nil {
		return status, err
	}
	back.Release()
	seen := status
	s.watch.saw(observed{id: id, kind: workload, state: container.StateCreated, container: &seen})
	return status, nil
}

// justCreated is the status of a container that was made a moment ago, with the SELinux label of its mounts where that is
// needed. All else follows from what was asked for and from the image, so Docker is asked only for the label, or where the
// image is not known.
func (e *Engine) justCreated(ctx context.Context, s *session, id engine.ContainerID, spec *engine.ContainerSpec, body *createBody) (engine.ContainerStatus, string, error) {
	image, err := e.Image(ctx, string(spec.Image.ID))
	if err == nil && validID(string(id)) && !slices.ContainsFunc(spec.Mounts, func(m engine.Mount) bool { return relabelled(&m) }) {
		signal := body.Config.StopSignal
		if signal == "" {
			signal = image.StopSignal
		}
		return engine.ContainerStatus{
			ID: id, Pod: spec.Pod, PodKey: spec.PodKey, Key: spec.Key, State: engine.ContainerCreated, CreatedAt: time.Now().UTC(),
			ImageID: image.ID, StopSignal: signalName(signal), Spec: spec,
		}, "", nil
	}
	in, err := e.inspect(ctx, string(id), workload)
	if err != nil {
		return engine.ContainerStatus{}, "", err
	}
	return e.containerStatus(in, s.facts), in.MountLabel, nil
}

func (e *Engine) inspect(ctx context.Context, id string, kind object) (*container.InspectResponse, error) {
	return ask(ctx, e, "inspect "+id, quickLimit, func(ctx context.Context, s *session) (*container.InspectResponse, error) {
		return inspect(ctx, s, id, kind)
	})
}

// StartContainer starts the log first, so that a short-lived container's output is there when its exit is seen.
func (e *Engine) StartContainer(ctx context.Context, id engine.ContainerID, spec *engine.ContainerSpec) (engine.ContainerStatus, error) {
	if !validID(string(id)) {
		return engine.ContainerStatus{}, notFound("container", string(id))
	}
	status, err := ask(ctx, e, "start container "+string(id), slowLimit, func(ctx context.Context, s *session) (engine.ContainerStatus, error) {
		if spec.LogPath != "" {
			err := failpoint.Around("log.start", func() error {
				return e.logs.Load().start(ctx, id, jsonPath(s.facts, id), spec.LogPath, spec.LogDirectory, spec.TTY)
			})
			if err != nil {
				return engine.ContainerStatus{}, fmt.Errorf("log %s: %w", spec.LogPath, err)
			}
		}
		e.allowSysfsWrites(spec)
		status, startErr, err := e.start(ctx, s, id)
		if err != nil {
			return engine.ContainerStatus{}, errors.Join(startErr, err)
		}
		if startErr != nil {
			status = startFailed(status, startErr)
			return status, errors.Join(startError(status, startErr), e.mounts.unmount(e.mounts.keyOf(id)))
		}
		if status.PID == 0 {
			return status, nil
		}
		files, err := s.facts.limitsByFile(status.CgroupPath, &spec.Resources, &engine.Resources{})
		if err == nil {
			err = writeCgroupFiles(files)
		}
		// What Docker gave it is the score of its creation, which an update before the start cannot change there.
		if score := max(spec.Resources.OOMScoreAdj, s.facts.oomScoreAdjMin); err == nil && score != status.Spec.Resources.OOMScoreAdj {
			err = s.facts.setScores(id, status.CgroupPath, score)
		}
		if err != nil && !process.Gone(status.PID, status.StartTicks) {
			// It runs without a limit that was asked for: it must not.
			return status, errors.Join(err, e.killAndWait(ctx, s, string(id)))
		}
		e.byFile.Store(id, spec.Resources)
		return status, nil
	})
	e.awaitLog(ctx, &status)
	return status, err
}

// allowSysfsWrites lets a privileged container write to /sys, as one of Docker's own can: the pause container, which is not
// privileged, has mounted the pod's sysfs read-only before.
func (e *Engine) allowSysfsWrites(spec *engine.ContainerSpec) {
	if !spec.Security.Privileged || spec.Namespaces.Network == engine.NamespaceNode {
		return
	}
	if path := e.pins.pinned(spec.Pod); path != "" {
		if err := sysfs.AllowWrites(path); err != nil {
			klog.ErrorS(err, "A privileged container cannot write to /sys", "pod", spec.Pod, "container", spec.Key.Name)
		}
	}
}

// start starts a container and looks at it, in place of the watcher unless it did not start or has ended already. startErr
// is dockerd's, err is why nothing is known of the container.
func (e *Engine) start(ctx context.Context, s *session, id engine.ContainerID) (status engine.ContainerStatus, startErr, err error) {
	told := false
	e.own.begin(string(id))
	defer func() {
		if e.own.end(string(id)); !told {
			s.watch.lookAt(string(id), workload)
		}
	}()
	startErr = s.cli.ContainerStart(ctx, string(id), container.StartOptions{})
	in, err := inspect(ctx, s, string(id), workload)
	if err != nil {
		return status, startErr, err
	}
	status = e.containerStatus(in, s.facts)
	if told = startErr == nil && in.State.Running; told {
		seen := status
		s.watch.saw(observed{id: in.ID, kind: workload, state: in.State.Status, container: &seen})
	}
	return status, startErr, nil
}

// startFailed is the status of a container whose process could not be made. dockerd leaves it "created"; its exit code is
// 126, 127 or 128 there.
func startFailed(status engine.ContainerStatus, err error) engine.ContainerStatus {
	if status.State == engine.ContainerCreated {
		status.State, status.Reason, status.ExitCode, status.Message = engine.ContainerExited, engine.ReasonStartError, exitUnknown, err.Error()
		status.StartedAt, status.FinishedAt = status.CreatedAt, status.CreatedAt
	}
	return status
}

// startError is of ErrFailedPrecondition unless the engine was not reached: dockerd calls a missing file of the image
// "not found" or "invalid parameter", which the caller would take for the container.
func startError(status engine.ContainerStatus, err error) error {
	if status.Reason == engine.ReasonStartError && (errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err)) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// StopContainer uses signals of its own, because dockerd's stop goes on to kill after its caller has left.
func (e *Engine) StopContainer(ctx context.Context, id engine.ContainerID, grace time.Duration) error {
	if !validID(string(id)) {
		return nil
	}
	stopped := false
	if grace > 0 {
		var err error
		if stopped, err = e.stopGently(ctx, id, grace); err != nil {
			return err
		}
	}
	return e.do(ctx, "kill container "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		if !stopped {
			if err := e.killAndWait(ctx, s, string(id)); err != nil {
				return err
			}
		}
		return e.killForgotten(ctx, string(id), s.facts)
	})
}

// stopGently sends the stop signal and waits for grace; stopped says whether the container has exited.
func (e *Engine) stopGently(ctx context.Context, id engine.ContainerID, grace time.Duration) (stopped bool, err error) {
	end := time.Now().Add(grace)
	in, err := e.inspect(ctx, string(id), workload)
	switch {
	case errdefs.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, err
	case !in.State.Running && !in.State.Paused:
		return true, nil
	}
	return ask(ctx, e, "stop container "+string(id), grace+quickLimit, func(ctx context.Context, s *session) (bool, error) {
		waiting, cancel := context.WithDeadline(ctx, end)
		defer cancel()
		exited, failed := s.cli.ContainerWait(waiting, string(id), container.WaitConditionNotRunning)
		err := e.stopSignal(ctx, s, in)
		if errdefs.IsNotFound(err) {
			return true, nil
		}
		if err != nil && !errdefs.IsConflict(err) { // a conflict: it is not running any more, which the wait tells
			return false, err
		}
		select {
		case <-exited:
			return true, nil
		case err := <-failed:
			if waiting.Err() != nil && ctx.Err() == nil {
				return false, nil
			}
			if errdefs.IsNotFound(err) {
				return true, nil
			}
			return false, err
		}
	})
}

// stopSignal sends the container's, and SIGTERM, as Docker's own stop does, where that is none: an image may name anything.
func (e *Engine) stopSignal(ctx context.Context, s *session, in *container.InspectResponse) error {
	const fallback = "SIGTERM"
	name := signalName(in.Config.StopSignal)
	err := e.sendSignal(ctx, s, in, name)
	if name == fallback || !errdefs.IsInvalidArgument(err) && !errdefs.IsInternal(err) {
		return err
	}
	klog.InfoS("The container's stop signal cannot be sent; sending SIGTERM", "id", in.ID, "signal", in.Config.StopSignal, "err", err)
	return e.sendSignal(ctx, s, in, fallback)
}

// sendSignal has Docker do it where it must: it thaws a paused container, and knows the signals without a name of their own.
func (e *Engine) sendSignal(ctx context.Context, s *session, in *container.InspectResponse, name string) error {
	if number := unix.SignalNum(name); number != 0 && !in.State.Paused {
		if sent, err := e.signal(in.ID, number); sent || err != nil {
			return err
		}
	}
	return s.cli.ContainerKill(ctx, in.ID, name)
}

// signalledLimit is how long a process may take to end by our own signal before Docker is asked to kill it: it thaws what
// was paused.
const signalledLimit = time.Second

// killAndWait returns when the container does not run.
func (e *Engine) killAndWait(ctx context.Context, s *session, id string) error {
	if first, known := e.processes.of(id); known {
		e.oom.outlived(id, first)
	}
	sent, err := e.signal(id, unix.SIGKILL)
	if err != nil {
		return err
	}
	if sent {
		waiting, cancel := context.WithTimeout(ctx, signalledLimit)
		defer cancel()
		err := waitForExit(waiting, s, id)
		if err == nil || ctx.Err() != nil || waiting.Err() == nil {
			return err
		}
	}
	err = s.cli.ContainerKill(ctx, id, "KILL")
	if errdefs.IsNotFound(err) {
		return nil
	}
	if errdefs.IsInternal(err) {
		// Mostly that it has not ended within Docker's own 12 seconds. It was sent SIGKILL by then, and ends when the kernel is through
		// with it.
		klog.ErrorS(err, "Docker has not seen a container end by SIGKILL; its end is waited for", "id", id)
	} else if err != nil && !errdefs.IsConflict(err) {
		return err
	}
	return waitForExit(ctx, s, id)
}

// waitForExit returns when the container does not run, as Docker says.
func waitForExit(ctx context.Context, s *session, id string) error {
	exited, failed := s.cli.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case <-exited:
		return nil
	case err := <-failed:
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
}

// RemoveContainer completes the log before Docker's file goes away with the container. A log that is a link to that file
// goes too.
func (e *Engine) RemoveContainer(ctx context.Context, id engine.ContainerID) error {
	if !validID(string(id)) {
		return nil
	}
	var link, linkRoot string
	err := e.do(ctx, "remove container "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		l := e.logs.Load()
		if !l.complete(id) {
			if err := e.endLog(ctx, s, id); err != nil {
				return err
			}
		}
		if l.links { // perhaps since a moment ago
			if in, err := inspect(ctx, s, string(id), workload); err == nil {
				link, linkRoot = l.linkOf(in)
			}
		}
		return e.removeWhole(ctx, s, string(id))
	})
	if err != nil {
		return err
	}
	e.cgroups.forget(string(id))
	var unlinked error
	if link != "" {
		unlinked = logpump.Unlink(link, linkRoot)
	}
	return errors.Join(unlinked, e.forget(ctx, id), e.dropMountsOf(ctx, id))
}

// endLog kills the container if it runs and completes its log.
func (e *Engine) endLog(ctx context.Context, s *session, id engine.ContainerID) error {
	if err := s.cli.ContainerKill(ctx, string(id), "KILL"); err == nil {
		if err := e.killAndWait(ctx, s, string(id)); err != nil {
			return err
		}
	}
	// A log that cannot be written must not keep a container from going (docs/reliability.md R19).
	finishing, cancel := context.WithTimeout(ctx, finishLimit)
	defer cancel()
	if err := failpoint.Around("log.finish", func() error { return e.completeLog(finishing, s, id) }); err != nil {
		klog.ErrorS(err, "A container is removed before its log is complete", "id", id)
	}
	return nil
}

// completeLog completes the log of a container that is about to be removed, and begins it where that could not be done before:
// what Docker has of it goes with the container.
func (e *Engine) completeLog(ctx context.Context, s *session, id engine.ContainerID) error {
	l := e.logs.Load()
	in, err := inspect(ctx, s, string(id), workload)
	switch {
	case err != nil && !errdefs.IsNotFound(err):
		return errors.Join(err, l.pumps.Finish(ctx, string(id))) // whether that is all of it is not known
	case err == nil && l.writes(in) && !parseTime(in.State.StartedAt).IsZero():
		if err := l.begin(ctx, in); err != nil {
			return err
		}
	}
	return l.finish(ctx, id)
}

// forget drops what is remembered of a removed container.
func (e *Engine) forget(ctx context.Context, id engine.ContainerID) error {
	e.byFile.Delete(id)
	e.processes.forget(string(id))
	return failpoint.Around("log.forget", func() error { return e.logs.Load().forget(ctx, id) })
}

// awaitLog returns when the log of a container that an answer is about to show exited is complete, or after finishLimit, as the
// watcher's looks do: whoever sees the exit reads the log for the last time.
func (e *Engine) awaitLog(ctx context.Context, status *engine.ContainerStatus) {
	if status.State != engine.ContainerExited {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, finishLimit)
	defer cancel()
	if err := e.logs.Load().pumps.Finish(ctx, string(status.ID)); err != nil && ctx.Err() == nil {
		klog.ErrorS(err, "A container has exited before its log is complete", "id", status.ID)
	}
}

// ContainerStatus asks the engine.
func (e *Engine) ContainerStatus(ctx context.Context, id engine.ContainerID) (engine.ContainerStatus, error) {
	status, err := ask(ctx, e, "inspect container "+string(id), quickLimit, func(ctx context.Context, s *session) (engine.ContainerStatus, error) {
		in, err := inspect(ctx, s, string(id), workload)
		if err != nil {
			return engine.ContainerStatus{}, err
		}
		return e.containerStatus(in, s.facts), nil
	})
	e.awaitLog(ctx, &status)
	return status, err
}

// UpdateContainer sets limits through Docker and, where its API has no word for them, in the cgroup files. Where the
// second part fails the first is taken back.
func (e *Engine) UpdateContainer(ctx context.Context, id engine.ContainerID, r *engine.Resources) error {
	return e.do(ctx, "update container "+string(id), slowLimit, func(ctx context.Context, s *session) error {
		in, err := inspect(ctx, s, string(id), workload)
		if err != nil {
			return err
		}
		if containerStatus(in).State == engine.ContainerExited {
			return errEnded(id)
		}
		pid, path := 0, ""
		if in.State.Running {
			pid = in.State.Pid
			if path = s.facts.cgroupOf(pid, in.ID); path == "" && e.ended(id, pid) {
				return errEnded(id)
			}
		}
		change, err := lowerUpdate(r, &in.HostConfig.Resources, path, s.facts)
		if err != nil {
			return err
		}
		if err := fitsUsage(r, path, s.facts); err != nil {
			return err
		}
		if _, err := s.cli.ContainerUpdate(ctx, string(id), container.UpdateConfig{Resources: change}); err != nil {
			if !s.facts.cgroupV2 { // dockerd passes on what the kernel says, as an error of its own
				err = errors.Join(exceeded(r, path, s.facts, "memory.usage_in_bytes"), err)
			}
			return err
		}
		if pid == 0 {
			return nil
		}
		if err := e.updateByFile(id, path, r, in, s.facts); err != nil {
			if e.ended(id, pid) {
				return errEnded(id)
			}
			old := resourcesOf(in.HostConfig)
			back, lerr := lowerUpdate(&old, &change, path, s.facts)
			if lerr == nil {
				undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickLimit)
				defer cancel()
				defer context.AfterFunc(s.life, cancel)()
				_, lerr = s.cli.ContainerUpdate(undo, string(id), container.UpdateConfig{Resources: back})
			}
			return errors.Join(err, lerr)
		}
		return nil
	})
}

func errEnded(id engine.ContainerID) error {
	return fmt.Errorf("container %s has ended, its limits cannot be changed: %w", id, errdefs.ErrFailedPrecondition)
}

// ended says whether the first process of a container is known to have ended, of which Docker may hear a moment later.
func (e *Engine) ended(id engine.ContainerID, pid int) bool {
	first, known := e.processes.of(string(id))
	return known && first.pid == pid && process.Gone(pid, first.startTicks)
}

// updateByFile writes unified and huge page limits, and oom_score_adj of every process.
func (e *Engine) updateByFile(id engine.ContainerID, path string, r *engine.Resources, in *container.InspectResponse, f *facts) error {
	var previous engine.Resources
	if known, ok := e.byFile.Load(id); ok {
		previous = known.(engine.Resources)
	}
	files, err := f.limitsByFile(path, r, &previous)
	if err != nil {
		return err
	}
	if err := writeCgroupFiles(files); err != nil {
		return err
	}
	e.byFile.Store(id, *r)
	score := max(r.OOMScoreAdj, f.oomScoreAdjMin)
	// What the container has is its first process's: Docker goes on naming the score of its creation.
	if now, err := os.ReadFile(procPath(in.State.Pid, "oom_score_adj")); err == nil && strings.TrimSpace(string(now)) == strconv.FormatInt(score, 10) {
		return nil
	}
	if isRoot(path) && r.OOMScoreAdj == int64(in.HostConfig.OomScoreAdj) {
		return nil
	}
	return f.setScores(id, path, score)
}

// setScores gives the score to every process in the container's cgroup.
func (f *facts) setScores(id engine.ContainerID, path string, score int64) error {
	if isRoot(path) {
		return fmt.Errorf("set oom_score_adj of container %s: %w", id, errNoCgroup)
	}
	pids, err := f.cgroupProcesses(path)
	if err != nil {
		return fmt.Errorf("oom_score_adj of container %s: %w", id, err)
	}
	for _, pid := range pids {
		if err := f.setOOMScoreAdj(pid, string(id), strconv.FormatInt(score, 10)); err != nil {
			return fmt.Errorf("oom_score_adj of container %s: %w", id, err)
		}
	}
	return nil
}

// lowerUpdate says "no limit" in the ways that Docker's update takes: it keeps what is 0 or "". What the container has none of, by
// had, is kept so: a cpuset would bind it to what is online now, and shares are another weight than none on cgroup v2.
func lowerUpdate(r *engine.Resources, had *container.Resources, path string, f *facts) (container.Resources, error) {
	out, err := lowerResources(r, f)
	if err != nil {
		return container.Resources{}, err
	}
	out.MemorySwappiness = nil
	if out.Memory == 0 {
		out.Memory, out.MemorySwap = noMemoryLimit, noMemoryLimit
		if r.MemorySwap < 0 {
			out.MemorySwap = -1 // on cgroup v2 as much as memory would be no swap
		}
	}
	if out.CPUQuota == 0 {
		out.CPUQuota = -1
	}
	if out.CPUPeriod == 0 {
		out.CPUPeriod = 100000
	}
	if out.CPUShares == 0 && had.CPUShares != 0 {
		out.CPUShares = 1024
	}
	if out.CpusetCpus == "" && had.CpusetCpus != "" {
		out.CpusetCpus = allOf("cpus", path, f)
	}
	if out.CpusetMems == "" && had.CpusetMems != "" {
		out.CpusetMems = allOf("mems", path, f)
	}
	return out, nil
}

// allOf are the CPUs or memory nodes that a container in the cgroup may have at most: its parent's, or the host's.
func allOf(what, path string, f *facts) string {
	var candidates []string
	if path != "" {
		parent := f.cgroupDir(filepath.Dir(path), "cpuset")
		if f.cgroupV2 {
			candidates = append(candidates, filepath.Join(parent, "cpuset."+what+".effective"))
		} else {
			candidates = append(candidates, filepath.Join(parent, "cpuset.effective_"+what), filepath.Join(parent, "cpuset."+what))
		}
	}
	if what == "cpus" {
		candidates = append(candidates, "/sys/devices/system/cpu/online")
	} else {
		candidates = append(candidates, "/sys/devices/system/node/online")
	}
	for _, file := range candidates {
		if data, err := os.ReadFile(file); err == nil {
			if set := strings.TrimSpace(string(data)); set != "" {
				return set
			}
		}
	}
	return ""
}

// fitsUsage refuses a memory limit below what is in use: cgroup v2 would kill for it, where v1 refuses by itself.
func fitsUsage(r *engine.Resources, path string, f *facts) error {
	if !f.cgroupV2 {
		return nil
	}
	return exceeded(r, path, f, "memory.current")
}

// exceeded says that more than the memory limit is in use, as file has it.
func exceeded(r *engine.Resources, path string, f *facts, file string) error {
	limit := engine.MemoryMax(r.MemoryLimit, r.Unified)
	if path == "" || limit <= 0 {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(f.cgroupDir(path, "memory"), file))
	if err != nil {
		return nil
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err == nil && used > limit {
		return fmt.Errorf("memory limit %d is below the %d bytes in use: %w", limit, used, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// CheckpointContainer is not offered: Docker writes a folder inside its data root, in its own layout, and only with
// "experimental" on.
func (e *Engine) CheckpointContainer(context.Context, engine.ContainerID, string) error {
	return fmt.Errorf("checkpoints on a Docker Engine are not supported, use the native engine: %w", errdefs.ErrNotImplemented)
}
