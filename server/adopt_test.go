package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/cni"
	"crishim/engine"
	"crishim/state"
)

// fakeAdopter knows the network of every pod.
type fakeAdopter struct {
	t       *testing.T
	mu      sync.Mutex
	adopted []engine.PodID
	removed []engine.PodID
	fail    []error // of Removed
}

func (a *fakeAdopter) Adopt(_ context.Context, pod *state.Pod) error {
	raw, err := encodeAttachments([]cni.Attachment{{PodID: string(pod.ID), Network: "old", NetNSPath: pod.NetNSPath}})
	if err != nil {
		a.t.Error(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.adopted = append(a.adopted, pod.ID)
	pod.Spec.LogDirectory = ""           // Docker would not know it
	pod.Spec.Security.Privileged = false // nor this, of a pod of an older version
	pod.Adopted, pod.Network = true, state.Network{Attachments: raw, IPs: []string{"10.9.0.7"}, Done: true}
	if pod.Phase == state.PhaseStopped {
		pod.Phase = state.PhaseStopping // its network was not taken down
	}
	return nil
}

func (a *fakeAdopter) Orphans(context.Context, string, func(engine.PodID) bool) []state.Pod {
	return nil
}

func (a *fakeAdopter) Removed(id engine.PodID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.fail) > 0 {
		err := a.fail[0]
		a.fail = a.fail[1:]
		return err
	}
	a.removed = append(a.removed, id)
	return nil
}

// A pod without a record is adopted before the first call is answered, once; later starts know it by its record.
func TestAPodOfAnotherShimIsAdoptedOnce(t *testing.T) {
	f := newFixture(t)
	adopter := &fakeAdopter{t: t}
	f.options = func(o *Options) { o.Adopter = adopter }
	pod := f.runPod("old")
	container := f.startContainer(pod, "old", "c", "sleep")
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.corruptRecord("containers", pod)
	f.network.cached = nil
	for range 2 {
		f.start()
		status, err := f.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		if err != nil || status.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || status.Status.Network.GetIp() != "10.9.0.7" {
			t.Errorf("the pod: %v, %v", status, err)
		}
		c, ok := f.store.Container(engine.ContainerID(container))
		if !ok || !c.Recorded || !c.Adopted {
			t.Errorf("the container: %+v, %t", c, ok)
		}
		f.stop()
	}
	f.start()
	if !slices.Equal(adopter.adopted, []engine.PodID{engine.PodID(pod)}) {
		t.Errorf("adopted %v", adopter.adopted)
	}

	// A container that the kubelet starts in it has the log folder that the kubelet names: the engine did not know the pod's.
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "again"}, Image: &runtimeapi.ImageSpec{Image: testImage}, Command: []string{"sleep"}, LogPath: "again/0.log",
	}
	sandbox := &runtimeapi.PodSandboxConfig{LogDirectory: t.TempDir()}
	made, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := f.store.Container(engine.ContainerID(made.ContainerId)); c.Spec.LogPath != sandbox.LogDirectory+"/again/0.log" || c.Spec.LogDirectory != sandbox.LogDirectory {
		t.Errorf("its log: %q in %q", c.Spec.LogPath, c.Spec.LogDirectory)
	}

	// What the other shim kept goes after the pod and before its record.
	adopter.fail = []error{errors.New("read-only")}
	if _, err := f.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err == nil {
		t.Error("a failure is not told")
	}
	if _, ok := f.store.Pod(engine.PodID(pod)); !ok {
		t.Error("the record went before")
	}
	if _, err := f.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	if !slices.Equal(adopter.removed, []engine.PodID{engine.PodID(pod)}) {
		t.Errorf("removed %v", adopter.removed)
	}
	if len(f.network.dels) != 1 || f.network.dels[0].Network != "old" {
		t.Errorf("detached %+v", f.network.dels)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// starvedAdopter has no descriptor at its first look, as at a start on a node at its limit: it knows nothing of the network then.
type starvedAdopter struct {
	*fakeAdopter
	looked atomic.Bool
}

func (a *starvedAdopter) Adopt(ctx context.Context, pod *state.Pod) error {
	if a.looked.Swap(true) {
		return a.fakeAdopter.Adopt(ctx, pod)
	}
	pod.Adopted, pod.Network.Done = true, true
	return fmt.Errorf("read the networks of pod %s: %w", pod.ID, unix.EMFILE)
}

// What an adoption could not look at for want of descriptors is not absent: a record without the pod's address would have the kubelet
// make it anew, and no DEL would run at its end.
func TestAnAdoptionWaitsForDescriptors(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &starvedAdopter{fakeAdopter: &fakeAdopter{t: t}} }
	id := f.runPod("old")
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.network.cached = nil
	f.start()
	if pod, _ := f.store.Pod(engine.PodID(id)); !slices.Equal(pod.Network.IPs, []string{"10.9.0.7"}) || len(pod.Network.Attachments) != 1 {
		t.Errorf("adopted with %+v", pod.Network)
	}
}

