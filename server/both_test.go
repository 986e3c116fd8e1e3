package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
	"crishim/engine/enginetest"
)

// both is a server over a real socket on two in-memory engines: "memory", the default one, and "second".
type both struct {
	*fixture
	second *enginetest.Memory
}

func newBoth(t *testing.T) *both {
	t.Helper()
	f := &fixture{t: t, root: t.TempDir(), network: &fakeNetwork{attached: map[string]bool{}}}
	runtimes := func(names ...string) engine.Info {
		handlers := map[string]engine.HandlerFeatures{"": {}}
		for _, name := range names {
			handlers[name] = engine.HandlerFeatures{UserNamespaces: name == "kata"}
		}
		return engine.Info{Handlers: handlers, Features: engine.Features{MountOptions: len(names) > 1}}
	}
	f.engine = enginetest.NewMemory(enginetest.Options{Info: runtimes("runc")})
	t.Cleanup(f.engine.Close)
	f.engine.AddImage(enginetest.NewImage(testImage))
	b := &both{f, enginetest.NewMemory(enginetest.Options{Name: "second", ManifestIDs: true, Info: runtimes("runc", "kata")})}
	t.Cleanup(b.second.Close)
	f.more = []engine.Engine{b.second}
	f.options = func(o *Options) { o.Handlers["second"] = Handler{Engine: "second"} }
	f.start()
	t.Cleanup(func() { f.stop() })
	return b
}

func (b *both) runOn(name, handler string) string {
	b.t.Helper()
	resp, err := b.runtime.RunPodSandbox(b.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig(name), RuntimeHandler: handler})
	if err != nil {
		b.t.Fatalf("a pod of handler %q: %v", handler, err)
	}
	return resp.PodSandboxId
}

func (b *both) engineOf(pod string) string {
	p, _ := b.store.Pod(engine.PodID(pod))
	return p.Engine
}

// states are the states in the list of pods by id.
func (b *both) states() (map[string]runtimeapi.PodSandboxState, error) {
	list, err := b.runtime.ListPodSandbox(b.t.Context(), &runtimeapi.ListPodSandboxRequest{})
	states := map[string]runtimeapi.PodSandboxState{}
	for _, p := range list.GetItems() {
		states[p.Id] = p.State
	}
	return states, err
}

func (b *both) conditions() map[string]*runtimeapi.RuntimeCondition {
	b.t.Helper()
	reply, err := b.runtime.Status(b.t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		b.t.Fatal(err)
	}
	all := map[string]*runtimeapi.RuntimeCondition{}
	for _, c := range reply.Status.Conditions {
		all[c.Type] = c
	}
	return all
}

// waitHealth waits until the server has heard how an engine is.
func (b *both) waitHealth(name string, ready bool) {
	b.t.Helper()
	eventually(b.t, "the health of engine "+name, func() error {
		if h := b.store.Health(name); h.Ready != ready {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
}

const ready, gone = runtimeapi.PodSandboxState_SANDBOX_READY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY

func TestRuntimeHandlersRouteToTheEngines(t *testing.T) {
	b := newBoth(t)
	for handler, want := range map[string]string{"": "memory", "memory": "memory", "second": "second", "kata": "second"} {
		pod := b.runOn("pod-of-"+handler, handler)
		if got := b.engineOf(pod); got != want {
			t.Errorf("handler %q led to engine %s", handler, got)
		}
		if st := b.podStatus(pod); st.RuntimeHandler != handler {
			t.Errorf("handler %q is answered as %q", handler, st.RuntimeHandler)
		}
	}
	// A name that both offer is nobody's until the configuration says whose.
	_, err := b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig("x"), RuntimeHandler: "runc"})
	wantCode(t, "a handler that both engines offer", err, codes.FailedPrecondition)
	_, err = b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig("x"), RuntimeHandler: "absent"})
	wantCode(t, "an unknown handler", err, codes.InvalidArgument)
	reply, err := b.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range reply.RuntimeHandlers {
		names = append(names, h.Name)
		if h.Features.UserNamespaces != (h.Name == "kata") {
			t.Errorf("features of %q: %v", h.Name, h.Features)
		}
	}
	if want := []string{"", "kata", "memory", "second"}; !slices.Equal(names, want) {
		t.Errorf("handlers %q, want %q", names, want)
	}
	if reply.Features.MountOptions {
		t.Error("a feature that one engine lacks is told for the node")
	}
	b.options = func(o *Options) {
		o.Handlers["second"] = Handler{Engine: "second"}
		o.Handlers["runc"] = Handler{Engine: "second", Runtime: "runc"}
	}
	b.restart()
	if got := b.engineOf(b.runOn("said", "runc")); got != "second" {
		t.Errorf("the configured handler led to %s", got)
	}
}

