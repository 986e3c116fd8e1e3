package server

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/state"
)

// lateNetwork knows the network of a pod only once the shim that makes it has attached it.
type lateNetwork struct {
	*fakeAdopter
	attached chan struct{}
	asked    chan struct{}
}

func (a *lateNetwork) Adopt(ctx context.Context, pod *state.Pod) error {
	select {
	case <-a.attached:
		return a.fakeAdopter.Adopt(ctx, pod)
	default:
	}
	select {
	case a.asked <- struct{}{}:
	default:
	}
	pod.Adopted, pod.Network.Done = true, true
	return errors.New("eth0 has no address")
}

// withoutSwapAccounting is what Docker says of a container that another shim limited to so much memory and no swap, where the host
// cannot limit swap.
var withoutSwapAccounting = engine.Resources{MemoryLimit: 256 << 20, MemorySwap: -1}

// byAnother makes a pod with a container behind the server's back.
func (f *fixture) byAnother(name string) (engine.PodID, engine.ContainerID) {
	f.t.Helper()
	ctx := f.t.Context()
	pod := &engine.PodSpec{Key: engine.PodKey{Name: name, Namespace: "default", UID: "uid-" + name}, Namespaces: engine.Namespaces{Network: engine.NamespacePod}}
	id, err := f.engine.CreatePod(ctx, pod)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.engine.StartPod(ctx, id, pod); err != nil {
		f.t.Fatal(err)
	}
	image, err := f.engine.Image(ctx, testImage)
	if err != nil {
		f.t.Fatal(err)
	}
	spec := &engine.ContainerSpec{Pod: id, PodKey: pod.Key, Key: engine.ContainerKey{Name: "c"}, Image: engine.ImageRef{Ref: string(image.ID), ID: image.ID}, Command: []string{"run"}, Resources: withoutSwapAccounting}
	container, err := f.engine.CreateContainer(ctx, spec)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.engine.StartContainer(ctx, container.ID, spec); err != nil {
		f.t.Fatal(err)
	}
	return id, container.ID
}

func (f *fixture) waitAdopted(pod engine.PodID, container engine.ContainerID) {
	f.t.Helper()
	eventually(f.t, "the adoption", func() error {
		p, _ := f.store.Pod(pod)
		c, _ := f.store.Container(container)
		if !p.Recorded || !p.Adopted || !c.Recorded || !c.Adopted {
			return errors.New("one is not adopted")
		}
		return nil
	})
	status, err := f.runtime.PodSandboxStatus(f.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: string(pod)})
	if err != nil || status.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || status.Status.Network.GetIp() != "10.9.0.7" {
		f.t.Errorf("the pod: %v, %v", status, err)
	}
	if c, _ := f.store.Container(container); c.Phase != state.PhaseRunning || c.State != engine.ContainerRunning {
		f.t.Errorf("the container is %s, %s", c.Phase, c.State)
	}
}

// An adopted container has the names of its image, as it had with the other shim: Docker knows only what CreateContainer
// said, which is an id where a kubelet made it.
func TestAnAdoptedContainersImageHasItsNames(t *testing.T) {
	f := newFixture(t)
	image, err := f.engine.Image(t.Context(), testImage)
	if err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	f.start()
	pod, container := f.byAnother("by-id")
	f.waitAdopted(pod, container)
	reply, err := f.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: string(container)})
	if err != nil {
		t.Fatal(err)
	}
	got := reply.Status
	if got.Image.Image != image.RepoTags[0] || got.ImageRef != image.RepoDigests[0] || got.ImageId != string(image.ID) {
		t.Errorf("the image is %q, %q, %q; want %q, %q, %q", got.Image.Image, got.ImageRef, got.ImageId, image.RepoTags[0], image.RepoDigests[0], image.ID)
	}
}