// listedFirst is an engine that cannot look at its pods at first, and tells of each what its list has: engine/docker's inspectOf.
type listedFirst struct {
	engine.Engine
	look chan struct{}
}

func (e *listedFirst) Watch(ctx context.Context, sink engine.Sink) error {
	return e.Engine.Watch(ctx, listedSink{sink, e.look})
}

type listedSink struct {
	engine.Sink
	look chan struct{}
}

func (k listedSink) Resync(snap engine.Snapshot) {
	whole, containers := snap.Pods, snap.Containers
	snap.Pods, snap.Containers = nil, nil
	for _, st := range whole {
		st.NetNSPath, st.IPs, st.StartedAt = "", nil, time.Time{}
		st.Spec = &engine.PodSpec{Key: st.Key, Namespaces: st.Spec.Namespaces}
		snap.Pods = append(snap.Pods, st)
	}
	for _, st := range containers {
		st.StartedAt = time.Time{}
		st.Spec = &engine.ContainerSpec{Image: st.Spec.Image}
		snap.Containers = append(snap.Containers, st)
	}
	k.Sink.Resync(snap)
	go func() {
		<-k.look
		for _, st := range whole {
			k.Sink.PodChanged(st)
		}
		for _, st := range containers {
			k.Sink.ContainerChanged(st)
		}
	}()
}

// A pod of which the list alone tells is not adopted before it was looked at: its record would be without its namespace, in which its
// addresses are looked for and its DEL runs, and without what it was made from.
func TestAPodIsAdoptedByALookNotByTheList(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	id := engine.PodID(f.runPod("old"))
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.network.cached = nil
	look := make(chan struct{})
	f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
	f.start()
	if pod, ok := f.store.Pod(id); !ok || pod.State != engine.PodReady || pod.Recorded {
		t.Errorf("meanwhile it is %s, there %t, recorded %t", pod.State, ok, pod.Recorded)
	}
	close(look)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if pod, _ := f.store.Pod(id); pod.Recorded {
			break
		}
	}
	if pod, _ := f.store.Pod(id); !pod.Recorded || pod.NetNSPath == "" || len(pod.Spec.Labels) == 0 || len(pod.Network.Attachments) != 1 {
		t.Errorf("recorded %t with %+v in %q and the labels %v", pod.Recorded, pod.Network, pod.NetNSPath, pod.Spec.Labels)
	}
}

