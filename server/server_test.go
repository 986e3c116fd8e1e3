package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/cni"
	"crishim/engine"
	"crishim/engine/enginetest"
	"crishim/state"
	"crishim/stats"
	"crishim/streaming"
	"crishim/translator"
)

// fixture is a server over a real socket on the in-memory engine.
type fixture struct {
	t       testing.TB
	root    string
	engine  *enginetest.Memory
	network *fakeNetwork
	store   *state.Store
	server  *Server
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	conn    *grpc.ClientConn
	stop    func()
	options func(*Options) // changes what start gives to New
	wrap    func(engine.Engine) engine.Engine
	more    []engine.Engine // beside engine
}

const testImage = "docker.io/library/busybox:latest"

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, root: t.TempDir(), network: &fakeNetwork{attached: map[string]bool{}}}
	f.engine = enginetest.NewMemory(enginetest.Options{})
	t.Cleanup(f.engine.Close)
	f.engine.AddImage(enginetest.NewImage(testImage))
	f.start()
	t.Cleanup(func() { f.stop() })
	return f
}

// start runs a daemon over the fixture's engine, network and root directory, and waits until it serves.
func (f *fixture) start() {
	f.t.Helper()
	f.begin()
	f.waitRecovered()
}

// begin is start without the wait.
func (f *fixture) begin() {
	f.t.Helper()
	store, err := state.Open(filepath.Join(f.root, "root"), filepath.Join(f.root, "run"))
	if err != nil {
		f.t.Fatal(err)
	}
	reader, err := stats.NewReader("/")
	if err != nil {
		f.t.Fatal(err)
	}
	name := f.engine.Name()
	opts := Options{
		RuntimeName: "docker", Version: "test", Handlers: map[string]Handler{"": {Engine: name}, name: {Engine: name}},
		Translation: translator.Defaults{PauseImage: "pause", SeccompRoot: f.root}, Metrics: prometheus.NewRegistry(),
	}
	if f.options != nil {
		f.options(&opts)
	}
	var eng engine.Engine = f.engine
	if f.wrap != nil {
		eng = f.wrap(eng)
	}
	srv, err := New(opts, append([]engine.Engine{eng}, f.more...), store, f.network, reader, stats.NewDisk())
	if err != nil {
		f.t.Fatal(err)
	}
	streams, err := streaming.New(streaming.Options{}, srv.StreamRuntime())
	if err != nil {
		f.t.Fatal(err)
	}
	srv.SetStreams(streams)
	socket := filepath.Join(f.root, "cri.sock")
	listeners, err := Listen([]string{socket}, "")
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = srv.Run(ctx) })
	all.Go(func() { _ = srv.Serve(listeners) })
	all.Go(func() { _ = streams.Serve(ctx) })
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.t.Fatal(err)
	}
	f.store, f.server, f.conn = store, srv, conn
	f.runtime, f.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	f.stop = func() {
		cancel()
		srv.Stop(5 * time.Second)
		all.Wait()
		_ = conn.Close()
		_ = store.Close()
	}
}

func (f *fixture) waitRecovered() {
	f.t.Helper()
	select {
	case <-f.server.Recovered():
	case <-time.After(time.Minute):
		f.t.Fatal("the server does not become ready")
	}
}

func (f *fixture) restart() {
	f.t.Helper()
	f.stop()
	f.start()
}

func (f *fixture) podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, LogDirectory: filepath.Join(f.root, "logs", name),
		Labels: map[string]string{"app": name}, Linux: &runtimeapi.LinuxPodSandboxConfig{},
	}
}

func containerConfig(name string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: testImage},
		Command: command, LogPath: name + ".log", Linux: &runtimeapi.LinuxContainerConfig{},
	}
}

func (f *fixture) runPod(name string) string {
	f.t.Helper()
	resp, err := f.runtime.RunPodSandbox(f.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(name)})
	if err != nil {
		f.t.Fatalf("RunPodSandbox: %v", err)
	}
	return resp.PodSandboxId
}

func (f *fixture) create(pod, podName, name string, command ...string) (string, error) {
	resp, err := f.runtime.CreateContainer(f.t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod, Config: containerConfig(name, command...), SandboxConfig: f.podConfig(podName)})
	return resp.GetContainerId(), err
}

