package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// imageStatus is ImageStatus, nil for an absent image.
func imageStatus(t *testing.T, n *harness.Node, ref string) *runtimeapi.Image {
	t.Helper()
	reply, err := n.Shim.Images.ImageStatus(ctx(t), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("status of image %s: %v", ref, err)
	}
	return reply.Image
}

// removeImage is RemoveImage.
func removeImage(t *testing.T, n *harness.Node, ref string) {
	t.Helper()
	if _, err := n.Shim.Images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("removing image %s: %v", ref, err)
	}
}

func TestImageIsFoundByEveryReferenceAndRemovedByAny(t *testing.T) {
	n := node(t)
	ref := n.Registry.Ref(harness.Small)
	reply, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	image := imageStatus(t, n, ref)
	if image == nil {
		t.Fatalf("%s is not there after its pull", ref)
	}
	if image.Id != reply.ImageRef || image.Size == 0 || !slices.Contains(image.RepoTags, ref) || len(image.RepoDigests) != 1 {
		t.Errorf("pull returned %s, the image is %v", reply.ImageRef, image)
	}
	for _, other := range []string{image.Id, strings.TrimPrefix(image.Id, "sha256:"), strings.TrimPrefix(image.Id, "sha256:")[:12], image.RepoDigests[0], strings.TrimSuffix(ref, ":latest")} {
		if found := imageStatus(t, n, other); found.GetId() != image.Id {
			t.Errorf("%s finds %v", other, found)
		}
	}
	list, err := n.Shim.Images.ListImages(ctx(t), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list.Images, func(i *runtimeapi.Image) bool { return i.Id == image.Id }) {
		t.Errorf("ListImages has it not")
	}
	removeImage(t, n, image.RepoDigests[0])
	if found := imageStatus(t, n, ref); found != nil {
		t.Errorf("there after its removal: %v", found)
	}
	removeImage(t, n, ref) // again is fine
}

func TestThreeTagsAreOneImage(t *testing.T) {
	n := node(t)
	var id string
	for _, tag := range []string{"1", "2", "3"} {
		reply, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Registry.Ref("tags:" + tag)}})
		if err != nil {
			t.Fatal(err)
		}
		if id != "" && reply.ImageRef != id {
			t.Errorf("tag %s is %s, not %s", tag, reply.ImageRef, id)
		}
		id = reply.ImageRef
	}
	if tags := imageStatus(t, n, id).RepoTags; len(tags) != 3 {
		t.Errorf("tags %v, want three", tags)
	}
	removeImage(t, n, n.Registry.Ref("tags:2"))
	for _, tag := range []string{"1", "2", "3"} {
		if found := imageStatus(t, n, n.Registry.Ref("tags:"+tag)); found != nil {
			t.Errorf("removal by one tag left %v", found.RepoTags)
		}
	}
}

func TestImageUserIsReported(t *testing.T) {
	n := node(t)
	for repository, want := range map[string]struct {
		uid  int64
		name string
	}{harness.UserUID: {1002, ""}, harness.UserName: {0, "www-data"}, harness.UserUIDGroup: {1003, ""}, harness.Busybox: {0, ""}} {
		image := imageStatus(t, n, n.Pull(t, repository))
		if image.GetUid().GetValue() != want.uid || image.Username != want.name {
			t.Errorf("%s: uid %v, name %q; want %d, %q", repository, image.Uid, image.Username, want.uid, want.name)
		}
		if want.uid != 0 && image.Uid == nil {
			t.Errorf("%s has no uid", repository)
		}
	}
}

func TestContainerStatusNamesTheImage(t *testing.T) {
	n := node(t)
	ref := n.Registry.Ref(harness.Busybox)
	image := imageStatus(t, n, ref)
	pod := n.RunPod(t, "image-id")
	c := pod.Run("c", image.Id, forever, func(c *runtimeapi.ContainerConfig) { c.Image.UserSpecifiedImage = ref })
	status := c.Status()
	if named := status.Image.Image; status.ImageId != image.Id || named != image.Id && named != ref || status.Image.UserSpecifiedImage != ref {
		t.Errorf("image %v, id %s; want %s or its tag, id %s", status.Image, status.ImageId, image.Id, image.Id)
	}
	if !slices.Contains(image.RepoDigests, status.ImageRef) && status.ImageRef != image.Id {
		t.Errorf("image_ref %q is neither a digest nor the id", status.ImageRef)
	}
}