// Meanwhile a pod of which the list alone tells has the address that the other shim's cache knows, without which a kubelet makes it
// anew, and its DEL runs where it is stopped.
func TestAPodThatIsNotLookedAtYetHasItsAddressAndItsDEL(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	id := f.runPod("old")
	container := engine.ContainerID(f.startContainer(id, "old", "c", "sleep"))
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.corruptRecord("containers", id)
	f.network.cached = nil
	look := make(chan struct{})
	t.Cleanup(func() { close(look) })
	f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
	f.start()
	if got := f.podStatus(id); got.State != runtimeapi.PodSandboxState_SANDBOX_READY || got.Network.GetIp() != "10.9.0.7" {
		t.Errorf("it is %s with the address %q", got.State, got.Network.GetIp())
	}
	if pod, _ := f.store.Pod(engine.PodID(id)); pod.Recorded {
		t.Error("it was recorded before it was looked at")
	}
	if err := f.stopPod(id); err != nil {
		t.Error(err)
	}
	if len(f.network.dels) != 1 || f.network.dels[0].Network != "old" || f.network.dels[0].NetNSPath == "" {
		t.Errorf("detached %+v, in its namespace", f.network.dels)
	}
	if pod, _ := f.store.Pod(engine.PodID(id)); !pod.Adopted || pod.Phase != state.PhaseStopped {
		t.Errorf("adopted %t, %s", pod.Adopted, pod.Phase)
	}
	// Its container is one of the other shim's too.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, _ := f.store.Container(container); c.Recorded {
			break
		}
	}
	if c, _ := f.store.Container(container); !c.Adopted {
		t.Error("its container is not taken for an adopted one")
	}
	if err := f.removePod(id); err != nil {
		t.Error(err)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// One that had ended before, too: the list does not tell it from one that was never started.
func TestAPodThatHadEndedAndIsNotLookedAtYetHasItsDEL(t *testing.T) {
	for name, failure := range map[string]error{"looked at by the stop": nil, "by nobody": errors.New("the look hangs")} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
			id := f.runPod("old")
			f.engine.KillPod(engine.PodID(id))
			f.stop()
			f.corruptRecord("pods", "uid-old")
			f.network.cached = nil
			look := make(chan struct{})
			t.Cleanup(func() { close(look) })
			f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
			f.start()
			if failure != nil {
				f.engine.FailOnce("PodStatus", failure)
			}
			if err := f.removePod(id); err != nil {
				t.Error(err)
			}
			if len(f.network.dels) != 1 || f.network.dels[0].Network != "old" {
				t.Errorf("detached %+v", f.network.dels)
			}
			f.network.attached = map[string]bool{} // the fixture's own
			f.nothingLeft()
		})
	}
}

// A record has what the engine tells of it when it is looked at, which a list does not: of a pod of the host's network, too, and of a
// container. What is made in such a pod before has its cgroup.
func TestWhatWasOnlyListedIsAdoptedWithItsSpecification(t *testing.T) {
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": runtimeapi.NamespaceMode_POD, "node": runtimeapi.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
			config := f.podConfig("old")
			config.Linux.CgroupParent = "/kubepods/podold"
			config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: mode}}
			made, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			if err != nil {
				t.Fatal(err)
			}
			id := made.PodSandboxId
			container := engine.ContainerID(f.startContainer(id, "old", "c", "run"))
			f.stop()
			f.corruptRecord("pods", "uid-old")
			f.corruptRecord("containers", id)
			f.network.cached = nil
			look := make(chan struct{})
			f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
			f.start()
			if c, _ := f.store.Container(container); c.Recorded {
				t.Error("the container was recorded before it was looked at")
			}
			second, err := f.create(id, "old", "second", "sleep")
			if err != nil {
				t.Fatal(err)
			}
			if c, _ := f.store.Container(engine.ContainerID(second)); c.Spec.CgroupParent != config.Linux.CgroupParent {
				t.Errorf("a container was made in the cgroup %q", c.Spec.CgroupParent)
			}
			close(look)
			eventually(t, "both are recorded", func() error {
				pod, _ := f.store.Pod(engine.PodID(id))
				c, _ := f.store.Container(container)
				if !pod.Adopted || !c.Adopted {
					return fmt.Errorf("the pod %t, the container %t", pod.Adopted, c.Adopted)
				}
				return nil
			})
			f.stop()
			f.wrap = nil
			f.start()
			pod, _ := f.store.Pod(engine.PodID(id))
			c, _ := f.store.Container(container)
			if pod.Spec.CgroupParent != config.Linux.CgroupParent || !slices.Equal(c.Spec.Command, []string{"run"}) {
				t.Errorf("the pod is recorded with the cgroup %q, the container with the command %q", pod.Spec.CgroupParent, c.Spec.Command)
			}
		})
	}
}