func (f *fixture) startContainer(pod, podName, name string, command ...string) string {
	f.t.Helper()
	id, err := f.create(pod, podName, name, command...)
	if err != nil {
		f.t.Fatalf("CreateContainer: %v", err)
	}
	if _, err := f.runtime.StartContainer(f.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		f.t.Fatalf("StartContainer: %v", err)
	}
	return id
}

func (f *fixture) podStatus(id string) *runtimeapi.PodSandboxStatus {
	f.t.Helper()
	resp, err := f.runtime.PodSandboxStatus(f.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		f.t.Fatalf("PodSandboxStatus: %v", err)
	}
	return resp.Status
}

func (f *fixture) containerStatus(id string) *runtimeapi.ContainerStatus {
	f.t.Helper()
	resp, err := f.runtime.ContainerStatus(f.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		f.t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

func (f *fixture) stopPod(id string) error {
	_, err := f.runtime.StopPodSandbox(f.t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

func (f *fixture) removePod(id string) error {
	_, err := f.runtime.RemovePodSandbox(f.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// nothingLeft is the gate after every fault: stop and remove all, and nobody holds anything any more.
func (f *fixture) nothingLeft() {
	f.t.Helper()
	eventually(f.t, "everything removed", func() error {
		list, err := f.runtime.ListPodSandbox(f.t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if err := errors.Join(f.stopPod(p.Id), f.removePod(p.Id)); err != nil {
				return err
			}
		}
		if pods, containers := f.engine.PodIDs(), f.engine.ContainerIDs(); len(pods)+len(containers) > 0 {
			return fmt.Errorf("the engine still has %v %v", pods, containers)
		}
		if left := f.network.left(); len(left) > 0 {
			return fmt.Errorf("still attached: %v", left)
		}
		if pods, containers := f.store.Pods(), f.store.Containers(); len(pods)+len(containers) > 0 {
			return fmt.Errorf("records of %d pods and %d containers", len(pods), len(containers))
		}
		return nil
	})
}

func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func wantCode(t testing.TB, what string, err error, code codes.Code) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("%s: code %s (%v), want %s", what, got, err, code)
	}
}

// fakeNetwork attaches pods in memory.
type fakeNetwork struct {
	mu       sync.Mutex
	attached map[string]bool
	cached   map[string][]cni.Attachment
	dels     []cni.Attachment
	valid    []cni.Attachment // of the last GC
	gcs      int
	failAdd  []error
	failDel  []error
	failGC   []error
	notReady error
	next     int
	owed     []string
	sysctls  map[string]string

	failSysctls error

	adds atomic.Int32
	slow chan struct{} // Add waits for it

	inDel func() // may be nil
}

func (n *fakeNetwork) Status(context.Context) error { return n.notReady }
func (n *fakeNetwork) Config() []byte               { return []byte(`{}`) }
func (n *fakeNetwork) Problem() error               { return nil }
func (n *fakeNetwork) SetPodCIDRs([]string) error   { return nil }
func (n *fakeNetwork) SetSysctls(netns string, sysctls map[string]string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.attached) == 0 {
		return errors.New("no interface yet")
	}
	n.sysctls = sysctls
	return n.failSysctls
}
func (n *fakeNetwork) GC(_ context.Context, valid func() ([]cni.Attachment, error)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.failGC) > 0 {
		err := n.failGC[0]
		n.failGC = n.failGC[1:]
		return err
	}
	held, err := valid()
	if err == nil {
		n.gcs++
		n.valid = held
	}
	return err
}

func (n *fakeNetwork) Cached(pod string) ([]cni.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cached[pod], nil
}

func (n *fakeNetwork) Plan(pod cni.Pod) ([]cni.Attachment, error) {
	return []cni.Attachment{{PodID: pod.ID, Network: "test", IfName: cni.IfName, Config: json.RawMessage(`{}`), CapabilityArgs: portMappings(pod)}}, nil
}

func (n *fakeNetwork) Add(ctx context.Context, as []cni.Attachment) ([]cni.Attachment, []string, error) {
	n.adds.Add(1)
	if n.slow != nil {
		select {
		case <-n.slow:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.failAdd) > 0 {
		err := n.failAdd[0]
		n.failAdd = n.failAdd[1:]
		var undo *cni.UndoError
		if errors.As(err, &undo) {
			n.attached[as[0].PodID] = true
		}
		return nil, nil, err
	}
	n.attached[as[0].PodID] = true
	n.next++
	ip := fmt.Sprintf("10.0.0.%d", n.next)
	as[0].Result = fmt.Appendf(nil, `{"cniVersion":"1.0.0","ips":[{"address":"%s/8"}]}`, ip)
	if n.cached == nil {
		n.cached = map[string][]cni.Attachment{}
	}
	n.cached[as[0].PodID] = as
	return as, []string{ip}, nil
}

func (n *fakeNetwork) Del(_ context.Context, as []cni.Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inDel != nil {
		n.inDel()
	}
	n.dels = append(n.dels, as...)
	if len(n.failDel) > 0 {
		err := n.failDel[0]
		n.failDel = n.failDel[1:]
		return err
	}
	for _, a := range as {
		delete(n.attached, a.PodID)
		delete(n.cached, a.PodID)
	}
	return nil
}

func (n *fakeNetwork) Owe(as []cni.Attachment, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range as {
		n.owed = append(n.owed, a.PodID)
		delete(n.attached, a.PodID)
	}
	return nil
}

func (n *fakeNetwork) left() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for id := range n.attached {
		ids = append(ids, id)
	}
	return ids
}

func TestTheLifeOfAPod(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	st := f.podStatus(pod)
	if st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip != "10.0.0.1" || st.Metadata.Name != "web" || st.CreatedAt == 0 {
		t.Fatalf("status %v", st)
	}
	c := f.startContainer(pod, "web", "main", "sleep", "1000")
	cs := f.containerStatus(c)
	if cs.State != runtimeapi.ContainerState_CONTAINER_RUNNING || cs.ImageId == "" || cs.ImageRef == "" || cs.StartedAt == 0 {
		t.Fatalf("status %v", cs)
	}
	reply, err := f.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"echo", "hi"}, Timeout: 5})
	if err != nil || string(reply.Stdout) != "hi\n" || reply.ExitCode != 0 {
		t.Fatalf("exec %v, %v", reply, err)
	}
	if _, err := f.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if st := f.containerStatus(c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.FinishedAt == 0 {
		t.Fatalf("status after the stop %v", st)
	}
	if _, err := f.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	if err := f.stopPod(pod); err != nil {
		t.Fatal(err)
	}
	if st := f.podStatus(pod); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Fatalf("state after the stop %v", st.State)
	}
	if err := f.removePod(pod); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft()
}

