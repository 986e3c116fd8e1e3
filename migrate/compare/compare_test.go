package compare

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shim is a CRI server with fixed answers.
type shim struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	name       string
	pods       []*runtimeapi.PodSandboxStatus
	containers []*runtimeapi.ContainerStatus
	images     []*runtimeapi.Image
}

func (s *shim) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: s.name, RuntimeVersion: s.name}, nil
}

func (s *shim) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r := &runtimeapi.ListPodSandboxResponse{}
	for _, p := range s.pods {
		r.Items = append(r.Items, &runtimeapi.PodSandbox{Id: p.Id, Metadata: p.Metadata})
	}
	return r, nil
}

func (s *shim) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	for _, p := range s.pods {
		if p.Id == r.PodSandboxId {
			return &runtimeapi.PodSandboxStatusResponse{Status: p}, nil
		}
	}
	return nil, nil
}

func (s *shim) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r := &runtimeapi.ListContainersResponse{}
	for _, c := range s.containers {
		r.Containers = append(r.Containers, &runtimeapi.Container{Id: c.Id, Metadata: c.Metadata})
	}
	return r, nil
}

func (s *shim) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	for _, c := range s.containers {
		if c.Id == r.ContainerId {
			return &runtimeapi.ContainerStatusResponse{Status: c}, nil
		}
	}
	return nil, nil
}

func (s *shim) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: s.images}, nil
}

// serve answers under runtime.v1, or under v1alpha2 alone.
func (s *shim) serve(t *testing.T, old bool) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	for _, desc := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		if old {
			desc.ServiceName = strings.Replace(desc.ServiceName, "runtime.v1.", "runtime.v1alpha2.", 1)
		}
		g.RegisterService(&desc, s)
	}
	go func() { _ = g.Serve(listener) }()
	t.Cleanup(g.Stop)
	return "unix://" + socket
}

func newShim() *shim {
	created := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	return &shim{
		name: "docker",
		pods: []*runtimeapi.PodSandboxStatus{{
			Id: "p1", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u"}, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: created,
			Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.1.0.2"}, Labels: map[string]string{"app": "web"},
		}},
		containers: []*runtimeapi.ContainerStatus{{
			Id: "c1", Metadata: &runtimeapi.ContainerMetadata{Name: "server"}, State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: created, StartedAt: created,
			Image: &runtimeapi.ImageSpec{Image: "web:1"}, ImageRef: "docker-pullable://web@sha256:1",
			Mounts: []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/x"}, {ContainerPath: "/b", HostPath: "/y"}},
		}},
		images: []*runtimeapi.Image{{Id: "sha256:1", RepoTags: []string{"web:1", "web:2"}}},
	}
}

// What dockershim says of a pod is what we say, but for what the kubelet does not decide by.
func TestHarmlessDifferencesAreTold(t *testing.T) {
	was, is := newShim(), newShim()
	was.containers[0].FinishedAt = time.Time{}.UnixNano() // dockershim's
	is.containers[0].ImageRef, is.containers[0].ImageId = "sha256:1", "sha256:1"
	is.containers[0].Mounts[0], is.containers[0].Mounts[1] = is.containers[0].Mounts[1], is.containers[0].Mounts[0]
	is.images[0].RepoTags = []string{"web:2", "web:1"}
	is.pods[0].RuntimeHandler = "runc"
	for s, started := range map[*shim]int64{was: 20, is: 10} { // it ended at once
		s.containers = append(s.containers, &runtimeapi.ContainerStatus{Id: "c2", Metadata: &runtimeapi.ContainerMetadata{Name: "brief"},
			State: runtimeapi.ContainerState_CONTAINER_EXITED, CreatedAt: 5, StartedAt: started, FinishedAt: 10})
	}
	r, err := Endpoints(t.Context(), was.serve(t, true), is.serve(t, false))
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, d := range r.Differences {
		told = append(told, d.Field)
	}
	if !r.Same() || r.Pods != 1 || r.Containers != 2 || r.Images != 1 || strings.Join(told, " ") != "image_id image_ref started_at runtime_handler" {
		t.Errorf("result %+v", r)
	}
}