// Of what the engine could only list long after the start, as at its return, the adoption's own look tells.
func TestWhatIsOnlyListedLaterIsAdoptedByTheLookOfItsAdoption(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	id := engine.PodID(f.runPod("old"))
	container := engine.ContainerID(f.startContainer(string(id), "old", "c", "run"))
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.corruptRecord("containers", string(id))
	f.network.cached = nil
	look := make(chan struct{})
	t.Cleanup(func() { close(look) })
	f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
	f.start()
	f.server.found.mu.Lock()
	f.server.found.since[f.engine.Name()] = time.Now().Add(-makingLimit)
	f.server.found.mu.Unlock()
	eventually(t, "both are recorded", func() error {
		pod, _ := f.store.Pod(id)
		if c, _ := f.store.Container(container); !pod.Recorded || !c.Recorded {
			return fmt.Errorf("the pod %t, the container %t", pod.Recorded, c.Recorded)
		}
		return nil
	})
	if pod, _ := f.store.Pod(id); pod.NetNSPath == "" || len(pod.Spec.Labels) == 0 {
		t.Errorf("its namespace is %q, its labels are %v", pod.NetNSPath, pod.Spec.Labels)
	}
	if c, _ := f.store.Container(container); !slices.Equal(c.Spec.Command, []string{"run"}) {
		t.Errorf("the container is recorded with the command %q", c.Spec.Command)
	}
}

// absentFirst is away until come is closed.
type absentFirst struct {
	engine.Engine
	come chan struct{}
}

func (e *absentFirst) Watch(ctx context.Context, sink engine.Sink) error {
	select {
	case <-e.come:
		return e.Engine.Watch(ctx, sink)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// So it is, too, where its engine comes when the daemon has been there for long.
func TestAPodOfALateEngineIsAdoptedByALook(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	id := engine.PodID(f.runPod("old"))
	f.stop()
	f.corruptRecord("pods", "uid-old")
	f.network.cached = nil
	look, come := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(look) })
	f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{&absentFirst{e, come}, look} }
	f.begin()
	f.server.found.mu.Lock()
	f.server.found.since[f.engine.Name()] = time.Now().Add(-makingLimit) // as if it was from the daemon's start on
	f.server.found.mu.Unlock()
	close(come)
	f.waitRecovered()
	if pod, ok := f.store.Pod(id); !ok || pod.Recorded {
		t.Errorf("it is there %t, recorded %t", ok, pod.Recorded)
	}
}

// saidAway is an engine that says that it is away until come is closed.
type saidAway struct {
	engine.Engine
	come chan struct{}
}

