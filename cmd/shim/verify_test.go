package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/migrate/verify"
)

// fullNode answers with a list of more than gRPC takes unless it is told.
type fullNode struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

func (fullNode) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	annotations := map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 250<<10)}
	list := &runtimeapi.ListPodSandboxResponse{}
	for range 30 {
		list.Items = append(list.Items, &runtimeapi.PodSandbox{Id: "p", Annotations: annotations})
	}
	return list, nil
}

func TestVerifyTakesTheListOfAFullNode(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, fullNode{})
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	conn, err := dialCRI("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	n := &verify.Node{Live: map[string]bool{}, Named: map[string]bool{}}
	if err := liveInAnswers(t.Context(), n, runtimeapi.NewRuntimeServiceClient(conn)); err != nil || !n.Live["p"] {
		t.Errorf("%v, %v", n.Live, err)
	}
}