func TestAbsentObjectsHaveTheCodesThatTheKubeletKnows(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	pod := f.runPod("web")
	exited := f.startContainer(pod, "web", "done", "true")
	eventually(t, "the exit", func() error {
		if st := f.containerStatus(exited); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("%v", st.State)
		}
		return nil
	})
	r := f.runtime
	for _, row := range []struct {
		what string
		code codes.Code
		call func() error
	}{
		{"PodSandboxStatus", codes.NotFound, func() error {
			_, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "absent"})
			return err
		}},
		{"ContainerStatus", codes.NotFound, func() error {
			_, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "absent"})
			return err
		}},
		{"ContainerStats", codes.NotFound, func() error {
			_, err := r.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "absent"})
			return err
		}},
		{"PodSandboxStats", codes.NotFound, func() error {
			_, err := r.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "absent"})
			return err
		}},
		{"PodSandboxStats of the kubelet's probe", codes.InvalidArgument, func() error { _, err := r.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{}); return err }},
		{"StopPodSandbox", codes.OK, func() error { return f.stopPod("absent") }},
		{"RemovePodSandbox", codes.OK, func() error { return f.removePod("absent") }},
		{"StopContainer", codes.OK, func() error {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "absent"})
			return err
		}},
		{"RemoveContainer", codes.OK, func() error {
			_, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "absent"})
			return err
		}},
		{"StopContainer of an exited one", codes.OK, func() error {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: exited})
			return err
		}},
		{"StartContainer of an exited one", codes.FailedPrecondition, func() error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: exited})
			return err
		}},
		{"ReopenContainerLog of an exited one", codes.FailedPrecondition, func() error {
			_, err := r.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: exited})
			return err
		}},
		{"ExecSync in an exited one", codes.FailedPrecondition, func() error {
			_, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: exited, Cmd: []string{"true"}})
			return err
		}},
		{"StartContainer", codes.NotFound, func() error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "absent"})
			return err
		}},
		{"CreateContainer in an absent pod", codes.NotFound, func() error { _, err := f.create("absent", "web", "x", "true"); return err }},
		{"ExecSync without a command", codes.InvalidArgument, func() error { _, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: exited}); return err }},
		{"UpdateContainerResources without any", codes.InvalidArgument, func() error {
			_, err := r.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: exited})
			return err
		}},
		{"CheckpointPod", codes.Unimplemented, func() error { _, err := r.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{}); return err }},
		{"RestorePod", codes.Unimplemented, func() error { _, err := r.RestorePod(ctx, &runtimeapi.RestorePodRequest{}); return err }},
		{"CheckpointContainer", codes.Unimplemented, func() error {
			_, err := r.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: exited})
			return err
		}},
		{"RunPodSandbox with an unknown handler", codes.InvalidArgument, func() error {
			_, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("x"), RuntimeHandler: "absent"})
			return err
		}},
		{"PullImage without a reference", codes.InvalidArgument, func() error { _, err := f.images.PullImage(ctx, &runtimeapi.PullImageRequest{}); return err }},
	} {
		wantCode(t, row.what, row.call(), row.code)
	}
	if got, err := f.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "absent"}}); err != nil || got.Image != nil {
		t.Errorf("ImageStatus of an absent image: %v, %v", got, err)
	}
	if _, err := f.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "absent"}}); err != nil {
		t.Errorf("RemoveImage of an absent image: %v", err)
	}
	f.nothingLeft()
}