func (e *saidAway) Watch(ctx context.Context, sink engine.Sink) error {
	sink.Health(engine.Health{Reason: "Away"})
	select {
	case <-e.come:
		return e.Engine.Watch(ctx, sink)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slowFirst looks at the first pod until it is let go.
type slowFirst struct {
	*fakeAdopter
	asked chan struct{} // has room for one
	letGo chan struct{}
}

func (a *slowFirst) Adopt(ctx context.Context, pod *state.Pod) error {
	select {
	case a.asked <- struct{}{}:
		<-a.letGo
	default:
	}
	return a.fakeAdopter.Adopt(ctx, pod)
}

// Calls are answered while a late engine's pods are adopted: one that is stopped meanwhile has ended, and its DEL runs once.
func TestAPodThatIsStoppedDuringItsAdoptionHasEnded(t *testing.T) {
	b := newBoth(t)
	b.stop()
	adopter := &slowFirst{&fakeAdopter{t: t}, make(chan struct{}, 1), make(chan struct{})}
	come := make(chan struct{})
	options := b.options
	b.options = func(o *Options) { options(o); o.Adopter = adopter }
	b.wrap = func(e engine.Engine) engine.Engine { return &saidAway{e, come} }
	id, _ := b.byAnother("old")
	b.start()
	close(come)
	eventually(t, "the adoption begins", func() error {
		if len(adopter.asked) == 0 {
			return errors.New("not asked")
		}
		return nil
	})
	stopped := make(chan error, 1)
	go func() { stopped <- b.stopPod(string(id)) }()
	select {
	case err := <-stopped:
		stopped <- err
	case <-time.After(500 * time.Millisecond): // it waits for the adoption
	}
	close(adopter.letGo)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the engine is recovered", func() error {
		b.server.found.mu.Lock()
		defer b.server.found.mu.Unlock()
		if !b.server.found.open[b.engine.Name()] {
			return errors.New("not yet")
		}
		return nil
	})
	if pod, _ := b.store.Pod(id); pod.Phase != state.PhaseStopped || len(pod.Network.Attachments) > 0 {
		t.Errorf("it is %s with %+v", pod.Phase, pod.Network)
	}
	if err := b.removePod(string(id)); err != nil {
		t.Error(err)
	}
	if len(b.network.dels) != 1 {
		t.Errorf("%d times DEL", len(b.network.dels))
	}
	b.network.attached = map[string]bool{} // the fixture's own
	b.nothingLeft()
}

// hungImages is an engine that answers everything but what is asked of images.
type hungImages struct{ engine.Engine }

func (e hungImages) Image(ctx context.Context, _ string) (*engine.Image, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// The names of their images are no reason to leave containers unserved: Docker may answer pings and list containers while its list
// of images hangs.
func TestAnAdoptionDoesNotWaitForImagesThatHang(t *testing.T) {
	was := namesLimit
	t.Cleanup(func() { namesLimit = was }) // after the fixture's end
	namesLimit = 100 * time.Millisecond
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	pod := f.runPod("old")
	container := f.startContainer(pod, "old", "c", "sleep")
	f.stop()
	f.corruptRecord("containers", pod)
	f.wrap = func(e engine.Engine) engine.Engine { return hungImages{e} }
	f.start()
	if c, _ := f.store.Container(engine.ContainerID(container)); !c.Recorded {
		t.Error("it is not adopted")
	}
	if err := f.removePod(pod); err != nil {
		t.Error(err)
	}
	f.nothingLeft()
}

// Of two pods of one key, and of two containers of one, as a crashed shim may leave them, the end of one leaves the other as it is.
//
// Rows: R21 (part)
func TestTheEndOfATwinLeavesTheOther(t *testing.T) {
	for _, first := range []int{0, 1} {
		f := newFixture(t)
		f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
		pods := []string{f.runPod("web"), f.runPod("twin")}
		containers := []string{f.startContainer(pods[0], "web", "c", "run"), f.startContainer(pods[0], "web", "d", "run")}
		f.stop()
		for _, name := range []string{"uid-web", "uid-twin"} {
			f.corruptRecord("pods", name)
		}
		for _, id := range containers {
			f.corruptRecord("containers", id)
		}
		f.network.cached = nil
		f.engine.Twin(pods[1], pods[0])
		f.engine.Twin(containers[1], containers[0])
		f.start()

		gone, stays := containers[first], containers[1-first]
		if _, err := f.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: gone}); err != nil {
			t.Fatal(err)
		}
		if state := f.containerStatus(stays).State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the other container is %v", state)
		}
		_, err := f.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: gone})
		wantCode(t, "the container that was removed", err, codes.NotFound)

		gone, stays = pods[first], pods[1-first]
		for i, end := range []func(string) error{f.stopPod, f.removePod} {
			if err := end(gone); err != nil {
				t.Fatal(err)
			}
			if status := f.podStatus(stays); status.State != runtimeapi.PodSandboxState_SANDBOX_READY || status.Network.GetIp() != "10.9.0.7" {
				t.Errorf("the other pod after call %d: %v", i, status)
			}
		}
		_, err = f.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: gone})
		wantCode(t, "the pod that was removed", err, codes.NotFound)
		if len(f.network.dels) != 1 || f.network.dels[0].PodID != gone {
			t.Errorf("detached %+v", f.network.dels)
		}
		f.network.attached = map[string]bool{} // the fixture's own
		f.nothingLeft()
	}
}