func TestPullFailuresHaveTheirCodes(t *testing.T) {
	n := node(t)
	private := harness.NewRegistry(t, "user", "right")
	private.Push(t, "image:latest", harness.Build(t, v1.Config{Cmd: []string{"sh"}}))
	for _, row := range []struct {
		name, ref string
		auth      *runtimeapi.AuthConfig
		want      codes.Code
	}{
		{"no such repository", n.Registry.Ref("absent:latest"), nil, codes.NotFound},
		{"no such tag", n.Registry.Ref("busybox:absent"), nil, codes.NotFound},
		{"not a reference", "UPPER//case:::", nil, codes.InvalidArgument},
		{"empty", "", nil, codes.InvalidArgument},
		{"nobody listens", "127.0.0.1:1/image:latest", nil, codes.Unavailable},
		{"no credentials", private.Ref("image"), nil, codes.Unauthenticated},
		{"wrong password", private.Ref("image"), &runtimeapi.AuthConfig{Username: "user", Password: "wrong"}, codes.Unauthenticated},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: row.ref}, Auth: row.auth})
			got := harness.Code(err)
			if got != row.want && !(row.want == codes.Unauthenticated && got == codes.PermissionDenied) {
				t.Errorf("%v (%v), want %v", err, got, row.want)
			}
			if err != nil && strings.Contains(err.Error(), "wrong") {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
	for name, auth := range map[string]*runtimeapi.AuthConfig{
		"user and password":   {Username: "user", Password: "right"},
		"auth":                {Auth: base64.StdEncoding.EncodeToString([]byte("user:right"))},
		"with server address": {Username: "user", Password: "right", ServerAddress: private.Host},
	} {
		t.Run(name, func(t *testing.T) {
			reply, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: private.Ref("image")}, Auth: auth})
			if err != nil {
				t.Fatal(err)
			}
			removeImage(t, n, reply.ImageRef)
		})
	}
}

// Rows: R31 (part)
func TestCancelledPullEndsAndTheNextWorks(t *testing.T) {
	n := node(t)
	registry := harness.NewRegistry(t, "", "")
	registry.Push(t, "slow:latest", harness.Build(t, v1.Config{Labels: map[string]string{"slow": harness.ID()}}))
	release := make(chan struct{})
	registry.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	})
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := n.Shim.Images.PullImage(short, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: registry.Ref("slow")}})
	wantCode(t, "a pull whose caller left", err, codes.DeadlineExceeded)
	close(release)
	reply, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: registry.Ref("slow")}})
	if err != nil {
		t.Fatal(err)
	}
	removeImage(t, n, reply.ImageRef)
}

// Rows: R30 (part)
func TestImageInUseIsNotRemoved(t *testing.T) {
	n := node(t)
	ref := n.Pull(t, harness.SignalUSR1)
	pod := n.RunPod(t, "in-use")
	pod.Run("c", ref, forever)
	_, err := n.Shim.Images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	wantCode(t, "removing an image in use", err, codes.FailedPrecondition)
	mounted := n.Pull(t, harness.VolumeFiles)
	pod.Run("volume", n.Registry.Ref(harness.Busybox), forever, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", Readonly: true, Image: &runtimeapi.ImageSpec{Image: mounted}}}
	})
	_, err = n.Shim.Images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: mounted}})
	wantCode(t, "removing an image that is mounted", err, codes.FailedPrecondition)
	for _, ref := range []string{ref, mounted} {
		if imageStatus(t, n, ref) == nil {
			t.Errorf("the refusal removed the tag %s", ref)
		}
	}
}

// Rows: R30 (part)
func TestPauseImageIsPinned(t *testing.T) {
	n := node(t)
	if image := imageStatus(t, n, n.Registry.Ref(harness.Pause)); image != nil && !image.Pinned {
		t.Error("the kubelet may remove the pause image")
	}
	if image := imageStatus(t, n, n.Registry.Ref(harness.Busybox)); image.Pinned {
		t.Error("the busybox image is pinned")
	}
}

func TestPauseImageIsBuiltInWhereItCannotBePulled(t *testing.T) {
	harness.Require(t)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{
		Settings: map[string]any{"images": map[string]any{"pause": "127.0.0.1:1/pause:none"}},
	})
	pod := n.RunPod(t, "built-in")
	pod.Run("web", n.Pull(t, harness.Web), nil)
	if body := httpGet(t, pod.IP()+":80"); body != "host=built-in path=/\n" {
		t.Errorf("the web server says %q", body)
	}
}

// Rows: R34 (part)
func TestImageFsInfoHasFigures(t *testing.T) {
	n := node(t)
	n.RunPod(t, "writes").Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "echo x >/file; exec sleep 1000"})
	var reply *runtimeapi.ImageFsInfoResponse
	harness.Eventually(t, 60*time.Second, "ImageFsInfo", func() (err error) { // what the container wrote is measured once in a while
		reply, err = n.Shim.Images.ImageFsInfo(ctx(t), &runtimeapi.ImageFsInfoRequest{})
		if err == nil && (len(reply.ContainerFilesystems) == 0 || reply.ContainerFilesystems[0].UsedBytes.GetValue() == 0) {
			err = fmt.Errorf("%v", reply)
		}
		return err
	})
	for kind, list := range map[string][]*runtimeapi.FilesystemUsage{"image": reply.ImageFilesystems, "container": reply.ContainerFilesystems} {
		if len(list) == 0 || list[0].FsId.GetMountpoint() == "" || list[0].UsedBytes.GetValue() == 0 || list[0].Timestamp == 0 {
			t.Errorf("%s file systems: %v", kind, list)
		}
	}
}