// A node has a container that could not start, one that somebody restarted by Docker, or a pod whose pause container was killed: the
// kubelet does nothing about what the two tell of those, so the switch must not be refused.
func TestWhatNoKubeletReadsInAStateDoesNotDecide(t *testing.T) {
	for field, change := range map[string]func(was, is *shim){
		"reason": func(was, is *shim) {
			for s, reason := range map[*shim]string{was: "ContainerCannotRun", is: "StartError"} {
				c := s.containers[0]
				c.State, c.ExitCode, c.FinishedAt, c.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, 127, c.StartedAt, reason
			}
		},
		"finished_at": func(was, _ *shim) { was.containers[0].FinishedAt = was.containers[0].StartedAt - 1 },
		"network.ip": func(was, is *shim) {
			was.pods[0].State, is.pods[0].State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			was.pods[0].Network.Ip = ""
		},
	} {
		t.Run("field "+field, func(t *testing.T) {
			was, is := newShim(), newShim()
			change(was, is)
			if r := snapshots(asSnapshot(t, was), asSnapshot(t, is)); !r.Same() || len(r.Differences) != 1 || r.Differences[0].Field != field {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// A node that was switched before, and back, is switched again: pods that the old shim has ended and removed since are on record still.
// The kubelet removes them once more, and the switch must not be refused for each.
func TestWhatEndedBetweenTwoSwitchesDoesNotDecide(t *testing.T) {
	was, is := newShim(), newShim()
	is.pods = append(is.pods, &runtimeapi.PodSandboxStatus{Id: "p0", Metadata: &runtimeapi.PodSandboxMetadata{Name: "gone"}, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY})
	is.containers = append(is.containers, &runtimeapi.ContainerStatus{Id: "c0", Metadata: &runtimeapi.ContainerMetadata{Name: "gone"}, State: runtimeapi.ContainerState_CONTAINER_EXITED})
	a, b := asSnapshot(t, was), asSnapshot(t, is)
	if r := snapshots(a, b); !r.Same() || len(r.Differences) != 2 {
		t.Errorf("result %+v", r)
	}
	if r := snapshots(b, a); r.Same() || len(r.Differences) != 2 {
		t.Errorf("what only the old shim tells of: %+v", r)
	}
	for _, state := range []runtimeapi.ContainerState{runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_CREATED, runtimeapi.ContainerState_CONTAINER_UNKNOWN} {
		is.containers[1].State = state
		if r := snapshots(a, asSnapshot(t, is)); r.Same() {
			t.Errorf("a container that is %s: %+v", state, r)
		}
	}
	is.containers, is.pods[1].State = was.containers, runtimeapi.PodSandboxState_SANDBOX_READY
	if r := snapshots(a, asSnapshot(t, is)); r.Same() {
		t.Errorf("a pod that is ready: %+v", r)
	}
}

func TestWhatTheKubeletDecidesByMustBeEqual(t *testing.T) {
	for field, change := range map[string]func(*shim){
		"network.ip":       func(s *shim) { s.pods[0].Network.Ip = "" },
		"labels[app]":      func(s *shim) { s.pods[0].Labels["app"] = "other" },
		"state":            func(s *shim) { s.containers[0].State = runtimeapi.ContainerState_CONTAINER_EXITED },
		"metadata.attempt": func(s *shim) { s.containers[0].Metadata.Attempt = 1 },
		"started_at":       func(s *shim) { s.containers[0].StartedAt++ },
		"exit_code":        func(s *shim) { s.containers[0].ExitCode = 1 },
		"reason":           func(s *shim) { s.containers[0].Reason = "OOMKilled" },
		"annotations[a]":   func(s *shim) { s.containers[0].Annotations = map[string]string{"a": "b"} },
		"runtime_name":     func(s *shim) { s.name = "crishim" },
		"":                 func(s *shim) { s.containers = nil },
	} {
		t.Run("field "+field, func(t *testing.T) {
			is := newShim()
			change(is)
			a, b := asSnapshot(t, newShim()), asSnapshot(t, is)
			for _, r := range []*Result{snapshots(a, b), snapshots(b, a)} {
				if r.Same() || len(r.Differences) != 1 || r.Differences[0].Field != field || !r.Differences[0].Decides {
					t.Errorf("result %+v", r)
				}
				var text bytes.Buffer
				if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "DECIDES") {
					t.Errorf("%v: %s", err, text.String())
				}
			}
		})
	}
}

func asSnapshot(t *testing.T, s *shim) snapshot {
	t.Helper()
	e, err := dial(t.Context(), s.serve(t, false))
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	all, err := e.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAnEndpointThatNobodyServesIsNamed(t *testing.T) {
	none := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	if _, err := Endpoints(t.Context(), none, none); err == nil || !strings.Contains(err.Error(), none) {
		t.Errorf("err = %v", err)
	}
}

// Kubelets take a path without a scheme, with a warning: so it stands in the files of old nodes.
func TestAnEndpointMayBeAPathAlone(t *testing.T) {
	s := newShim()
	path := strings.TrimPrefix(s.serve(t, true), "unix://")
	running, err := Running(t.Context(), path)
	if err != nil || len(running) != 1 {
		t.Errorf("%v, %v", running, err)
	}
}
