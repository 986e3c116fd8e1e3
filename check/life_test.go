package check

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// linking is a runtime whose logs are links to Docker's files, which Docker rotates.
type linking struct {
	runtimeapi.RuntimeServiceClient
	dockers string
}

func (l linking) ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest, ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	return nil, status.Error(codes.Unimplemented, "Docker rotates the logs itself")
}

func (l linking) StopContainer(context.Context, *runtimeapi.StopContainerRequest, ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	return nil, os.WriteFile(l.dockers, []byte(`{"log":"`+greeting+`\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}`+"\n"+
		`{"log":"`+farewell+`\n","stream":"stdout","time":"2026-01-01T00:00:01Z"}`+"\n"), 0o600)
}

// With compatibility, or container_log = "json-file", a container's log is what the old shims made of it.
func TestALogThatIsALinkToDockersIsRead(t *testing.T) {
	dockers := filepath.Join(t.TempDir(), "c-json.log")
	if err := os.WriteFile(dockers, []byte(`{"log":"`+greeting+`\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pod{Options: Options{Runtime: linking{dockers: dockers}}, logDir: t.TempDir()}
	if err := os.Symlink(dockers, filepath.Join(p.logDir, logName)); err != nil {
		t.Fatal(err)
	}
	for name, step := range map[string]func(context.Context) (string, error){"log": p.log, "log rotation": p.rotate} {
		if detail, err := step(t.Context()); err != nil || !strings.Contains(detail, "Docker") {
			t.Errorf("%s: %q, %v", name, detail, err)
		}
	}
	if _, err := p.stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// A node may be behind a proxy, which knows no pod.
func TestThePodIsReachedWithoutAProxy(t *testing.T) {
	if directTransport.Proxy != nil {
		t.Error("it is reached by the proxy of the environment")
	}
}
