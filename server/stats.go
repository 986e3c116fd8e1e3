package server

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/state"
	"crishim/stats"
	"crishim/translator"
)

// ContainerStats reads one container's statistics.
func (s *Server) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.store.FindContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.collector.ContainerStats(s.target(&c))
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", c.ID, err)
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats reads the running containers'; one that ends meanwhile is left out.
func (s *Server) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	containers := s.containerAttributes.of(s.store.Containers()) // before they are listed: see encoded
	items, err := eachContainerStats(s, req.GetFilter(), func(st *runtimeapi.ContainerStats) ([]byte, error) {
		if err := encodeAttributes(containers, st); err != nil {
			return nil, err
		}
		return listItem(st)
	})
	if err != nil {
		return nil, err
	}
	reply := &runtimeapi.ListContainerStatsResponse{}
	setItems(reply, slices.Concat(items...))
	return reply, nil
}

// encodeAttributes takes a container's attributes for those that were encoded before.
func encodeAttributes(kept *encodedAttributes[state.ContainerView], st *runtimeapi.ContainerStats) error {
	attributes, err := kept.encoded(st.Attributes)
	if err != nil {
		return err
	}
	st.Attributes = nil
	st.ProtoReflect().SetUnknown(attributes)
	return nil
}

// StreamContainerStats sends the same list in parts (KEP-5825).
func (s *Server) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	all, err := eachContainerStats(s, req.GetFilter(), asIs)
	if err != nil {
		return err
	}
	return inParts(all, func(part []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: part})
	})
}

// eachContainerStats has the statistics of each running container used, several at a time: a list that is encoded item by item,
// where encoding it as a whole would wait for the last.
func eachContainerStats[T any](s *Server, filter *runtimeapi.ContainerStatsFilter, use func(*runtimeapi.ContainerStats) (T, error)) ([]T, error) {
	containers, err := s.confirmedContainers()
	if err != nil {
		return nil, err
	}
	want := translator.ContainerStatsFilter(filter)
	return gather(containers, func(c *state.ContainerView) (T, error) {
		var none T
		if c.State != engine.ContainerRunning || !translator.ContainerMatches(want, new(containerView(c))) {
			return none, errdefs.ErrNotFound
		}
		st, err := s.collector.ContainerStats(s.target(c))
		if err != nil {
			return none, fmt.Errorf("statistics of container %s: %w", c.ID, err)
		}
		return use(st)
	})
}

func asIs[T any](stats T) (T, error) { return stats, nil }

// PodSandboxStats reads one pod's statistics. An empty id, by which the kubelet asks whether there are any, is InvalidArgument and so not Unimplemented.
func (s *Server) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	pod, err := s.store.FindPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	shared := sharedParents(s.store.Pods())
	st, err := s.collector.PodSandboxStats(s.podTarget(&pod, pointers(s.store.ContainersOf(pod.ID)), shared))
	if err != nil {
		return nil, fmt.Errorf("statistics of pod sandbox %s: %w", pod.ID, err)
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats reads the ready pods'; one that ends meanwhile is left out.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	// Before they are listed: see encoded.
	pods, containers := s.podAttributes.of(s.store.Pods()), s.containerAttributes.of(s.store.Containers())
	items, err := eachPodStats(s, req.GetFilter(), func(st *runtimeapi.PodSandboxStats) ([]byte, error) {
		for _, c := range st.Linux.Containers {
			if err := encodeAttributes(containers, c); err != nil {
				return nil, err
			}
		}
		attributes, err := pods.encoded(st.Attributes)
		if err != nil {
			return nil, err
		}
		st.Attributes = nil
		st.ProtoReflect().SetUnknown(attributes)
		return listItem(st)
	})
	if err != nil {
		return nil, err
	}
	reply := &runtimeapi.ListPodSandboxStatsResponse{}
	setItems(reply, slices.Concat(items...))
	return reply, nil
}

// StreamPodSandboxStats sends the same list in parts (KEP-5825).
func (s *Server) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	all, err := eachPodStats(s, req.GetFilter(), asIs)
	if err != nil {
		return err
	}
	return inParts(all, func(part []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

// eachPodStats is eachContainerStats for ready pods.
func eachPodStats[T any](s *Server, filter *runtimeapi.PodSandboxStatsFilter, use func(*runtimeapi.PodSandboxStats) (T, error)) ([]T, error) {
	want := translator.PodStatsFilter(filter)
	return eachReadyPod(s, func(p *state.PodView, target stats.PodTarget) (T, error) {
		var none T
		if !translator.PodMatches(want, new(podView(p))) {
			return none, errdefs.ErrNotFound
		}
		st, err := s.collector.PodSandboxStats(target)
		if err != nil {
			return none, err
		}
		return use(st)
	})
}

// ListMetricDescriptors names the metrics that this host can give.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: s.collector.MetricDescriptors()}, nil
}

// ListPodSandboxMetrics reads the ready pods' metrics: what the kubelet's cAdvisor no longer has for Docker.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	all, err := s.listPodMetrics()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: all}, nil
}

