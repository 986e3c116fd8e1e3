package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/internal/rowsize"
	"crishim/state"
)

// TestPeerFaultNN, here and in the packages where the behaviour lives, are the faults that were seen in cri-dockerd, by
// number, each as what this daemon does instead.

// 01: a corrupt checkpoint was never recognised as one, so each list logged it again and left the pod out.
// Rows: R21
func TestPeerFault01ACorruptRecordIsSetAsideOnceAndItsPodServed(t *testing.T) {
	log := captureLog(t, 2)
	f := newFixture(t)
	pod, other := f.runPod("web"), f.runPod("other")
	c := f.startContainer(pod, "web", "main", "sleep", "1000")
	before := f.podStatus(pod)
	f.stop()
	f.corruptRecord("pods", "uid-web")
	f.start()
	for range 5 {
		list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(list.Items) != 2 || list.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_READY || list.Items[1].State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Fatalf("listed %v, %v; want %s and %s, both ready", list, err, pod, other)
		}
	}
	if n := log.count("A record is not served"); n != 1 {
		t.Errorf("the bad record was logged %d times", n)
	}
	if q := f.store.Quarantined(); len(q) != 1 {
		t.Errorf("quarantined %+v", q)
	}
	if st := f.podStatus(pod); st.Network.GetIp() != before.Network.Ip || st.Metadata.Uid != "uid-web" {
		t.Errorf("status %v, before %v", st, before)
	}
	if st := f.containerStatus(c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("its container is %v", st.State)
	}
	// What was rebuilt is a record again.
	f.restart()
	if st := f.podStatus(pod); st.Network.GetIp() != before.Network.Ip {
		t.Errorf("after another restart %v", st)
	}
	f.nothingLeft()
}

// 02: the first call after a corrupt checkpoint deleted it, and the next ran DEL without port mappings.
func TestPeerFault02TheNetworkOfAPodWithoutARecordIsDetachedAsItWasAttached(t *testing.T) {
	f := newFixture(t)
	cfg := f.podConfig("web")
	cfg.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}}
	resp, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.corruptRecord("pods", "uid-web")
	f.start()
	f.network.failDel = []error{errors.New("plugin broken")}
	if err := f.stopPod(resp.PodSandboxId); err == nil {
		t.Fatal("the failing DEL was hidden")
	}
	if err := f.stopPod(resp.PodSandboxId); err != nil {
		t.Fatal(err)
	}
	if dels := f.network.dels; len(dels) != 2 || !strings.Contains(string(dels[0].CapabilityArgs["portMappings"]), "8080") ||
		!strings.Contains(string(dels[1].CapabilityArgs["portMappings"]), "8080") {
		t.Errorf("DELs %+v", dels)
	}
	f.nothingLeft()
}

// 03: StopPodSandbox failed while no CNI configuration was loaded, and pods hung in Terminating.
func TestPeerFault03APodStopsWhileNoNetworkIsConfigured(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	f.network.notReady = fmt.Errorf("no CNI configuration: %w", errdefs.ErrUnavailable)
	if err := errors.Join(f.stopPod(pod), f.removePod(pod)); err != nil {
		t.Fatal(err)
	}
	if len(f.network.dels) != 1 {
		t.Errorf("%d DELs", len(f.network.dels))
	}
	f.nothingLeft()
}

