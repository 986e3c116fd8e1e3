package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

func TestVersionStatusAndRuntimeConfig(t *testing.T) {
	n := node(t)
	version, err := n.Shim.Runtime.Version(ctx(t), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	api := "v1"
	if runtimeName() == "docker" {
		api = "1.41.0" // kubelets up to 1.23 compare it with versions of the Docker API
	}
	if version.RuntimeName != runtimeName() || version.RuntimeApiVersion != api || version.RuntimeVersion == "" {
		t.Errorf("version %v", version)
	}
	status, err := n.Shim.Runtime.Status(ctx(t), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Info) == 0 {
		t.Error("the verbose status has no info")
	}
	for key, value := range status.Info {
		if !json.Valid([]byte(value)) {
			t.Errorf("info %s is no JSON: crictl prints it raw", key)
		}
	}
	if !slices.ContainsFunc(status.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == "" }) {
		t.Errorf("runtime handlers %v have no default one", status.RuntimeHandlers)
	}
	config, err := n.Shim.Runtime.RuntimeConfig(ctx(t), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || config.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("runtime config %v, %v; want cgroupfs", config, err)
	}
	if _, err := n.Shim.Runtime.UpdateRuntimeConfig(ctx(t), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "198.18.77.0/24"}}}); err != nil {
		t.Errorf("UpdateRuntimeConfig: %v", err)
	}
}

// Kubelets up to 1.25 speak runtime.v1alpha2.
func TestOldServiceNamesAreTheSameService(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "alpha")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	version, err := n.Shim.AlphaRuntime.Version(ctx(t), &runtimeapi.VersionRequest{})
	if err != nil || version.Version == "" || version.RuntimeName != runtimeName() {
		t.Fatalf("version %v, %v", version, err)
	}
	list, err := n.Shim.AlphaRuntime.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != c.ID {
		t.Errorf("ListContainers: %v, %v", list, err)
	}
	if images, err := n.Shim.AlphaImages.ListImages(ctx(t), &runtimeapi.ListImagesRequest{}); err != nil || len(images.Images) == 0 {
		t.Errorf("ListImages: %v, %v", images, err)
	}
	config := n.PodConfig("alpha-pod")
	n.PreparePod(t, config)
	reply, err := n.Shim.AlphaRuntime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Shim.AlphaRuntime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: reply.PodSandboxId}); err != nil {
		t.Error(err)
	}
	_, err = n.Shim.AlphaRuntime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: reply.PodSandboxId})
	wantCode(t, "status of a removed pod", err, codes.NotFound)
}

func TestVerboseStatusHasWhatPeopleLookFor(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "verbose")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	ofPod, err := n.Shim.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	ofContainer, err := n.Shim.Runtime.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(n.HostPID(t, c.ID))
	for what, info := range map[string]map[string]string{"pod": ofPod.Info, "container": ofContainer.Info} {
		if !json.Valid([]byte(info["info"])) || !strings.Contains(info["info"], `"pid"`) {
			t.Errorf("the %s's info has no pid: %v", what, info)
		}
	}
	if !strings.Contains(ofContainer.Info["info"], pid) {
		t.Errorf("the container's info does not name process %s: %s", pid, ofContainer.Info["info"])
	}
	if quiet, err := n.Shim.Runtime.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID}); err != nil || len(quiet.Info) != 0 {
		t.Errorf("info without verbose: %v, %v", quiet.GetInfo(), err)
	}
}