// What another shim makes while the daemon runs is adopted as at the start, once it has its address; so is what it makes while
// the engine's events are lost.
func TestWhatAnotherShimMakesMeanwhileIsAdopted(t *testing.T) {
	f := newFixture(t)
	f.stop()
	adopter := &lateNetwork{fakeAdopter: &fakeAdopter{t: t}, attached: make(chan struct{}), asked: make(chan struct{}, 1)}
	f.options = func(o *Options) { o.Adopter = adopter }
	f.start()

	pod, container := f.byAnother("meanwhile")
	<-adopter.asked
	if p, ok := f.store.Pod(pod); !ok || p.Recorded {
		t.Errorf("before it has an address: recorded %t, there %t", p.Recorded, ok)
	}
	close(adopter.attached)
	f.waitAdopted(pod, container)

	var others [2]engine.PodID
	var theirs [2]engine.ContainerID
	f.engine.Gap(func() { others[0], theirs[0] = f.byAnother("gap") })
	f.engine.SetHealth(false)
	f.engine.SetHealth(true)
	others[1], theirs[1] = f.byAnother("again")
	for i := range others {
		f.waitAdopted(others[i], theirs[i])
	}

	// Nobody was given what was never started: a creation by its key takes its place, and it is not recorded meanwhile.
	half := &engine.PodSpec{Key: engine.PodKey{Name: "half", Namespace: "default", UID: "uid-half"}}
	created, err := f.engine.CreatePod(t.Context(), half)
	if err != nil {
		t.Fatal(err)
	}
	again, last := f.byAnother("last")
	f.waitAdopted(again, last) // by then it was looked at
	if p, ok := f.store.Pod(created); !ok || p.Recorded {
		t.Errorf("what was never started: recorded %t, there %t", p.Recorded, ok)
	}
	f.runPod("half")

	f.restart()
	for i := range others {
		f.waitAdopted(others[i], theirs[i])
	}
	f.waitAdopted(pod, container)
	for _, p := range f.engine.PodIDs() {
		if _, err := f.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: string(p)}); err != nil {
			t.Error(err)
		}
	}
	if len(f.network.dels) < 4 {
		t.Errorf("detached %+v", f.network.dels)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// A pod that was made and never started, and whose creation's answer and record were lost at the end of the daemon, is no
// other shim's: the retry of its creation has it made anew.
func TestWhatWasNeverStartedIsNotAdopted(t *testing.T) {
	f := newFixture(t)
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	pod := f.runPod("whole")
	config := f.podConfig("web")
	key := engine.PodKey{Name: config.Metadata.Name, Namespace: config.Metadata.Namespace, UID: config.Metadata.Uid, Attempt: config.Metadata.Attempt}
	f.stop()
	lost, err := f.engine.CreatePod(t.Context(), &engine.PodSpec{Key: key, Namespaces: engine.Namespaces{Network: engine.NamespacePod}})
	if err != nil {
		t.Fatal(err)
	}
	image, err := f.engine.Image(t.Context(), testImage)
	if err != nil {
		t.Fatal(err)
	}
	whole := f.podConfig("whole").Metadata
	_, err = f.engine.CreateContainer(t.Context(), &engine.ContainerSpec{
		Pod: engine.PodID(pod), PodKey: engine.PodKey{Name: whole.Name, Namespace: whole.Namespace, UID: whole.Uid},
		Key: engine.ContainerKey{Name: "c"}, Image: engine.ImageRef{Ref: testImage, ID: image.ID}, Command: []string{"run"},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.start()
	if made := f.runPod("web"); made == string(lost) {
		t.Errorf("the retry has %s, which was never started", made)
	}
	if _, err := f.create(pod, "whole", "c", "run"); err != nil {
		t.Errorf("the retry of the container's creation: %v", err)
	}
	if n := len(f.engine.PodIDs()) + len(f.engine.ContainerIDs()); n != 3 {
		t.Errorf("the engine has %d pods and containers, want two pods and a container", n)
	}
}

// An update of resources makes no record of what only a list has told of, by which nobody would look any more for the rest, and takes
// no limit away that the list does not tell.
func TestAnUpdateOfWhatWasOnlyListedLeavesItsAdoptionToALook(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	pod, container := f.byAnother("old")
	look := make(chan struct{})
	f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
	f.start()
	_, err := f.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: string(container), Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: "0-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := withoutSwapAccounting
	want.CpusetCPUs = "0-1"
	if got, _ := f.engine.Resources(container); !reflect.DeepEqual(got, want) {
		t.Errorf("it has %+v, want %+v", got, want)
	}
	_, err = f.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: string(pod), Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, _ := f.store.Pod(pod)
	if c, _ := f.store.Container(container); p.Recorded || c.Recorded {
		t.Errorf("before the look the pod is recorded %t, the container %t", p.Recorded, c.Recorded)
	}
	close(look)
	f.waitAdopted(pod, container)
	f.stop()
	f.wrap = nil
	f.start()
	if p, _ := f.store.Pod(pod); p.NetNSPath == "" || len(p.Network.Attachments) != 1 || p.Spec.Resources == nil || p.Spec.Resources.CPUShares != 512 {
		t.Errorf("the pod is recorded in %q with %+v and %+v", p.NetNSPath, p.Network, p.Spec.Resources)
	}
	if c, _ := f.store.Container(container); !reflect.DeepEqual(c.Spec.Command, []string{"run"}) || !reflect.DeepEqual(c.Resources, want) {
		t.Errorf("the container is recorded with the command %q and %+v", c.Spec.Command, c.Resources)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// One of another shim's that was never started, too: of that a list tells no limits either.
func TestAnUpdateOfAListedContainerThatWasNeverStartedTakesNoLimitAway(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	pod, beside := f.byAnother("old")
	image, err := f.engine.Image(t.Context(), testImage)
	if err != nil {
		t.Fatal(err)
	}
	spec := &engine.ContainerSpec{
		Pod: pod, PodKey: engine.PodKey{Name: "old", Namespace: "default", UID: "uid-old"}, Key: engine.ContainerKey{Name: "created"},
		Image: engine.ImageRef{Ref: testImage, ID: image.ID}, Command: []string{"run"}, Resources: engine.Resources{MemoryLimit: 256 << 20, CPUShares: 512},
	}
	created, err := f.engine.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	look := make(chan struct{})
	f.wrap = func(e engine.Engine) engine.Engine { return &listedFirst{e, look} }
	f.start()
	_, err = f.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: string(created.ID), Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: "0-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Resources
	want.CpusetCPUs = "0-1"
	if got, _ := f.engine.Resources(created.ID); !reflect.DeepEqual(got, want) {
		t.Errorf("it has %+v, want %+v", got, want)
	}
	close(look)
	f.waitAdopted(pod, beside)
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// Nor does an adoption that is under way undo it: its record is made of what the pod was when it was looked at.
func TestAnUpdateOfAPodDuringItsAdoptionIsKept(t *testing.T) {
	f := newFixture(t)
	f.stop()
	adopter := &slowFirst{&fakeAdopter{t: t}, make(chan struct{}, 1), make(chan struct{})}
	f.options = func(o *Options) { o.Adopter = adopter }
	f.start()
	pod, container := f.byAnother("old")
	eventually(t, "the adoption begins", func() error {
		if len(adopter.asked) == 0 {
			return errors.New("not asked")
		}
		return nil
	})
	updated := make(chan error, 1)
	go func() {
		_, err := f.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: string(pod), Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512},
		})
		updated <- err
	}()
	select {
	case err := <-updated:
		updated <- err
	case <-time.After(500 * time.Millisecond): // it waits for the adoption
	}
	close(adopter.letGo)
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	f.waitAdopted(pod, container)
	if p, _ := f.store.Pod(pod); p.Spec.Resources == nil || p.Spec.Resources.CPUShares != 512 {
		t.Errorf("the pod is recorded with %+v", p.Spec.Resources)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}

// Without swap accounting the kubelet can change the resources of an adopted container like those of any other, and does so all the
// time where its CPU manager is on.
func TestResourcesOfAnAdoptedContainerCanBeChangedWithoutSwapAccounting(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.options = func(o *Options) { o.Adopter = &fakeAdopter{t: t} }
	pod, container := f.byAnother("old")
	f.start()
	f.waitAdopted(pod, container)
	want := withoutSwapAccounting
	for _, update := range []struct {
		linux  *runtimeapi.LinuxContainerResources
		change func()
	}{
		{&runtimeapi.LinuxContainerResources{CpusetCpus: "0-1"}, func() { want.CpusetCPUs = "0-1" }},
		{&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, func() { want.MemoryLimit = 128 << 20 }},
		{&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}, func() { want.MemoryLimit, want.MemorySwap = 64<<20, 64<<20 }},
	} {
		update.change()
		_, err := f.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: string(container), Linux: update.linux})
		if err != nil {
			t.Fatalf("%v: %v", update.linux, err)
		}
		if got, _ := f.engine.Resources(container); !reflect.DeepEqual(got, want) {
			t.Errorf("after %v it has %+v, want %+v", update.linux, got, want)
		}
	}
	_, err := f.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: string(container), Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 128 << 20},
	})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("a request for a limit of swap: %v", err)
	}
	f.network.attached = map[string]bool{} // the fixture's own
	f.nothingLeft()
}