// 04: a shadowed error marked the network ready after CNI had failed.
// Rows: R11
func TestPeerFault04APodWhoseMakingFailedIsNeverReady(t *testing.T) {
	for _, step := range []string{"CreatePod.after", "StartPod", "StartPod.after", "ADD", "ADD half done"} {
		t.Run(step, func(t *testing.T) {
			f := newFixture(t)
			boom := errors.New("boom")
			switch step {
			case "ADD":
				f.network.failAdd = []error{boom}
			case "ADD half done":
				f.network.failAdd = []error{&cni.UndoError{Err: boom}}
				f.network.failDel = []error{boom}
			default:
				f.engine.FailOnce(step, boom)
			}
			f.engine.FailOnce("RemovePod", boom) // so that something stays to be looked at
			if _, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")}); err == nil {
				t.Fatal("no error")
			}
			for _, restart := range []bool{false, true} {
				if restart {
					f.restart()
				}
				list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range list.Items {
					reply, err := f.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
					if restart && status.Code(err) == codes.NotFound {
						continue // a restarted daemon takes it back by itself
					}
					if st := reply.GetStatus(); err != nil || p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || st.State != p.State || st.Network.GetIp() != "" {
						t.Errorf("restarted %v: %v, %v", restart, st, err)
					}
				}
				for _, p := range f.store.Pods() {
					if p.Phase == state.PhaseRunning || len(p.Network.IPs) > 0 {
						t.Errorf("restarted %v: it counts as made: %+v", restart, p.Pod)
					}
				}
			}
			f.nothingLeft()
		})
	}
}

// 05: a command that outlived its timeout went on, with its goroutine and connection.
// Rows: S51
func TestPeerFault05AnExecIsEndedAtItsTimeout(t *testing.T) {
	f := newFixture(t)
	c := f.startContainer(f.runPod("web"), "web", "main", "sleep", "1000")
	exec := func() {
		start := time.Now()
		_, err := f.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep", "1000"}, Timeout: 1})
		if took := time.Since(start); took < time.Second || took > 30*time.Second {
			t.Errorf("a timeout of 1 s took %s", took)
		}
		wantCode(t, "ExecSync", err, codes.DeadlineExceeded)
	}
	exec()
	before := runtime.NumGoroutine()
	var probes sync.WaitGroup
	for range rowsize.Of(50, 1000) {
		probes.Go(exec)
	}
	probes.Wait()
	goroutinesFallTo(t, before+5)
	f.nothingLeft()
}

// 10: the state was read from Docker's text, and a filter it did not know was passed on to Docker.
func TestPeerFault10EveryStateCanBeAskedForAndNothingElseIsListed(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	ids := map[runtimeapi.ContainerState]string{runtimeapi.ContainerState_CONTAINER_RUNNING: f.startContainer(pod, "web", "run", "sleep", "1000")}
	var err error
	if ids[runtimeapi.ContainerState_CONTAINER_CREATED], err = f.create(pod, "web", "made", "true"); err != nil {
		t.Fatal(err)
	}
	done := f.startContainer(pod, "web", "done", "true")
	ids[runtimeapi.ContainerState_CONTAINER_EXITED] = done
	f.waitExit(done)
	for value, name := range runtimeapi.ContainerState_name {
		state := runtimeapi.ContainerState(value)
		list, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{
			Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: state}}})
		var got []string
		for _, c := range list.GetContainers() {
			got = append(got, c.Id)
		}
		var want []string
		if ids[state] != "" {
			want = []string{ids[state]}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	f.nothingLeft()
}

// 12: calls dropped their caller's context, so a hung engine piled up goroutines for two minutes each.
// Rows: R08
func TestPeerFault12ACallerLeavesAHungEngineAtItsDeadline(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	c := f.startContainer(pod, "web", "main", "sleep", "1000")
	made, err := f.create(pod, "web", "made", "true")
	if err != nil {
		t.Fatal(err)
	}
	r := f.runtime
	steps := []struct {
		step string
		call func(ctx context.Context) error
	}{
		{"StartContainer", func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made})
			return err
		}},
		{"RemoveContainer", func(ctx context.Context) error {
			_, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: made})
			return err
		}},
		{"UpdateContainer", func(ctx context.Context) error {
			_, err := r.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 5}})
			return err
		}},
		{"Exec", func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"true"}})
			return err
		}},
		{"ReopenLog", func(ctx context.Context) error {
			_, err := r.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c})
			return err
		}},
		{"Image", func(ctx context.Context) error {
			_, err := f.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
			return err
		}},
		{"PullImage", func(ctx context.Context) error {
			_, err := f.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
			return err
		}},
		// Late: a call that the release below still finds on the server goes through with it.
		{"StopContainer", func(ctx context.Context) error {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 3600})
			return err
		}},
		{"StopPod", func(ctx context.Context) error {
			_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}},
	}
	before := runtime.NumGoroutine()
	for _, row := range steps {
		step, call := row.step, row.call
		release := f.engine.Block(step)
		reached := f.engine.Calls(step)
		// On a busy machine a deadline may pass before the engine is reached.
		for limit := 100 * time.Millisecond; f.engine.Calls(step) == reached && limit < time.Minute; limit *= 4 {
			var callers sync.WaitGroup
			for range 5 {
				callers.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					defer cancel()
					wantCode(t, step, call(ctx), codes.DeadlineExceeded)
				})
			}
			callers.Wait()
		}
		if f.engine.Calls(step) == reached {
			t.Errorf("%s was not reached", step)
		}
		// Goroutines are counted while the engine still hangs: the calls themselves must have ended.
		goroutinesFallTo(t, before+5)
		release()
	}
	f.nothingLeft()
}

