package harness

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// StartCRIEndpoint serves one version of the CRI ("v1" or "v1alpha2") of a shim, as a runtime that knows no other, and returns
// its socket. It lives as long as the test.
func StartCRIEndpoint(t T, shim *Shim, version string) string {
	t.Helper()
	messages := grpc.MaxCallRecvMsgSize(16 << 20)
	to, err := grpc.NewClient("unix://"+shim.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(asIs{}), messages))
	if err != nil {
		t.Fatalf("connecting to %s: %v", shim.Socket, err)
	}
	socket := filepath.Join(WorkDir(t, "v"), "cri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatalf("serving the CRI in version %s: %v", version, err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(asIs{}), grpc.MaxRecvMsgSize(16<<20), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if !strings.HasPrefix(method, "/runtime."+version+".") {
			return status.Errorf(codes.Unimplemented, "unknown method %s", method)
		}
		var request, reply []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		if err := to.Invoke(stream.Context(), method, &request, &reply); err != nil {
			return err
		}
		return stream.SendMsg(&reply)
	}))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serving the CRI in version %s: %v", version, err)
		}
		_ = to.Close() // nothing is under way any more
	})
	return socket
}

// asIs is a gRPC codec that leaves messages as they are on the wire.
type asIs struct{}

func (asIs) Name() string { return "proto" }

func (asIs) Marshal(message any) ([]byte, error) {
	data, ok := message.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a message is a %T", message)
	}
	return *data, nil
}

func (asIs) Unmarshal(data []byte, message any) error {
	to, ok := message.(*[]byte)
	if !ok {
		return fmt.Errorf("a message is a %T", message)
	}
	*to = append([]byte(nil), data...)
	return nil
}