// What an OCI runtime lacks would be dropped by it, whatever its engine has.
//
// Rows: S61 (part)
func TestWhatAHandlersRuntimeLacksIsRefused(t *testing.T) {
	b := newBoth(t)
	ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
	users := &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}}
	config := b.podConfig("users")
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: users}}
	_, err := b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "second"})
	wantCode(t, "a user namespace by a runtime that has none", err, codes.Unimplemented)
	pod, err := b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "kata"})
	wantCode(t, "a user namespace by a runtime that has them", err, codes.OK)
	c := containerConfig("c", "sleep", "1000")
	c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: users}}
	request := &runtimeapi.CreateContainerRequest{PodSandboxId: pod.GetPodSandboxId(), Config: c, SandboxConfig: config}
	c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true}}
	_, err = b.runtime.CreateContainer(t.Context(), request)
	wantCode(t, "a recursive read-only mount by a runtime that has none", err, codes.Unimplemented)
	c.Mounts = nil
	_, err = b.runtime.CreateContainer(t.Context(), request)
	wantCode(t, "a container in its user namespace", err, codes.OK)
}

func TestAHandlerWithAnEnginesNameIsThatEngine(t *testing.T) {
	store := newFixture(t).store
	engines := []engine.Engine{enginetest.NewMemory(enginetest.Options{Name: "a"}), enginetest.NewMemory(enginetest.Options{Name: "b"})}
	for _, handlers := range []map[string]Handler{
		{"": {Engine: "a"}, "a": {Engine: "b"}},
		{"": {Engine: "a"}, "x": {Engine: "absent"}},
		{"a": {Engine: "a"}},
	} {
		if _, err := New(Options{Handlers: handlers, Metrics: prometheus.NewRegistry()}, engines, store, nil, nil, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", handlers, err)
		}
	}
}

func TestOneEngineDownLeavesTheOthersPods(t *testing.T) {
	b := newBoth(t)
	first, second := b.runOn("first", ""), b.runOn("second", "second")
	up, lost := b.startContainer(first, "first", "c", "sleep", "1000"), b.startContainer(second, "second", "c", "sleep", "1000")
	b.second.SetHealth(false)
	b.waitHealth("second", false)

	states, err := b.states()
	if want := map[string]runtimeapi.PodSandboxState{first: ready, second: gone}; err != nil || !maps.Equal(states, want) {
		t.Errorf("listed %v, %v", states, err)
	}
	if st := b.containerStatus(lost); st.State != runtimeapi.ContainerState_CONTAINER_UNKNOWN || st.Reason != reasonAway || !strings.Contains(st.Message, "taken away by a test") {
		t.Errorf("the container of the engine that is away: %v", st)
	}
	if st := b.containerStatus(up); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other engine's container: %v", st)
	}
	c := b.conditions()
	if r := c[runtimeapi.RuntimeReady]; !r.Status || !strings.Contains(r.Message, "engine second is not ready") {
		t.Errorf("RuntimeReady %v", r)
	}
	if !c["EngineReady/memory"].Status || c["EngineReady/second"].Status {
		t.Errorf("conditions %v", c)
	}
	b.startContainer(b.runOn("more", ""), "more", "c", "sleep", "1000")
	_, err = b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig("x"), RuntimeHandler: "second"})
	wantCode(t, "a pod for the engine that is away", err, codes.Unavailable)
	for what, call := range map[string]func() error{
		"ListContainerStats": func() error {
			_, err := b.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
			return err
		},
		"ListImages": func() error { _, err := b.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{}); return err },
		"ImageFsInfo": func() error {
			_, err := b.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
			return err
		},
		"ExecSync": func() error {
			_, err := b.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: up, Cmd: []string{"echo", "hi"}, Timeout: 5})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}

	b.engine.SetHealth(false)
	b.waitHealth("memory", false)
	if r := b.conditions()[runtimeapi.RuntimeReady]; r.Status || !strings.Contains(r.Message, "engine memory is not ready") {
		t.Errorf("RuntimeReady without any engine: %v", r)
	}
	_, err = b.states()
	wantCode(t, "a list that nothing confirms", err, codes.Unavailable)

	b.engine.SetHealth(true)
	b.second.SetHealth(true)
	eventually(t, "both to be back", func() error {
		states, err := b.states()
		if err != nil || states[first] != ready || states[second] != ready {
			return fmt.Errorf("%v, %w", states, err)
		}
		return nil
	})
	if st := b.containerStatus(lost); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("its container afterwards: %v", st)
	}
}

