package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client speaks CRI to a socket, as v1 and as v1alpha2.
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	// AlphaRuntime and AlphaImages call the same methods under the service names of runtime.v1alpha2; the messages are the
	// same on the wire.
	AlphaRuntime runtimeapi.RuntimeServiceClient
	AlphaImages  runtimeapi.ImageServiceClient

	connection *grpc.ClientConn
}

// Dial connects clients to a CRI socket; they are closed by the cleanup.
func Dial(t T, socket string) *Client {
	t.Helper()
	client := &Client{}
	client.connect(t, socket)
	t.Cleanup(client.close)
	return client
}

func (c *Client) connect(t T, socket string) {
	t.Helper()
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		// As the kubelet, which looks again soon after a daemon has gone.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}, MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatalf("connecting to %s: %v", socket, err)
	}
	alpha := renamed{connection}
	c.connection = connection
	c.Runtime, c.Images = runtimeapi.NewRuntimeServiceClient(connection), runtimeapi.NewImageServiceClient(connection)
	c.AlphaRuntime, c.AlphaImages = runtimeapi.NewRuntimeServiceClient(alpha), runtimeapi.NewImageServiceClient(alpha)
}

func (c *Client) close() {
	if c.connection != nil {
		_ = c.connection.Close() // nothing is under way any more
	}
}

// renamed calls the methods of runtime.v1 under the service names of runtime.v1alpha2, as kubelets up to 1.22 do.
type renamed struct{ *grpc.ClientConn }

func (r renamed) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	return r.ClientConn.Invoke(ctx, alphaName(method), args, reply, options...)
}

func (r renamed) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, options ...grpc.CallOption) (grpc.ClientStream, error) {
	return r.ClientConn.NewStream(ctx, desc, alphaName(method), options...)
}

func alphaName(method string) string {
	return strings.Replace(method, "/runtime.v1.", "/runtime.v1alpha2.", 1)
}

// getUnix is an HTTP GET on a unix socket.
func getUnix(socket, path string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	reply, err := client.Get("http://unix" + path)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, reply.Status, body)
	}
	return string(body), err
}

// runStatus runs a program and returns all of its output and its exit status.
func runStatus(t T, program string, args ...string) (output string, code int) {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if exit := (&exec.ExitError{}); errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("running %s: %v", program, err)
	}
	return string(out), 0
}