func TestContainerEventsTellALife(t *testing.T) {
	n := node(t)
	stream, err := n.Shim.Runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan *runtimeapi.ContainerEventResponse, 100)
	go func() {
		defer close(events)
		for {
			event, err := stream.Recv()
			if err != nil {
				return // the test is over
			}
			events <- event
		}
	}()
	before := map[string]bool{}
	harness.Eventually(t, time.Minute, "an event", func() error { // the subscription has no answer of its own
		if len(events) > 0 {
			return nil
		}
		first := n.RunPod(t, "subscribed")
		first.Remove()
		before[first.ID] = true
		return errors.New("there is none")
	})
	pod := n.RunPod(t, "events")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	c.Stop(5)
	c.Remove()
	pod.Remove()
	want := []struct {
		id   string
		kind runtimeapi.ContainerEventType
	}{
		{pod.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT},
		{pod.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT},
		{c.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT},
		{c.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT},
		{c.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT},
		{c.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT},
		{pod.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT},
		{pod.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT},
	}
	limit := time.After(time.Minute)
	for i := 0; i < len(want); {
		select {
		case event, open := <-events:
			if !open {
				t.Fatalf("the stream ended before event %d, %v of %.12s", i, want[i].kind, want[i].id)
			}
			if event.CreatedAt == 0 {
				t.Errorf("event without a time: %v", event)
			}
			if before[event.ContainerId] {
				continue
			}
			if event.ContainerId != want[i].id || event.ContainerEventType != want[i].kind {
				t.Fatalf("event %d is %v of %.12s, want %v of %.12s", i, event.ContainerEventType, event.ContainerId, want[i].kind, want[i].id)
			}
			i++
		case <-limit:
			t.Fatalf("event %d, %v of %.12s, did not come", i, want[i].kind, want[i].id)
		}
	}
}

// Rows: S68
func TestCheckpointIsUnimplemented(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "checkpoint")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), forever)
	_, err := n.Shim.Runtime.CheckpointContainer(ctx(t), &runtimeapi.CheckpointContainerRequest{ContainerId: c.ID, Location: t.TempDir() + "/archive"})
	wantCode(t, "CheckpointContainer", err, codes.Unimplemented)
}

func TestMetricsAndHealth(t *testing.T) {
	n := node(t)
	if got := n.Shim.Get("/healthz"); !strings.Contains(strings.ToLower(got), "ok") {
		t.Errorf("/healthz says %q", got)
	}
	if got := n.Shim.Get("/metrics"); !strings.Contains(got, "crishim_") || !strings.Contains(got, "go_goroutines") {
		t.Errorf("/metrics has neither the daemon's nor Go's own:\n%.500s", got)
	}
}

// Rows: S65 (part)
func TestSocketIsRootsAlone(t *testing.T) {
	n := node(t)
	info, err := os.Stat(n.Shim.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o660 {
		t.Errorf("mode %o, want 660", mode)
	}
}

func TestCommands(t *testing.T) {
	n := node(t)
	if out, code := n.Shim.Command("version"); code != 0 || out == "" {
		t.Errorf("version: status %d, %q", code, out)
	}
	if out, code := n.Shim.Command("config", "--config", n.Shim.ConfigFile); code != 0 || !strings.Contains(out, n.Shim.Socket) {
		t.Errorf("config: status %d, %q", code, out)
	}
	if out, code := n.Shim.Command("serve", "--config", "/no/such/file"); code == 0 {
		t.Errorf("serve without its file succeeded: %q", out)
	}
	bad := t.TempDir() + "/bad.toml"
	if err := os.WriteFile(bad, []byte("no_such_key = 1\n[streaming]\naddress = \"nowhere\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := n.Shim.Command("serve", "--config", bad); code == 0 || !strings.Contains(out, "no_such_key") || !strings.Contains(out, "streaming") {
		t.Errorf("both mistakes are to be named: status %d, %q", code, out)
	}
	if out, code := n.Shim.Command("no-such-command"); code == 0 {
		t.Errorf("an unknown command succeeded: %q", out)
	}
}

func TestCheckPasses(t *testing.T) {
	n := node(t)
	out, code := n.Shim.Command("check", "--endpoint", "unix://"+n.Shim.Socket)
	if code != 0 || strings.Contains(out, "FAIL") || !strings.Contains(out, "PASS") {
		t.Errorf("status %d:\n%s", code, out)
	}
	if out, code := n.Shim.Command("check", "--endpoint", "unix:///no/such.sock"); code == 0 {
		t.Errorf("check of an absent socket passes:\n%s", out)
	}
}