func TestEveryRPCIsAnsweredUnderBothServiceNames(t *testing.T) {
	f := newFixture(t)
	for _, version := range []string{"runtime.v1.", "runtime.v1alpha2."} {
		var got runtimeapi.VersionResponse
		if err := f.conn.Invoke(t.Context(), "/"+version+"RuntimeService/Version", &runtimeapi.VersionRequest{}, &got); err != nil || got.RuntimeName != "docker" {
			t.Errorf("%sVersion: %v, %v", version, &got, err)
		}
		var images runtimeapi.ListImagesResponse
		if err := f.conn.Invoke(t.Context(), "/"+version+"ImageService/ListImages", &runtimeapi.ListImagesRequest{}, &images); err != nil || len(images.Images) != 1 {
			t.Errorf("%sListImages: %v, %v", version, &images, err)
		}
	}
	// None is left to the generated Unimplemented stub.
	methods := 0
	for _, desc := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range desc.Methods {
			methods++
			if err := f.conn.Invoke(t.Context(), "/"+desc.ServiceName+"/"+m.MethodName, &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{}); err != nil && status.Convert(err).Message() == "method "+m.MethodName+" not implemented" {
				t.Errorf("%s is a stub", m.MethodName)
			}
		}
		methods += len(desc.Streams)
	}
	if methods != 43 {
		t.Errorf("%d RPCs; this test and docs/compatibility.md know 43", methods)
	}
}

// Rows: R10 (part)
func TestARepeatedRunPodSandboxGetsTheSamePod(t *testing.T) {
	f := newFixture(t)
	first := f.runPod("web")
	if second := f.runPod("web"); second != first {
		t.Errorf("the same request made another pod: %s, %s", first, second)
	}
	other := f.podConfig("web")
	other.Hostname = "other"
	_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: other})
	wantCode(t, "another config under the same metadata", err, codes.AlreadyExists)

	a, err := f.create(first, "web", "c", "sleep", "100")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := f.create(first, "web", "c", "sleep", "100"); err != nil || b != a {
		t.Errorf("the same CreateContainer: %s, %v; want %s", b, err, a)
	}
	_, err = f.create(first, "web", "c", "sleep", "200")
	wantCode(t, "another container config under the same metadata", err, codes.AlreadyExists)
	f.nothingLeft()
}

