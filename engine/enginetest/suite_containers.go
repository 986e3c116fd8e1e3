package enginetest

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"crishim/engine"
	"crishim/internal/process"

	"github.com/containerd/errdefs"
)

var containerTests = map[string]func(*suite){
	"a container is made, started, stopped and removed": func(s *suite) {
		spec := s.containerSpec(s.Commands.Run)
		st := s.createContainer(spec)
		id := st.ID
		if st.Pod != spec.Pod || st.PodKey != spec.PodKey || st.Key != spec.Key || st.CreatedAt.IsZero() || !st.StartedAt.IsZero() || st.PID != 0 {
			s.Errorf("created: %+v", st)
		}
		st, err := s.Engine.StartContainer(s.Context(), id, spec)
		s.ok(err, "start")
		if st.State != engine.ContainerRunning || st.StartedAt.IsZero() || st.ImageID != s.image.ID || st.StopSignal == "" {
			s.Errorf("started: %+v", st)
		}
		if s.RealProcesses && !process.Alive(st.PID, st.StartTicks) {
			s.Errorf("process %d is not there", st.PID)
		}
		s.settle(id)
		s.within(0, slack, "the stop", func() { s.ok(s.Engine.StopContainer(s.Context(), id, 30*time.Second), "stop") })
		st = s.status(id)
		if st.State != engine.ContainerExited || st.ExitCode != 0 || st.Reason != engine.ReasonCompleted || st.PID != 0 || st.FinishedAt.Before(st.StartedAt) {
			s.Errorf("stopped: %+v", st)
		}
		s.ok(s.Engine.RemoveContainer(s.Context(), id), "remove")
		_, err = s.Engine.ContainerStatus(s.Context(), id)
		s.class(err, errdefs.IsNotFound, "status of a removed container")
		if !exists(spec.LogPath) {
			s.Error("its log went with it")
		}
	},
	"exit codes and reasons are the process's": func(s *suite) {
		pod, podSpec := s.runPod()
		for code, reason := range map[int]string{0: engine.ReasonCompleted, 1: engine.ReasonError, 42: engine.ReasonError, 255: engine.ReasonError} {
			id := s.runContainer(s.containerSpecIn(pod, podSpec, s.Commands.Exit(code)))
			st := s.exited(id)
			if int(st.ExitCode) != code || st.Reason != reason || st.FinishedAt.IsZero() || st.StartedAt.IsZero() {
				s.Errorf("exit %d: %+v", code, st)
			}
		}
	},
	"HOSTNAME is the pod's name, and in the host's network the host's": func(s *suite) {
		if s.Commands.Hostname == nil {
			s.Skip("the engine's programs have no environment")
		}
		host, err := os.Hostname()
		s.ok(err, "look up the host's name")
		for _, network := range []engine.NamespaceMode{engine.NamespacePod, engine.NamespaceNode} {
			pod := s.podSpec()
			pod.Namespaces.Network = network
			want := pod.Hostname
			if network == engine.NamespaceNode {
				pod.Hostname, want = "", host // as the translator says it
			}
			id := s.createPod(pod)
			_, err := s.Engine.StartPod(s.Context(), id, pod)
			s.ok(err, "start a pod")
			spec := s.containerSpecIn(id, pod, s.Commands.Hostname)
			s.exited(s.runContainer(spec))
			s.eventually("the name is logged", func() bool { return len(s.log(spec.LogPath)) > 0 })
			if got := string(s.log(spec.LogPath)[0].Content); got != "HOSTNAME="+want {
				s.Errorf("in network %s it is %s, want %s", network, got, want)
			}
		}
	},
	"a program that does not exist is a start error": func(s *suite) {
		spec := s.containerSpec(s.Commands.Missing)
		st := s.createContainer(spec)
		got, err := s.Engine.StartContainer(s.Context(), st.ID, spec)
		if err == nil {
			s.Error("it started")
		}
		for what, st := range map[string]engine.ContainerStatus{"returned": got, "asked": s.status(st.ID)} {
			if st.State != engine.ContainerExited || st.ExitCode != 127 && st.ExitCode != 126 && st.ExitCode != 128 || st.Reason != engine.ReasonStartError {
				s.Errorf("%s: %+v", what, st)
			}
		}
	},
	"who ignores the stop signal is killed after the grace": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Stubborn))
		s.settle(id)
		s.within(time.Second, time.Second+slack, "the stop", func() { s.ok(s.Engine.StopContainer(s.Context(), id, time.Second), "stop") })
		if st := s.status(id); st.State != engine.ContainerExited || st.ExitCode != 137 {
			s.Errorf("%+v", st)
		}
	},
	"grace 0 kills at once": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		s.within(0, slack, "the stop", func() { s.ok(s.Engine.StopContainer(s.Context(), id, 0), "stop") })
		if st := s.status(id); st.State != engine.ContainerExited || st.ExitCode != 137 {
			s.Errorf("%+v", st)
		}
	},
	"a context that ends during the grace kills nothing": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Stubborn))
		s.settle(id)
		ctx, cancel := context.WithTimeout(s.Context(), 300*time.Millisecond)
		defer cancel()
		s.within(0, slack, "the stop", func() {
			s.class(s.Engine.StopContainer(ctx, id, time.Hour), isCanceled, "stop")
		})
		if st := s.status(id); st.State != engine.ContainerRunning {
			s.Errorf("%+v", st)
		}
		// Another stop with less patience does not wait for the first one.
		var wg sync.WaitGroup
		long, cancelLong := context.WithCancel(s.Context())
		wg.Go(func() { _ = s.Engine.StopContainer(long, id, time.Hour) })
		s.within(0, slack, "the stop with grace 0 beside one of an hour", func() { s.ok(s.Engine.StopContainer(s.Context(), id, 0), "stop") })
		cancelLong()
		wg.Wait()
	},
	"what ends a container may be repeated, or come too early": func(s *suite) {
		pod, podSpec := s.runPod()
		created := s.createContainer(s.containerSpecIn(pod, podSpec, s.Commands.Run)).ID
		ended := s.runContainer(s.containerSpecIn(pod, podSpec, s.Commands.Exit(3)))
		s.exited(ended)
		for _, id := range []engine.ContainerID{created, ended, absentContainer} {
			for range 2 {
				s.ok(s.Engine.StopContainer(s.Context(), id, time.Second), "stop")
			}
		}
		if st := s.status(ended); st.ExitCode != 3 {
			s.Errorf("a stop changed the exit: %+v", st)
		}
		for _, id := range []engine.ContainerID{created, ended, absentContainer} {
			for range 2 {
				s.ok(s.Engine.RemoveContainer(s.Context(), id), "remove")
			}
		}
	},
	"a running container is removed by force": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Stubborn))
		pid, ticks := s.status(id).PID, s.status(id).StartTicks
		s.ok(s.Engine.RemoveContainer(s.Context(), id), "remove")
		_, err := s.Engine.ContainerStatus(s.Context(), id)
		s.class(err, errdefs.IsNotFound, "status")
		if s.RealProcesses && process.Alive(pid, ticks) {
			s.Errorf("process %d lives on", pid)
		}
	},
	"what a crash left of the same key gives way": func(s *suite) {
		spec := s.containerSpec(s.Commands.Run)
		old := s.runContainer(spec)
		st := s.createContainer(spec)
		if st.ID != old {
			_, err := s.Engine.ContainerStatus(s.Context(), old)
			s.class(err, errdefs.IsNotFound, "status of the left-over")
		}
		if st := s.status(st.ID); st.State != engine.ContainerCreated {
			s.Errorf("%+v", st)
		}
	},
	"absent things are not found": func(s *suite) {
		spec := s.containerSpec(s.Commands.Run)
		_, err := s.Engine.ContainerStatus(s.Context(), absentContainer)
		s.class(err, errdefs.IsNotFound, "status")
		_, err = s.Engine.StartContainer(s.Context(), absentContainer, spec)
		s.class(err, errdefs.IsNotFound, "start")
		s.class(s.Engine.UpdateContainer(s.Context(), absentContainer, &engine.Resources{CPUShares: 2}), errdefs.IsNotFound, "update")
		_, err = s.Engine.Exec(s.Context(), absentContainer, &engine.ExecSpec{Command: s.Commands.Exit(0)})
		s.class(err, errdefs.IsNotFound, "exec")
		s.class(s.Engine.Attach(s.Context(), absentContainer, &engine.Streams{}), errdefs.IsNotFound, "attach")
		spec.Image.ID = absentImage
		_, err = s.Engine.CreateContainer(s.Context(), spec)
		s.class(err, errdefs.IsNotFound, "create with an absent image")
	},
	"resources are set and taken away again": func(s *suite) {
		if s.Resources == nil {
			s.Skip("the fixture cannot read resources")
		}
		spec := s.containerSpec(s.Commands.Run)
		spec.Resources = engine.Resources{CPUShares: 256, MemoryLimit: 64 << 20}
		id := s.runContainer(spec)
		for _, want := range []engine.Resources{
			{CPUShares: 512, CPUPeriod: 100_000, CPUQuota: 50_000, MemoryLimit: 128 << 20},
			{CPUShares: 128, MemoryLimit: 64 << 20},
			{CPUShares: 128},
		} {
			s.ok(s.Engine.UpdateContainer(s.Context(), id, &want), "update")
			got := s.Fixture.Resources(s.T, id)
			if got.CPUShares != want.CPUShares || got.CPUQuota != want.CPUQuota || got.MemoryLimit != want.MemoryLimit {
				s.Errorf("got %+v, want %+v", got, want)
			}
		}
	},
	"the resources of an exited container are not changed": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Exit(0)))
		s.exited(id)
		s.class(s.Engine.UpdateContainer(s.Context(), id, &engine.Resources{CPUShares: 512}), errdefs.IsFailedPrecondition, "update")
	},
	"many containers live beside each other": func(s *suite) {
		pod, podSpec := s.runPod()
		specs := make([]*engine.ContainerSpec, 6)
		for i := range specs {
			specs[i] = s.containerSpecIn(pod, podSpec, s.Commands.Exit(10+i))
		}
		var wg sync.WaitGroup
		ids := make([]engine.ContainerID, len(specs))
		errs := make([]error, len(specs))
		for i, spec := range specs {
			wg.Go(func() {
				st, err := s.Engine.CreateContainer(s.Context(), spec)
				if err == nil {
					_, err = s.Engine.StartContainer(s.Context(), st.ID, spec)
				}
				ids[i], errs[i] = st.ID, err
			})
		}
		wg.Wait()
		for i, id := range ids {
			s.ok(errs[i], "create and start")
			if st := s.exited(id); int(st.ExitCode) != 10+i {
				s.Errorf("%+v", st)
			}
			s.ok(s.Engine.RemoveContainer(s.Context(), id), "remove")
		}
	},
	"a context that has ended makes nothing": func(s *suite) {
		ctx, cancel := context.WithCancel(s.Context())
		cancel()
		spec := s.containerSpec(s.Commands.Run)
		st, err := s.Engine.CreateContainer(ctx, spec)
		s.class(err, isCanceled, "create")
		if err == nil {
			s.ok(s.Engine.RemoveContainer(s.Context(), st.ID), "remove")
		}
		id := s.createContainer(spec).ID
		_, err = s.Engine.StartContainer(ctx, id, spec)
		s.class(err, isCanceled, "start")
	},
	"a checkpoint is made or refused as not implemented": func(s *suite) {
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		location := filepath.Join(s.TempDir(), "checkpoint.tar")
		err := s.Engine.CheckpointContainer(s.Context(), id, location)
		// What makes a handler's containers may have no checkpoints where the engine's own has.
		if s.Engine.Info().Features.Checkpoint && (s.Handler == "" || !errdefs.IsNotImplemented(err)) {
			s.ok(err, "checkpoint")
			if !exists(location) {
				s.Error("no archive")
			}
			return
		}
		s.class(err, errdefs.IsNotImplemented, "checkpoint")
	},
}

// settle waits until the container's command can be signalled: a shell that was just started has set no trap yet. An exec
// comes back after the main process has had its time.
func (s *suite) settle(id engine.ContainerID) {
	s.Helper()
	if !s.RealProcesses {
		return
	}
	code, err := s.Engine.Exec(s.Context(), id, &engine.ExecSpec{Command: s.Commands.Exit(0)})
	if err != nil || code != 0 {
		s.Fatalf("exec in a container that runs: %d, %v", code, err)
	}
	time.Sleep(200 * time.Millisecond)
}