// An engine that is away does not make the node unready while another one is ready: what does is told.
func TestWhyTheNodeIsNotReadyIsToldBesideAnEngineThatIsAway(t *testing.T) {
	b := newBoth(t)
	b.second.SetHealth(false)
	b.waitHealth("second", false)
	if err := os.Rename(filepath.Join(b.root, "root", "pods"), filepath.Join(b.root, "aside")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig("p")}); err == nil {
		t.Fatal("a pod is made without a record")
	}
	r := b.conditions()[runtimeapi.RuntimeReady]
	if r.Status || r.Reason != "StateNotWritable" || !strings.Contains(r.Message, "no such file") || !strings.Contains(r.Message, "engine second is not ready") {
		t.Errorf("RuntimeReady %v", r)
	}
}

// A daemon that is started while an engine is away serves the other one's pods at once.
func TestADaemonThatStartsWhileAnEngineIsAway(t *testing.T) {
	b := newBoth(t)
	first, second := b.runOn("first", ""), b.runOn("second", "second")
	b.stop()
	b.second.SetHealth(false)
	b.start()
	states, err := b.states()
	if err != nil || states[first] != ready || states[second] != gone {
		t.Errorf("listed %v, %v", states, err)
	}
	b.second.SetHealth(true)
	eventually(t, "the other engine to be known", func() error {
		states, err := b.states()
		if err != nil || states[second] != ready {
			return fmt.Errorf("%v, %w", states, err)
		}
		return nil
	})
}

func TestSwitchingTheDefaultLeavesOldPodsWhereTheyAre(t *testing.T) {
	b := newBoth(t)
	old := b.runOn("old", "")
	c := b.startContainer(old, "old", "c", "sleep", "1000")
	for _, handlers := range []map[string]Handler{
		{"": {Engine: "second"}, "memory": {Engine: "memory"}, "second": {Engine: "second"}},
		{"": {Engine: "second"}, "second": {Engine: "second"}}, // the old one only serves what it has
	} {
		b.options = func(o *Options) { o.Handlers = handlers }
		b.restart()
		if got := b.engineOf(old); got != "memory" {
			t.Fatalf("the old pod is on %s", got)
		}
		if _, err := b.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"echo", "hi"}, Timeout: 5}); err != nil {
			t.Error(err)
		}
		b.startContainer(old, "old", fmt.Sprintf("c%d", len(handlers)), "sleep", "1000") // its containers go on to be made there
		if got := b.engineOf(b.runOn(fmt.Sprintf("new-%d", len(handlers)), "")); got != "second" {
			t.Errorf("a new pod is on %s", got)
		}
	}
	_, err := b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: b.podConfig("x"), RuntimeHandler: "memory"})
	wantCode(t, "a new pod for the old engine", err, codes.InvalidArgument)
	b.nothingLeft()
}

func TestCreateContainerCarriesTheImageOverAndSaysHowFarItIs(t *testing.T) {
	b := newBoth(t)
	pod := b.runOn("pod", "second")
	release := b.engine.Block("ExportImage.half")
	defer release()
	request := &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: containerConfig("c", "sleep", "1000"), SandboxConfig: b.podConfig("pod")}
	var err error
	// The answer comes a tenth of the time before the deadline, which a busy machine may need more of.
	for limit := 2 * time.Second; limit <= 2*time.Minute; limit *= 4 {
		short, cancel := context.WithTimeout(t.Context(), limit)
		_, err = b.runtime.CreateContainer(short, request)
		cancel()
		if status.Code(err) != codes.DeadlineExceeded {
			break
		}
	}
	wantCode(t, "a creation whose image is on its way", err, codes.Unavailable)
	if !strings.Contains(status.Convert(err).Message(), "%") {
		t.Errorf("it does not say how far: %v", err)
	}
	release()
	id := b.startContainer(pod, "pod", "c", "sleep", "1000")
	if exports := b.engine.Calls("ExportImage"); exports != 1 {
		t.Errorf("the image was carried %d times", exports)
	}
	// One image under one id, in every answer.
	list, err := b.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 1 {
		t.Fatalf("listed %v, %v", list, err)
	}
	if st := b.containerStatus(id); st.ImageId != list.Images[0].Id {
		t.Errorf("the container's image is %s, the listed one %s", st.ImageId, list.Images[0].Id)
	}
	_, err = b.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: list.Images[0].Id}})
	wantCode(t, "the removal of an image that the other engine uses", err, codes.FailedPrecondition)
	if left, _ := b.engine.ListImages(t.Context()); len(left) != 1 {
		t.Error("it was removed from the engine that does not use it")
	}
	b.nothingLeft()
	if _, err := b.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: list.Images[0].Id}}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*enginetest.Memory{b.engine, b.second} {
		if left, _ := m.ListImages(t.Context()); len(left) > 0 {
			t.Errorf("engine %s still has %v", m.Name(), left)
		}
	}
}