// A pod that may have privileged containers gets them also where its record was lost, and with it that it may; one with a record is what
// that says, whatever a later call claims.
// Rows: R21 (part)
func TestAPrivilegedPodWhoseRecordWasLostGetsPrivilegedContainers(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	sandbox := f.podConfig("lost")
	sandbox.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{Privileged: true}
	lost, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	recorded := f.runPod("recorded")
	f.stop()
	f.corruptRecord("pods", "uid-lost")
	f.start()

	privileged := func(pod string, sandbox *runtimeapi.PodSandboxConfig) error {
		config := containerConfig("proxy", "sleep")
		config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Privileged: true}
		_, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
		return err
	}
	if err := privileged(lost.PodSandboxId, f.podConfig("lost")); status.Code(err) != codes.InvalidArgument {
		t.Errorf("in a pod that the kubelet says is not privileged: %v", err)
	}
	if err := privileged(lost.PodSandboxId, sandbox); err != nil {
		t.Errorf("in a pod that it says is: %v", err)
	}
	claimed := f.podConfig("recorded")
	claimed.Linux.SecurityContext = sandbox.Linux.SecurityContext
	if err := privileged(recorded, claimed); status.Code(err) != codes.InvalidArgument {
		t.Errorf("in a pod whose record says that it is not: %v", err)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// orphans is an adopter that finds pods of which the engine has nothing any more.
type orphans struct {
	*fakeAdopter
	find func() []state.Pod
}

func (a *orphans) Orphans(context.Context, string, func(engine.PodID) bool) []state.Pod {
	return a.find()
}

func (f *fixture) orphan(id engine.PodID, name string) state.Pod {
	return state.Pod{
		ID: id, Engine: f.engine.Name(), CreatedAt: time.Now(), Phase: state.PhaseStopping, Returned: true, Adopted: true,
		Spec: engine.PodSpec{Key: engine.PodKey{Name: name, Namespace: "default"}}, Network: state.Network{Done: true},
	}
}

// An old shim, and a call to an engine that came late, makes pods while the start looks for what is left of others: the checkpoint of
// such a one is younger than the engine's list. Taken for an orphan's it would have the kubelet stop a pod that runs.
func TestAPodThatIsMadeWhileOrphansAreLookedForIsNone(t *testing.T) {
	f := newFixture(t)
	f.stop()
	var pod engine.PodID
	var container engine.ContainerID
	f.options = func(o *Options) {
		o.Adopter = &orphans{&fakeAdopter{t: t}, func() []state.Pod {
			pod, container = f.byAnother("late")
			return []state.Pod{f.orphan(pod, "late")}
		}}
	}
	f.start()
	f.waitAdopted(pod, container)
}

// A checkpoint knows no UID, so that those of one name are told apart by attempts: also from one that an earlier start has found and
// that waits for its removal still.
func TestOrphansOfOneNameAreListedAlsoOfTwoStarts(t *testing.T) {
	f := newFixture(t)
	ids := []string{strings.Repeat("1", 64), strings.Repeat("2", 64)}
	for i, id := range ids {
		f.stop()
		f.options = func(o *Options) {
			o.Adopter = &orphans{&fakeAdopter{t: t}, func() []state.Pod { return []state.Pod{f.orphan(engine.PodID(id), "web")} }}
		}
		f.start()
		list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var listed []string
		for _, item := range list.Items {
			listed = append(listed, item.Id)
		}
		if !slices.Equal(listed, ids[:i+1]) {
			t.Errorf("after start %d: %q", i+1, listed)
		}
	}
}