// 13: statistics were asked of Docker, without a limit in time.
// Rows: R08
func TestPeerFault13StatisticsAskTheEngineNothing(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	c := f.startContainer(pod, "web", "main", "sleep", "1000")
	steps := []string{"PodStatus", "ContainerStatus", "ListImages", "Image", "Exec"}
	for _, step := range steps {
		defer f.engine.Block(step)()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r := f.runtime
	for name, call := range map[string]func() error{
		"ContainerStats": func() error {
			_, err := r.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c})
			return err
		},
		"ListContainerStats": func() error { _, err := r.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}); return err },
		"PodSandboxStats": func() error {
			_, err := r.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
			return err
		},
		"ListPodSandboxStats": func() error {
			_, err := r.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		},
		"ListPodSandboxMetrics": func() error {
			_, err := r.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		},
		"ListMetricDescriptors": func() error {
			_, err := r.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
			return err
		},
		"ListContainers": func() error { _, err := r.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err },
		"ListPodSandbox": func() error { _, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err },
		"verbose PodSandboxInfo": func() error {
			_, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
			return err
		},
	} {
		calls := func() (n int) {
			for _, step := range steps {
				n += f.engine.Calls(step)
			}
			return n
		}
		before := calls()
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := calls() - before; n != 0 {
			t.Errorf("%s asked the engine %d times", name, n)
		}
	}
}

// 08: a filtered list of statistics made the collector forget every other container.
// 07: the size of a writable layer was taken for granted.
func TestPeerFault08AFilteredListOfStatisticsDisturbsNoOther(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	a, b := f.startContainer(pod, "web", "a", "sleep", "1000"), f.startContainer(pod, "web", "b", "sleep", "1000")
	list := func(filter *runtimeapi.ContainerStatsFilter) (ids []string) {
		t.Helper()
		resp, err := f.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range resp.Stats {
			ids = append(ids, st.Attributes.Id)
			if st.WritableLayer.GetUsedBytes() != nil {
				t.Errorf("a size out of nothing: %v", st.WritableLayer)
			}
		}
		return ids
	}
	all := []string{a, b}
	var readers sync.WaitGroup
	for range 10 {
		readers.Go(func() {
			if got := list(&runtimeapi.ContainerStatsFilter{Id: a}); !slices.Equal(got, []string{a}) {
				t.Errorf("filtered: %v", got)
			}
			if got := list(nil); !slices.Equal(got, all) {
				t.Errorf("all: %v, want %v", got, all)
			}
		})
	}
	readers.Wait()
	f.nothingLeft()
}