// StreamPodSandboxMetrics sends the same list in parts (KEP-5825).
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	all, err := s.listPodMetrics()
	if err != nil {
		return err
	}
	return inParts(all, func(part []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

func (s *Server) listPodMetrics() ([]*runtimeapi.PodSandboxMetrics, error) {
	return eachReadyPod(s, func(_ *state.PodView, target stats.PodTarget) (*runtimeapi.PodSandboxMetrics, error) {
		return s.collector.PodMetrics(target)
	})
}

// eachReadyPod builds something for every ready pod, leaving out those for which build finds nothing.
func eachReadyPod[T any](s *Server, build func(p *state.PodView, target stats.PodTarget) (T, error)) ([]T, error) {
	pods, err := s.confirmedPods()
	if err != nil {
		return nil, err
	}
	byPod := map[engine.PodID][]*state.ContainerView{}
	for _, c := range pointers(s.store.Containers()) {
		byPod[c.PodID] = append(byPod[c.PodID], c)
	}
	shared := sharedParents(pods)
	return gather(pods, func(p *state.PodView) (T, error) {
		var none T
		if p.State != engine.PodReady {
			return none, errdefs.ErrNotFound
		}
		one, err := build(p, s.podTarget(p, byPod[p.ID], shared))
		if err != nil {
			return none, fmt.Errorf("statistics of pod sandbox %s: %w", p.ID, err)
		}
		return one, nil
	})
}

// gatherers are how many at a time: the kubelet waits for hundreds of pods, whose CPUs these are.
const gatherers = 4

// gather builds something of each item, in order and several at a time, leaving out those for which build finds nothing. A
// panic of build is the caller's, whose interceptor answers for it.
func gather[I, T any](items []I, build func(*I) (T, error)) ([]T, error) {
	built, errs := make([]T, len(items)), make([]error, len(items))
	var next atomic.Int64
	var panicked atomic.Pointer[string]
	var workers sync.WaitGroup
	for range min(gatherers, runtime.GOMAXPROCS(0), len(items)) {
		workers.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panicked.Store(new(fmt.Sprintf("%v\n%s", p, debug.Stack())))
				}
			}()
			for i := int(next.Add(1)) - 1; i < len(items); i = int(next.Add(1)) - 1 {
				built[i], errs[i] = build(&items[i])
			}
		})
	}
	workers.Wait()
	if p := panicked.Load(); p != nil {
		panic(*p)
	}
	all := built[:0]
	for i, err := range errs {
		switch {
		case err == nil:
			all = append(all, built[i])
		case !errdefs.IsNotFound(err):
			return nil, err
		}
	}
	return all, nil
}

func (s *Server) target(c *state.ContainerView) stats.Target {
	spec := &c.Spec
	image := spec.Image.UserSpecified
	if image == "" {
		image = spec.Image.Ref
	}
	return stats.Target{
		PodID: string(c.PodID), PodName: spec.PodKey.Name, Namespace: spec.PodKey.Namespace,
		ContainerID: string(c.ID), ContainerName: spec.Key.Name, Image: image, Attempt: spec.Key.Attempt,
		Labels: spec.Labels, Annotations: spec.Annotations,
		CgroupPath: c.Status.CgroupPath, PID: c.Status.PID, Mountpoint: s.mountpoint(c.Engine),
		Limits: c.Resources, StartedAt: c.Status.StartedAt,
	}
}

func (s *Server) mountpoint(engineName string) string {
	if e := s.engines[engineName]; e != nil {
		return e.Info().RootDir
	}
	return ""
}

// pointers spares the copies of what is large.
func pointers[V any](views []V) []*V {
	all := make([]*V, len(views))
	for i := range views {
		all[i] = &views[i]
	}
	return all
}

// sharedParents are the cgroup parents of more than one pod that runs, as with a kubelet without cgroupsPerQOS: what such a cgroup
// uses is no pod's. Sandboxes of the same pod have one parent too, of which at most one is ready for long.
func sharedParents(pods []state.PodView) map[string]bool {
	owner, shared := make(map[string]string, len(pods)), map[string]bool{}
	for i := range pods {
		parent, uid := podCgroup(&pods[i]), pods[i].Spec.Key.UID
		if pods[i].State != engine.PodReady || parent == "" {
			continue
		}
		if other, ok := owner[parent]; ok && other != uid {
			shared[parent] = true
		}
		owner[parent] = uid
	}
	return shared
}

// podCgroup is the cgroup that was asked for as the parent of the pod's, "" where none was. The spec has its name in several spellings.
func podCgroup(p *state.PodView) string {
	if p.Spec.CgroupParent == "" {
		return ""
	}
	return stats.ParentCgroup(p.Status.CgroupPath)
}

func (s *Server) podTarget(p *state.PodView, containers []*state.ContainerView, shared map[string]bool) stats.PodTarget {
	target := stats.PodTarget{
		PodID: string(p.ID), PodName: p.Spec.Key.Name, Namespace: p.Spec.Key.Namespace, UID: p.Spec.Key.UID, Attempt: p.Spec.Key.Attempt,
		Labels: p.Spec.Labels, Annotations: p.Spec.Annotations,
		PauseCgroup: p.Status.CgroupPath, PID: p.Status.PID,
		HostNetwork: p.Spec.Namespaces.Network == engine.NamespaceNode, StartedAt: p.CreatedAt,
	}
	if parent := podCgroup(p); !shared[parent] {
		target.CgroupPath = parent
	}
	for _, c := range containers {
		if c.State == engine.ContainerRunning {
			target.Containers = append(target.Containers, s.target(c))
		}
	}
	if target.PID == 0 && len(target.Containers) > 0 {
		target.PID = target.Containers[0].PID // no process but these is in the pod's network
	}
	return target
}
