package compare

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is what a kubelet's client accepts.
const maxMessage = 16 << 20

// callLimit bounds one question: an endpoint that nobody serves is told, not waited for.
const callLimit = 30 * time.Second

// endpoint is a shim that is asked.
type endpoint struct {
	address string
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// dial finds out which CRI the shim speaks. Kubelets' own dockershims, also that of 1.23, serve v1alpha2, which has the same
// messages under another name. A path alone is a socket, as kubelets take it.
func dial(ctx context.Context, address string) (*endpoint, error) {
	target := address
	if strings.HasPrefix(address, "/") {
		target = "unix://" + address
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", address, err)
	}
	e := &endpoint{address: address, conn: conn}
	for _, calls := range []grpc.ClientConnInterface{conn, alpha{conn}} {
		e.runtime, e.images = runtimeapi.NewRuntimeServiceClient(calls), runtimeapi.NewImageServiceClient(calls)
		if _, err = call(ctx, e, "Version", e.runtime.Version, &runtimeapi.VersionRequest{}); status.Code(err) != codes.Unimplemented {
			break
		}
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *endpoint) close() { _ = e.conn.Close() }

// alpha calls runtime.v1alpha2.
type alpha struct{ *grpc.ClientConn }

func (a alpha) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return a.ClientConn.Invoke(ctx, strings.Replace(method, "/runtime.v1.", "/runtime.v1alpha2.", 1), args, reply, opts...)
}

func call[Q, A any](ctx context.Context, e *endpoint, what string, method func(context.Context, *Q, ...grpc.CallOption) (*A, error), request *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	answer, err := method(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", e.address, what, err)
	}
	return answer, nil
}

// snapshot asks for everything. What goes between the list and the question about it is left out.
func (e *endpoint) snapshot(ctx context.Context) (snapshot, error) {
	version, err := call(ctx, e, "Version", e.runtime.Version, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, err
	}
	all := snapshot{"version": {"version", version}}
	for _, part := range []func(context.Context, snapshot) error{e.pods, e.containers, e.listImages} {
		if err := part(ctx, all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (e *endpoint) pods(ctx context.Context, all snapshot) error {
	list, err := call(ctx, e, "ListPodSandbox", e.runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, item := range list.Items {
		answer, err := call(ctx, e, "PodSandboxStatus of "+item.Id, e.runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: item.Id})
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		all["pod "+item.Id] = object{fmt.Sprintf("pod %s/%s %.12s", item.GetMetadata().GetNamespace(), item.GetMetadata().GetName(), item.Id), answer.Status}
	}
	return nil
}

func (e *endpoint) containers(ctx context.Context, all snapshot) error {
	list, err := call(ctx, e, "ListContainers", e.runtime.ListContainers, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, item := range list.Containers {
		answer, err := call(ctx, e, "ContainerStatus of "+item.Id, e.runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: item.Id})
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		// Shims list a container's mounts in any order.
		slices.SortFunc(answer.Status.Mounts, func(a, b *runtimeapi.Mount) int { return cmp.Compare(a.ContainerPath, b.ContainerPath) })
		name := fmt.Sprintf("container %s of %s/%s %.12s", item.GetMetadata().GetName(), item.Labels["io.kubernetes.pod.namespace"], item.Labels["io.kubernetes.pod.name"], item.Id)
		all["container "+item.Id] = object{name, answer.Status}
	}
	return nil
}

func (e *endpoint) listImages(ctx context.Context, all snapshot) error {
	list, err := call(ctx, e, "ListImages", e.images.ListImages, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, image := range list.Images {
		slices.Sort(image.RepoTags)
		slices.Sort(image.RepoDigests)
		name := image.Id
		if len(image.RepoTags) > 0 {
			name = image.RepoTags[0]
		}
		all["image "+image.Id] = object{"image " + name, image}
	}
	return nil
}

// gone says that the object went meanwhile. dockershim and cri-dockerd have no code for that.
func gone(err error) bool {
	return status.Code(err) == codes.NotFound || err != nil && strings.Contains(err.Error(), "No such container")
}

// Running is the running containers of a shim: names for people, by id.
func Running(ctx context.Context, address string) (map[string]string, error) {
	e, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer e.close()
	list, err := call(ctx, e, "ListContainers", e.runtime.ListContainers, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
	})
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, c := range list.Containers {
		all[c.Id] = fmt.Sprintf("%s of %s/%s", c.GetMetadata().GetName(), c.Labels["io.kubernetes.pod.namespace"], c.Labels["io.kubernetes.pod.name"])
	}
	return all, nil
}

// Wait returns when a shim answers everything, or with its last error when ctx ends.
func Wait(ctx context.Context, address string) error {
	for {
		_, err := Running(ctx, address)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", address, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
