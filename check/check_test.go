package check

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// halfRuntime answers its version and fails at the next call.
type halfRuntime struct {
	runtimeapi.RuntimeServiceClient
	out  *strings.Builder
	told string // before that call
}

func (r *halfRuntime) Version(ctx context.Context, _ *runtimeapi.VersionRequest, _ ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > firstAnswer {
		return nil, errors.New("asked without a bound")
	}
	return &runtimeapi.VersionResponse{RuntimeName: "half"}, nil
}

func (r *halfRuntime) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	r.told = r.out.String()
	return nil, status.Error(codes.Internal, "broken")
}

func TestEachStepIsToldWhenItEnds(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	r := &halfRuntime{out: &out}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, cancel) // the step waits for the runtime to become ready
	if err := Run(ctx, Options{Runtime: r, Program: program, Out: &out}); err == nil {
		t.Error("all is well with it")
	}
	if !strings.HasPrefix(r.told, "PASS  version ") || !strings.Contains(out.String(), "\nFAIL  runtime and network ready ") {
		t.Errorf("before the second call %q, at the end:\n%s", r.told, &out)
	}
}

func TestTheTablesColumnsHoldEveryName(t *testing.T) {
	p := &pod{}
	for _, s := range append(p.life(), p.teardown()...) {
		if len(s.name) > longestName {
			t.Errorf("%q is longer than %d", s.name, longestName)
		}
	}
}

// A runtime that takes a connection and says nothing must not keep the command, which Ctrl-C tells by the context alone.
func TestAStepEndsWithItsContextWhateverTheRuntimeDoes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		cancel()
		<-t.Context().Done()
		_ = c.Close()
	}()
	s := step{"exec stream", false, func(ctx context.Context) (string, error) {
		_, _, err := execOverSPDY(ctx, "http://"+l.Addr().String()+"/exec/token", nil)
		return "", err
	}}
	ended := make(chan error, 1)
	go func() { _, err := s.bounded(ctx); ended <- err }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on for ever")
	}
}
