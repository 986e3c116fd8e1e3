package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// modelClient does random calls and judges their answers.
type modelClient struct {
	w      *world
	random *rand.Rand
}

// step does one random call. Every tenth caller leaves after a few milliseconds.
func (c *modelClient) step() (what string, err error) {
	ctx := context.Background()
	if c.random.IntN(10) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(1+c.random.IntN(15))*time.Millisecond)
		defer cancel()
	}
	s := c.random.IntN(len(c.w.slots))
	pod := c.pickPod(s)
	if pod == nil {
		return "RunPodSandbox", c.runPod(ctx, s)
	}
	container := c.pickContainer(pod)
	n := c.random.IntN(100)
	switch {
	case n < 6:
		return "RunPodSandbox", c.runPod(ctx, s)
	case n < 10:
		return "StopPodSandbox", c.stopPod(ctx, pod)
	case n < 14:
		return "RemovePodSandbox", c.removePod(ctx, pod)
	case n < 20:
		return "PodSandboxStatus", c.podStatus(ctx, pod)
	case n < 25:
		return "ListPodSandbox", c.listPods(ctx)
	case n < 30:
		return "ListContainers", c.listContainers(ctx)
	case n < 42 || container == nil:
		return "CreateContainer", c.create(ctx, s, pod)
	case n < 58:
		return "StartContainer", c.start(ctx, container)
	case n < 64:
		return "StopContainer", c.stop(ctx, container)
	case n < 70:
		return "RemoveContainer", c.remove(ctx, container)
	case n < 82:
		return "ContainerStatus", c.containerStatus(ctx, container)
	case n < 90:
		return "ExecSync", c.onRunning(ctx, container, "ExecSync", func() error {
			_, err := c.w.f.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container.id, Cmd: []string{"true"}})
			return err
		})
	case n < 95:
		return "ReopenContainerLog", c.onRunning(ctx, container, "ReopenContainerLog", func() error {
			_, err := c.w.f.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: container.id})
			return err
		})
	}
	return "UpdateContainerResources", c.update(ctx, container)
}

// pickPod takes the newest pod of the key mostly, an old one to see that it stays gone.
func (c *modelClient) pickPod(s int) *model {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	pods := c.w.slots[s].pods
	if len(pods) == 0 {
		return nil
	}
	return pods[max(0, len(pods)-1-c.random.IntN(10)/9)]
}

func (c *modelClient) pickContainer(pod *model) *model {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	for _, m := range pod.containers { // any one: the order of a map is random
		if m.known < removed || c.random.IntN(20) == 0 {
			return m
		}
	}
	return nil
}

func (c *modelClient) runPod(ctx context.Context, s int) error {
	w := c.w
	w.mu.Lock()
	name := w.slots[s].name
	ended, gone := map[string]bool{}, map[string]bool{} // the pods that this call must not return, or not meet
	for _, p := range w.slots[s].pods {
		ended[p.id], gone[p.id] = p.known > running, p.known == removed
	}
	w.mu.Unlock()
	reply, err := w.f.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: w.f.podConfig(name)})
	if w.excused(ctx, err) {
		return nil
	}
	if status.Code(err) == codes.AlreadyExists {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, p := range w.slots[s].pods {
			if p.possible() > running && !gone[p.id] {
				return nil
			}
		}
		return fmt.Errorf("RunPodSandbox of %s, whose pods nobody stops: %w", name, err)
	}
	if status.Code(err) == codes.Unavailable && w.removing(s) { // the one that it was to return
		return nil
	}
	if err != nil {
		return fmt.Errorf("RunPodSandbox of %s: %w", name, err)
	}
	if ended[reply.PodSandboxId] {
		return fmt.Errorf("RunPodSandbox of %s returned %s, which had been stopped before", name, reply.PodSandboxId)
	}
	m, isNew := w.pod(s, reply.PodSandboxId)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.slots[s].pods {
		if isNew && p != m && p.possible() < removed {
			return fmt.Errorf("RunPodSandbox of %s made %s beside %s, which nobody removes", name, m.id, p.id)
		}
	}
	return nil
}

