package enginetest

import (
	"context"
	"os"

	"crishim/engine"
	"crishim/internal/process"

	"github.com/containerd/errdefs"
)

var podTests = map[string]func(*suite){
	"a pod is made, started, stopped, released and removed": func(s *suite) {
		spec := s.podSpec()
		id := s.createPod(spec)
		st, err := s.Engine.PodStatus(s.Context(), id)
		s.ok(err, "status")
		if st.ID != id || st.Key != spec.Key || st.State != engine.PodNotReady || st.CreatedAt.IsZero() || !st.StartedAt.IsZero() {
			s.Errorf("created: %+v", st)
		}
		st, err = s.Engine.StartPod(s.Context(), id, spec)
		s.ok(err, "start")
		if st.ID != id || st.State != engine.PodReady || st.NetNSPath == "" || st.StartedAt.IsZero() {
			s.Errorf("started: %+v", st)
		}
		netns := st.NetNSPath
		if s.RealProcesses && (st.PID != 0 && !process.Alive(st.PID, st.StartTicks) || !exists(netns)) {
			s.Errorf("process %d or namespace %s is not there", st.PID, netns)
		}
		s.ok(s.Engine.StopPod(s.Context(), id), "stop")
		after, err := s.Engine.PodStatus(s.Context(), id)
		s.ok(err, "status")
		if after.State != engine.PodNotReady || after.NetNSPath != netns || after.StartedAt.IsZero() {
			s.Errorf("stopped: %+v; the network namespace stays pinned for the detach", after)
		}
		if s.RealProcesses && (st.PID != 0 && process.Alive(st.PID, st.StartTicks) || !exists(netns)) {
			s.Errorf("stopped: process %d lives, or namespace %s is gone", st.PID, netns)
		}
		s.ok(s.Engine.ReleaseNetNS(s.Context(), id), "release")
		if exists(netns) {
			s.Errorf("%s is still there", netns)
		}
		s.ok(s.Engine.RemovePod(s.Context(), id), "remove")
		_, err = s.Engine.PodStatus(s.Context(), id)
		s.class(err, errdefs.IsNotFound, "status of a removed pod")
	},
	"a pod in the host's network has no network namespace": func(s *suite) {
		spec := s.podSpec()
		spec.Namespaces.Network = engine.NamespaceNode
		id := s.createPod(spec)
		st, err := s.Engine.StartPod(s.Context(), id, spec)
		s.ok(err, "start")
		if st.NetNSPath != "" || st.State != engine.PodReady {
			s.Errorf("%+v", st)
		}
	},
	"what ends a pod may be repeated, or come too early": func(s *suite) {
		for range 2 {
			id := s.createPod(s.podSpec())
			s.clearPod(id)
			s.clearPod(id)
		}
		id, _ := s.runPod()
		s.clearPod(id)
		s.clearPod(id)
		s.clearPod(absentPod)
	},
	"an absent pod is not found": func(s *suite) {
		_, err := s.Engine.PodStatus(s.Context(), absentPod)
		s.class(err, errdefs.IsNotFound, "status")
		_, err = s.Engine.StartPod(s.Context(), absentPod, s.podSpec())
		s.class(err, errdefs.IsNotFound, "start")
	},
	"what a crash left of the same key gives way": func(s *suite) {
		spec := s.podSpec()
		old := s.createPod(spec)
		_, err := s.Engine.StartPod(s.Context(), old, spec)
		s.ok(err, "start")
		id := s.createPod(spec)
		if id != old {
			_, err = s.Engine.PodStatus(s.Context(), old)
			s.class(err, errdefs.IsNotFound, "status of the left-over")
		}
		st, err := s.Engine.PodStatus(s.Context(), id)
		s.ok(err, "status")
		if st.State != engine.PodNotReady {
			s.Errorf("%+v", st)
		}
	},
	"a context that has ended makes nothing": func(s *suite) {
		ctx, cancel := context.WithCancel(s.Context())
		cancel()
		spec := s.podSpec()
		id, err := s.Engine.CreatePod(ctx, spec)
		s.class(err, isCanceled, "create")
		if err == nil {
			s.clearPod(id)
		}
		id = s.createPod(s.podSpec())
		_, err = s.Engine.StartPod(ctx, id, spec)
		s.class(err, isCanceled, "start")
	},
}

// Well-formed ids that no object has.
const (
	absentPod       engine.PodID       = "00000000000000000000000000000000000000000000000000000000000000a1"
	absentContainer engine.ContainerID = "00000000000000000000000000000000000000000000000000000000000000a2"
	absentImage     engine.ImageID     = "sha256:00000000000000000000000000000000000000000000000000000000000000a3"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