// R10: the caller's deadline passes during RunPodSandbox, and the retry comes.
func TestR10ACallerThatComesBackGetsThePodThatWasBegun(t *testing.T) {
	f := newFixture(t)
	f.network.slow = make(chan struct{})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := f.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("slow")})
		cancel()
		wantCode(t, "a call that ends early", err, codes.DeadlineExceeded)
	}
	close(f.network.slow)
	id := f.runPod("slow")
	if got := f.engine.PodIDs(); len(got) != 1 || string(got[0]) != id || f.network.adds.Load() != 1 {
		t.Errorf("pods %v with %d ADDs; want one, %s", got, f.network.adds.Load(), id)
	}
	f.nothingLeft()
}

// R11: failure at each stage of creation → full rollback; a failing undo → something that Stop and Remove can clear.
func TestR11EachFailingStepIsTakenBack(t *testing.T) {
	boom := errors.New("boom")
	for _, undoFails := range []bool{false, true} {
		for _, step := range []string{"CreatePod", "StartPod", "ADD"} {
			t.Run(fmt.Sprintf("%s, undo fails %v", step, undoFails), func(t *testing.T) {
				f := newFixture(t)
				switch step {
				case "ADD":
					f.network.failAdd = []error{boom}
				default:
					f.engine.FailOnce(step, boom)
				}
				if undoFails {
					f.engine.FailOnce("RemovePod", errors.New("undo boom"))
				}
				_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")})
				if err == nil {
					t.Fatal("no error")
				}
				list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
				if err != nil {
					t.Fatal(err)
				}
				if kept := undoFails && step != "CreatePod"; kept != (len(list.Items) == 1) {
					t.Fatalf("listed afterwards: %v", list.Items)
				}
				for _, p := range list.Items {
					if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
						t.Errorf("the leftover is %v", p.State)
					}
				}
				f.nothingLeft()
				f.runPod("web") // the key is free again
				f.nothingLeft()
			})
		}
	}
}

// Rows: R11
func TestAContainerThatCannotBeMadeIsTakenBack(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	f.engine.FailOnce("CreateContainer", errors.New("boom"))
	if _, err := f.create(pod, "web", "c", "true"); err == nil {
		t.Fatal("no error")
	}
	if got := f.store.Containers(); len(got) != 0 {
		t.Fatalf("left: %v", got)
	}
	if _, err := f.create(pod, "web", "c", "true"); err != nil {
		t.Fatalf("the retry: %v", err)
	}
	f.nothingLeft()
}

// R35, R38: a DEL that fails is retried by the next call; one that keeps failing is owed and no longer holds the pod.
func TestR38AFailingDELHoldsThePodOnlySoLong(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	f.network.failDel = []error{errors.New("plugin broken")}
	if err := f.stopPod(pod); err == nil {
		t.Fatal("the failing DEL was hidden")
	}
	if err := f.stopPod(pod); err != nil {
		t.Fatalf("the second stop: %v", err)
	}
	if err := f.removePod(pod); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft()

	pod = f.runPod("web")
	for range 2 * delTries {
		f.network.failDel = append(f.network.failDel, errors.New("plugin broken for ever"))
	}
	for range delTries - 1 {
		if err := f.removePod(pod); err == nil {
			t.Fatal("removed before the DEL was owed")
		}
	}
	if err := f.removePod(pod); err != nil {
		t.Fatalf("the last try: %v", err)
	}
	if !slices.Contains(f.network.owed, pod) {
		t.Error("the DEL was forgotten")
	}
	f.network.failDel = nil
	f.nothingLeft()
}

// Few calls come where the kubelet waits longer and longer between them.
func TestADELThatFailsForLongIsOwedAfterFewTries(t *testing.T) {
	after := delAfter
	delAfter = 50 * time.Millisecond
	t.Cleanup(func() { delAfter = after })
	f := newFixture(t)
	pod := f.runPod("web")
	for range delTries {
		f.network.failDel = append(f.network.failDel, errors.New("plugin broken for ever"))
	}
	if err := f.removePod(pod); err != nil { // else it took that long itself
		time.Sleep(delAfter)
		if err := f.removePod(pod); err != nil {
			t.Errorf("the second try: %v", err)
		}
	}
	if !slices.Contains(f.network.owed, pod) {
		t.Error("the DEL is not owed")
	}
	f.network.failDel = nil
	f.nothingLeft()
}