// 15: trace logs held whole requests, secrets included.
// Rows: S33
func TestPeerFault15NoSecretIsLogged(t *testing.T) {
	log := captureLog(t, 10)
	const secret = "s3cr3t-canary"
	f := newFixture(t)
	pod := f.runPod("web")
	cfg := containerConfig("main", "sleep", "1000")
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte(secret)}}
	cfg.Args = []string{"--password=" + secret}
	req := &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: cfg, SandboxConfig: f.podConfig("web")}
	f.engine.FailOnce("CreateContainer", errors.New("boom"))
	_, failed := f.runtime.CreateContainer(t.Context(), req)
	resp, err := f.runtime.CreateContainer(t.Context(), req)
	if failed == nil || err != nil {
		t.Fatalf("%v, %v", failed, err)
	}
	if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId}); err != nil {
		t.Fatal(err)
	}
	_, exec := f.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: resp.ContainerId, Cmd: []string{"sleep", "1000", secret}, Timeout: 1})
	_, pull := f.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "absent.example/app"}, Auth: &runtimeapi.AuthConfig{Username: "u", Password: secret, IdentityToken: secret}})
	bad := containerConfig("bad", "true")
	bad.Envs = []*runtimeapi.KeyValue{{Key: "A=B", Value: []byte(secret)}}
	_, refused := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: bad, SandboxConfig: f.podConfig("web")})
	for _, err := range []error{failed, exec, pull, refused} {
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("error %v", err)
		}
	}
	f.restart()
	f.nothingLeft()
	if log.count("Answered") == 0 || log.count("Call failed") == 0 {
		t.Error("nothing was logged at level 10: the test looks in the wrong place")
	}
	if n := log.count(secret); n > 0 {
		t.Errorf("the log holds the secret %d times", n)
	}
}

// 16: an engine that was down at the start ended the daemon.
// Rows: R09
func TestPeerFault16AnEngineThatIsDownAtTheStartIsWaitedFor(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	f.stop()
	f.engine.SetHealth(false)
	f.begin()
	_, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	wantCode(t, "a list before the engine was there", err, codes.Unavailable)
	st, err := f.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || st.Status.Conditions[0].Status || st.Status.Conditions[0].Reason == "" {
		t.Errorf("status %v, %v", st, err)
	}
	if _, err := f.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("version: %v", err)
	}
	f.engine.SetHealth(true)
	f.waitRecovered()
	if st := f.podStatus(pod); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", st.State)
	}
	f.nothingLeft()
}

// corruptRecord spoils the one record of the kind that holds the text.
func (f *fixture) corruptRecord(kind, text string) {
	f.t.Helper()
	files, err := filepath.Glob(filepath.Join(f.root, "root", kind, "*"))
	if err != nil {
		f.t.Fatal(err)
	}
	spoilt := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.t.Fatal(err)
		}
		if !bytes.Contains(data, []byte(text)) {
			continue
		}
		spoilt++
		if err := os.WriteFile(file, data[:len(data)/2], 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	if spoilt != 1 {
		f.t.Fatalf("%d of %v hold %q", spoilt, files, text)
	}
}

func (f *fixture) waitExit(container string) {
	f.t.Helper()
	eventually(f.t, "the exit", func() error {
		if st := f.containerStatus(container); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("%v", st.State)
		}
		return nil
	})
}

func goroutinesFallTo(t *testing.T, most int) {
	t.Helper()
	eventually(t, "goroutines end", func() error {
		if n := runtime.NumGoroutine(); n > most {
			return fmt.Errorf("%d, want at most %d", n, most)
		}
		return nil
	})
}

// captureLog catches what is logged up to level until the test ends. It comes before newFixture, so that nobody logs
// while the log is switched.
func captureLog(t *testing.T, level int) *logBuffer {
	t.Helper()
	before := klog.CaptureState()
	t.Cleanup(before.Restore)
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"logtostderr": "false", "alsologtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true", "v": fmt.Sprint(level)} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	log := &logBuffer{}
	klog.SetOutput(log)
	return log
}

type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) count(text string) int {
	klog.Flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Count(b.text.Bytes(), []byte(text))
}

// portMappings is what the fake network's capability arguments hold of a pod's ports.
func portMappings(pod cni.Pod) map[string]json.RawMessage {
	data, _ := json.Marshal(pod.Ports)
	return map[string]json.RawMessage{"portMappings": data}
}