func TestEventsAndFileSystemsAreOfBothEngines(t *testing.T) {
	b := newBoth(t)
	stream, err := b.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	go func() {
		for {
			event, err := stream.Recv()
			if err != nil {
				return // the test is over
			}
			mu.Lock()
			seen[event.ContainerId] = true
			mu.Unlock()
		}
	}()
	for i, handler := range []string{"", "second"} {
		n := 0
		eventually(t, "an event of handler "+handler, func() error { // the subscription has no answer of its own
			n++
			pod := b.runOn(fmt.Sprintf("pod-%d-%d", i, n), handler)
			time.Sleep(20 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			if !seen[pod] {
				return fmt.Errorf("none of pod %s", pod)
			}
			return nil
		})
	}
	reply, err := b.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(reply.ImageFilesystems) != 2 || len(reply.ContainerFilesystems) != 2 {
		t.Errorf("%v, %v", reply, err)
	}
}

// unusable is an engine that finds that it can never be used here.
type unusable struct {
	engine.Engine
}

func (u unusable) Watch(context.Context, engine.Sink) error {
	return fmt.Errorf("rootless: %w", errdefs.ErrFailedPrecondition)
}

func TestAnEngineThatCanNeverBeUsedLeavesTheOther(t *testing.T) {
	b := newBoth(t)
	pod := b.runOn("pod", "")
	b.stop()
	b.more = []engine.Engine{unusable{b.second}}
	b.start()
	if states, err := b.states(); err != nil || states[pod] != ready {
		t.Errorf("listed %v, %v", states, err)
	}
	if c := b.conditions()["EngineReady/second"]; c.Status || !strings.Contains(c.Message, "rootless") {
		t.Errorf("%v", c)
	}
	// The last one ends the daemon.
	opts := b.server.opts
	opts.Metrics = prometheus.NewRegistry()
	srv, err := New(opts, []engine.Engine{unusable{b.engine}, unusable{b.second}}, newFixture(t).store, b.network, b.server.reader, b.server.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Run(t.Context()); !errdefs.IsFailedPrecondition(err) || errors.Is(err, context.Canceled) {
		t.Errorf("the daemon ends with %v", err)
	}
}

// pullsManifests is an engine whose images have other ids than those of the first.
type pullsManifests struct {
	*enginetest.Memory
}

func (e pullsManifests) PullImage(_ context.Context, spec *engine.PullSpec) (*engine.Image, error) {
	image := enginetest.NewImage(spec.Ref)
	_, digest, _ := strings.Cut(image.RepoDigests[0], "@")
	image.ID = engine.ImageID(digest)
	e.AddImage(image)
	return &image, nil
}

// The kubelet records under the id of the pull who may use the image (KEP-2535), and looks for the record under that of
// ImageStatus: an image without one is anybody's.
func TestAPullAnswersTheIDThatTheImageHasEverywhere(t *testing.T) {
	b := newBoth(t)
	b.stop()
	b.more = []engine.Engine{pullsManifests{b.second}}
	b.begin()
	b.waitRecovered()
	spec := &runtimeapi.ImageSpec{Image: testImage, RuntimeHandler: "second"}
	pulled, err := b.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
	if err != nil {
		t.Fatal(err)
	}
	if own, err := b.second.Image(t.Context(), testImage); err != nil {
		t.Fatal("it is not where it was to be pulled to", own, err)
	}
	st, err := b.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil || st.Image.GetId() != pulled.ImageRef {
		t.Errorf("pulled as %s, known as %s, %v", pulled.ImageRef, st.GetImage().GetId(), err)
	}
}