// Rows: R01 (part)
func TestRestartKeepsEverything(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	running := f.startContainer(pod, "web", "run", "sleep", "1000")
	exited := f.startContainer(pod, "web", "exit", "exit", "7")
	eventually(t, "the exit", func() error {
		if st := f.containerStatus(exited); st.ExitCode != 7 {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
	before := []any{f.podStatus(pod).String(), f.containerStatus(running).String(), f.containerStatus(exited).String()}
	f.restart()
	after := []any{f.podStatus(pod).String(), f.containerStatus(running).String(), f.containerStatus(exited).String()}
	for i := range before {
		if before[i] != after[i] {
			t.Errorf("before %v\nafter  %v", before[i], after[i])
		}
	}
	f.nothingLeft()
}

// Rows: R06 (part)
func TestWhileTheEngineIsAwayNothingStaleIsListed(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	f.startContainer(pod, "web", "run", "sleep", "1000")
	f.engine.SetHealth(false)
	eventually(t, "RuntimeReady=false", func() error {
		st, err := f.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		if c := st.Status.Conditions[0]; c.Status || c.Reason == "" {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	// The in-memory engine's processes have no pid: nothing can be confirmed.
	_, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	wantCode(t, "ListContainers", err, codes.Unavailable)
	_, err = f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	wantCode(t, "ListPodSandbox", err, codes.Unavailable)
	_, err = f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("new")})
	wantCode(t, "RunPodSandbox", err, codes.Unavailable)
	f.engine.SetHealth(true)
	eventually(t, "the list is back", func() error {
		list, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err == nil && len(list.Containers) != 1 {
			err = fmt.Errorf("%v", list)
		}
		return err
	})
	f.nothingLeft()
}

func TestNetworkNotReadyRefusesOnlyPodsThatNeedIt(t *testing.T) {
	f := newFixture(t)
	f.network.notReady = fmt.Errorf("no CNI configuration in /etc/cni/net.d: %w", errdefs.ErrUnavailable)
	_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")})
	wantCode(t, "a pod with a network of its own", err, codes.Unavailable)
	host := f.podConfig("host")
	host.Hostname = ""
	host.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
	if _, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: host}); err != nil {
		t.Errorf("a pod on the host's network: %v", err)
	}
	f.nothingLeft()
}

func TestEventsTellTheLifeOfAContainer(t *testing.T) {
	f := newFixture(t)
	next := f.events()
	pod := f.runPod("web")
	c := f.startContainer(pod, "web", "main", "true")
	var got []runtimeapi.ContainerEventType
	for len(got) < 3 {
		ev := next()
		if ev.ContainerId == c {
			got = append(got, ev.ContainerEventType)
			if ev.PodSandboxStatus.GetId() != pod || len(ev.ContainersStatuses) != 1 {
				t.Errorf("event %v without its statuses", ev)
			}
		}
	}
	want := []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	f.nothingLeft()
}

// Rows: R43 (part)
func TestStreamedListsAreTheLists(t *testing.T) {
	f := newFixture(t)
	const pods = 2*streamPart + 1
	for i := range pods {
		f.runPod(fmt.Sprintf("p%d", i))
	}
	stream, err := f.runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for {
		part, err := stream.Recv()
		if err != nil {
			break
		}
		for _, p := range part.PodSandboxes {
			if seen[p.Id] {
				t.Errorf("%s twice", p.Id)
			}
			seen[p.Id] = true
		}
	}
	if len(seen) != pods {
		t.Errorf("%d of %d pods", len(seen), pods)
	}
	f.nothingLeft()
}

// What is streamed as it is too long for a message is so whatever the items have: a pod's statistics have those of all its containers.
func TestStreamedStatisticsOfLongLabelsFitIntoMessages(t *testing.T) {
	f := newFixture(t)
	const pods, containers = 6, 6
	want := map[string]int{}
	for i := range pods {
		name := fmt.Sprintf("p%d", i)
		pod := f.runPod(name)
		want[pod] = containers
		for j := range containers {
			config := containerConfig(fmt.Sprintf("c%d", j), "sleep", "100")
			config.Annotations = map[string]string{"long": strings.Repeat("x", 500<<10)}
			made, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: f.podConfig(name)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
				t.Fatal(err)
			}
		}
	}
	stream, err := f.runtime.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{}, grpc.MaxCallRecvMsgSize(maxMessageSize))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range part.PodSandboxStats {
			seen[p.Attributes.Id] += len(p.Linux.Containers)
		}
	}
	if !maps.Equal(seen, want) {
		t.Errorf("statistics of %v containers by pod, want %v", seen, want)
	}
	f.nothingLeft()
}