// removing says whether a removal of one of the key's pods has begun.
func (w *world) removing(s int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.slots[s].pods, func(p *model) bool { return p.removing })
}

func (c *modelClient) stopPod(ctx context.Context, pod *model) error {
	pod.begin(func() { pod.stopping = true })
	_, err := c.w.f.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.id})
	if err == nil {
		pod.reached(exited)
		pod.begin(func() { pod.stopped = true })
	}
	return c.mustSucceed(ctx, "StopPodSandbox", pod, err)
}

func (c *modelClient) removePod(ctx context.Context, pod *model) error {
	pod.begin(func() { pod.stopping, pod.removing = true, true })
	_, err := c.w.f.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.id})
	if err == nil {
		pod.reached(removed)
	}
	return c.mustSucceed(ctx, "RemovePodSandbox", pod, err)
}

// mustSucceed: stopping and removing are idempotent, so nothing else that goes on is an excuse.
func (c *modelClient) mustSucceed(ctx context.Context, call string, m *model, err error) error {
	if err == nil || c.w.excused(ctx, err) {
		return nil
	}
	return fmt.Errorf("%s of %s: %w", call, m.name, err)
}

func (c *modelClient) podStatus(ctx context.Context, pod *model) error {
	b := pod.begin(nil)
	reply, err := c.w.f.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.id})
	switch {
	case c.w.excused(ctx, err):
		return nil
	case status.Code(err) == codes.NotFound:
		return pod.saw("PodSandboxStatus", b, removed)
	case err != nil:
		return fmt.Errorf("PodSandboxStatus of %s: %w", pod.name, err)
	}
	return pod.saw("PodSandboxStatus", b, podStage(reply.Status.State))
}

func (c *modelClient) containerStatus(ctx context.Context, m *model) error {
	b := m.begin(nil)
	reply, err := c.w.f.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: m.id})
	switch {
	case c.w.excused(ctx, err):
		return nil
	case status.Code(err) == codes.NotFound:
		return m.saw("ContainerStatus", b, removed)
	case err != nil:
		return fmt.Errorf("ContainerStatus of %s: %w", m.name, err)
	}
	now, err := containerStage(reply.Status.State)
	if err != nil {
		return err
	}
	return m.saw("ContainerStatus", b, now)
}

func (c *modelClient) create(ctx context.Context, s int, pod *model) error {
	w, name := c.w, fmt.Sprintf("c%d", c.random.IntN(3))
	w.mu.Lock()
	ended := pod.known > running
	used := map[string]bool{} // the containers that this call must not return
	for id, m := range pod.containers {
		used[id] = m.least() > created
	}
	w.mu.Unlock()
	reply, err := w.f.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod.id, Config: containerConfig(name, "run"), SandboxConfig: w.f.podConfig(w.slots[s].name)})
	if w.excused(ctx, err) {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	most := pod.possible()
	switch code := status.Code(err); {
	case code == codes.OK && ended:
		return fmt.Errorf("CreateContainer of %s in pod %s, which had been stopped before", name, pod.name)
	case code == codes.OK && used[reply.ContainerId]:
		return fmt.Errorf("CreateContainer of %s in %s returned %s, which had been started before", name, pod.name, reply.ContainerId)
	case code == codes.OK:
		if pod.containers[reply.ContainerId] == nil {
			pod.containers[reply.ContainerId] = &model{mu: &w.mu, id: reply.ContainerId, pod: pod, name: pod.name + "/" + name + " " + reply.ContainerId[:8]}
		}
		return nil
	case code == codes.FailedPrecondition && most > running, code == codes.NotFound && most == removed:
		return nil
	case code == codes.AlreadyExists && most == removed: // the key may be that of a container whose caller left
		return nil
	case code == codes.Unavailable:
		for _, m := range pod.containers {
			if m.removing { // the one that this call was to return
				return nil
			}
		}
	case code == codes.AlreadyExists:
		for _, m := range pod.containers {
			if m.possible() > created {
				return nil
			}
		}
	}
	return fmt.Errorf("CreateContainer of %s in pod %s, which is at most %s: %w", name, pod.name, most, err)
}