// S53: a panic in a handler is that call's error only.
func TestS53APanicIsOneCallsError(t *testing.T) {
	c := newCalls(prometheus.NewRegistry(), func(string) error { return nil })
	_, err := c.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/x/Y"}, func(context.Context, any) (any, error) { panic("boom") })
	wantCode(t, "a panic", err, codes.Internal)
}

// panicking is an engine with a bug in one method.
type panicking struct {
	engine.Engine
	in atomic.Pointer[string]
}

func (p *panicking) hit(method string) {
	if in := p.in.Load(); in != nil && *in == method {
		panic("a bug")
	}
}

func (p *panicking) StopContainer(ctx context.Context, id engine.ContainerID, grace time.Duration) error {
	p.hit("StopContainer")
	return p.Engine.StopContainer(ctx, id, grace)
}

func (p *panicking) StopPod(ctx context.Context, id engine.PodID) error {
	p.hit("StopPod")
	return p.Engine.StopPod(ctx, id)
}

func (p *panicking) RemoveContainer(ctx context.Context, id engine.ContainerID) error {
	p.hit("RemoveContainer")
	return p.Engine.RemoveContainer(ctx, id)
}

// The end of a pod is work of several goroutines, of which a panic would end the daemon.
//
// Rows: S53 (part)
func TestAPanicWhileAPodEndsIsTheCallsError(t *testing.T) {
	for _, method := range []string{"StopContainer", "StopPod", "RemoveContainer", "Del"} {
		t.Run(method, func(t *testing.T) {
			f := newFixture(t)
			f.stop()
			bug := &panicking{}
			f.wrap = func(e engine.Engine) engine.Engine { bug.Engine = e; return bug }
			f.start()
			f.network.inDel = func() { bug.hit("Del") }
			pod := f.runPod("web")
			f.startContainer(pod, "web", "main", "run")
			bug.in.Store(&method)
			end := func() error {
				_, stopErr := f.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
				_, err := f.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
				if stopErr != nil {
					return stopErr
				}
				return err
			}
			wantCode(t, "an end with a bug in it", end(), codes.Internal)
			if _, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil {
				t.Errorf("the daemon after that: %v", err)
			}
			bug.in.Store(nil)
			if err := end(); err != nil {
				t.Error(err)
			}
			f.nothingLeft()
		})
	}
}

// S52: what is larger than a message is refused before it is read whole.
func TestS52AnOversizeMessageIsRefused(t *testing.T) {
	f := newFixture(t)
	cfg := f.podConfig("big")
	cfg.Annotations = map[string]string{"a": string(make([]byte, maxMessageSize))}
	_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	wantCode(t, "17 MiB", err, codes.ResourceExhausted)
	cfg.Annotations = map[string]string{"a": string(make([]byte, 1<<20))}
	_, err = f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	wantCode(t, "1 MiB of annotations", err, codes.InvalidArgument)
	f.nothingLeft()
}

// Rows: R12 (part)
func TestConcurrentStopsOfOnePodAllSucceed(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	f.startContainer(pod, "web", "main", "sleep", "1000")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := f.stopPod(pod); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f.nothingLeft()
}

// Rows: R12 (part)
func TestOfManyStartsOneSucceeds(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	id, err := f.create(pod, "web", "main", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	var started atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
				started.Add(1)
			} else {
				wantCode(t, "another start", err, codes.FailedPrecondition)
			}
		})
	}
	wg.Wait()
	if started.Load() != 1 {
		t.Errorf("%d starts succeeded", started.Load())
	}
	f.nothingLeft()
}