func (c *modelClient) start(ctx context.Context, m *model) error {
	b := m.begin(func() { m.starts++ })
	_, err := c.w.f.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: m.id})
	if c.w.excused(ctx, err) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch code := status.Code(err); {
	case code == codes.OK && (b.least > created || b.podEnded):
		return fmt.Errorf("StartContainer of %s, which was %s before (its pod stopped: %v)", m.name, b.least, b.podEnded)
	case code == codes.OK:
		m.known = max(m.known, running)
		if m.started++; m.started > 1 {
			return fmt.Errorf("%s was started %d times", m.name, m.started)
		}
		return nil
	case code == codes.FailedPrecondition && (m.starts > 1 || m.stopping || m.removing || m.pod.stopping), code == codes.NotFound && m.possible() == removed:
		return nil
	}
	return fmt.Errorf("StartContainer of %s: %w", m.name, err)
}

func (c *modelClient) stop(ctx context.Context, m *model) error {
	b := m.begin(func() { m.stopping = true })
	_, err := c.w.f.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: m.id, Timeout: int64(c.random.IntN(2))})
	if err == nil && b.least >= running {
		m.reached(exited)
	}
	return c.mustSucceed(ctx, "StopContainer", m, err)
}

func (c *modelClient) remove(ctx context.Context, m *model) error {
	m.begin(func() { m.stopping, m.removing = true, true })
	_, err := c.w.f.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: m.id})
	if err == nil {
		m.reached(removed)
	}
	return c.mustSucceed(ctx, "RemoveContainer", m, err)
}

func (c *modelClient) onRunning(ctx context.Context, m *model, call string, do func() error) error {
	b := m.begin(nil)
	err := do()
	if c.w.excused(ctx, err) {
		return nil
	}
	return m.needsRunning(call, b, err)
}

func (c *modelClient) update(ctx context.Context, m *model) error {
	b := m.begin(nil)
	_, err := c.w.f.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: m.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: int64(2 + c.random.IntN(1000))}})
	if c.w.excused(ctx, err) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	most := m.possible()
	switch code := status.Code(err); {
	case code == codes.OK && b.least <= running && !(b.podStopped && b.least == running):
		return nil
	case code == codes.FailedPrecondition && most >= exited, code == codes.NotFound && most == removed:
		return nil
	}
	return fmt.Errorf("UpdateContainerResources of %s, which was %s and is at most %s: %w", m.name, b.least, most, err)
}

// listPods checks that every pod that was there all through the call is listed once, and none that was gone before it.
func (c *modelClient) listPods(ctx context.Context) error {
	known := c.known(true)
	reply, err := c.w.f.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return c.mustSucceed(ctx, "ListPodSandbox", &model{name: "all"}, err)
	}
	seen := map[string]stage{}
	for _, p := range reply.Items {
		if _, twice := seen[p.Id]; twice {
			return fmt.Errorf("ListPodSandbox has %s twice", p.Id)
		}
		seen[p.Id] = podStage(p.State)
	}
	return judgeList("ListPodSandbox", known, seen)
}

func (c *modelClient) listContainers(ctx context.Context) error {
	known := c.known(false)
	reply, err := c.w.f.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return c.mustSucceed(ctx, "ListContainers", &model{name: "all"}, err)
	}
	seen := map[string]stage{}
	for _, l := range reply.Containers {
		if _, twice := seen[l.Id]; twice {
			return fmt.Errorf("ListContainers has %s twice", l.Id)
		}
		if seen[l.Id], err = containerStage(l.State); err != nil {
			return err
		}
	}
	return judgeList("ListContainers", known, seen)
}

// known is what is known of the pods, or of the containers, before a list.
func (c *modelClient) known(pods bool) map[*model]before {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	all := map[*model]before{}
	for _, s := range c.w.slots {
		for _, p := range s.pods {
			if pods {
				all[p] = p.before()
				continue
			}
			for _, m := range p.containers {
				all[m] = m.before()
			}
		}
	}
	return all
}

func judgeList(call string, known map[*model]before, seen map[string]stage) error {
	for m, b := range known {
		now, listed := seen[m.id]
		if !listed {
			now = removed
		}
		if err := m.saw(call, b, now); err != nil {
			return err
		}
	}
	return nil
}
