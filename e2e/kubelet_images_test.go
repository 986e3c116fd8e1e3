package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Images as a kubelet pulls, counts and collects them.
var kubeletImageFamily = kubeletFamily{
	pods: map[string]string{
		"pulls": `
  restartPolicy: Never
  containers:
  - {name: always, image: IMAGE, imagePullPolicy: Always, command: ["true"]}
  - {name: never, image: REGISTRY/never:pulled, imagePullPolicy: Never, command: ["true"]}
  - {name: none, image: REGISTRY/none:at-all, command: ["true"]}`,
	},
	steps: []kubeletStep{
		{"an image that must not, and one that cannot be pulled are named", kubeletPulls},
	},
}

// A kubelet collects images by their age since 1.29.
var kubeletCollectionFamily = kubeletFamily{steps: []kubeletStep{
	{"images that no container has are collected, pinned ones and those in use are kept", kubeletCollectsImages},
}}

// Before that it does when its disk is full; see fullAtOnce.
var kubeletFullDiskFamily = kubeletFamily{steps: []kubeletStep{
	{"images that no container has are collected when the disk is full, those in use are kept", kubeletCollectsOnFullDisk},
}}

// fullAtOnce has a kubelet take its disk for full whatever is on it, and make as much room as it can.
var fullAtOnce = map[string]any{"imageGCHighThresholdPercent": 1, "imageGCLowThresholdPercent": 0, "imageMinimumGCAge": "10s"}

func kubeletPulls(t *testing.T, r *kubeletRun) {
	r.WaitPod(t, "pulls", time.Minute, "its images to be looked for", func(p harness.KubeletPod) error {
		always, never, none := p.Container("always").State.Terminated, p.Container("never").State.Waiting, p.Container("none").State.Waiting
		if always == nil || always.ExitCode != 0 || never == nil || never.Reason != "ErrImageNeverPull" || none == nil || none.Reason != "ErrImagePull" && none.Reason != "ImagePullBackOff" {
			return errors.New("they are not as they should be")
		}
		return nil
	})
}

// kubeletCollectsImages waits for the kubelet's collector, which comes every five minutes.
func kubeletCollectsImages(t *testing.T, r *kubeletRun) {
	if os.Getenv("E2E_KUBELET") == kubeletPart {
		t.Skip("left to `make test-kubelet` without CORE=1: it takes minutes")
	}
	const collected = "kubelet_image_garbage_collected_total"
	harness.Eventually(t, 11*time.Minute, "the kubelet to collect images", func() error {
		if hasImage(t, r, harness.Small) || series(r.Get(t, "/metrics"), collected, `reason="age"`) < 1 {
			return errors.New("the one that no container has is there")
		}
		return nil
	})
	// It goes through all of them at once.
	count, since := -1.0, time.Now()
	harness.Eventually(t, time.Minute, "the kubelet to be through with its images", func() error {
		if now := series(r.Get(t, "/metrics"), collected, `reason="age"`); now != count {
			count, since = now, time.Now()
		}
		if time.Since(since) < 5*time.Second {
			return fmt.Errorf("it has collected %v", count)
		}
		return nil
	})
	checkKeptImages(t, r, harness.Busybox, harness.Pinned)
}

// kubeletCollectsOnFullDisk waits for the same of a kubelet that knows nothing of pinned images.
func kubeletCollectsOnFullDisk(t *testing.T, r *kubeletRun) {
	harness.Eventually(t, 11*time.Minute, "the kubelet to collect images", func() error {
		if hasImage(t, r, harness.Small) {
			return errors.New("the one that no container has is there")
		}
		return nil
	})
	checkKeptImages(t, r, harness.Busybox)
}

// checkKeptImages checks that images are there, and the one of the sandboxes, too, where they have one.
func checkKeptImages(t *testing.T, r *kubeletRun, repositories ...string) {
	t.Helper()
	if r.n.Docker != nil { // the native engine has no use for it
		repositories = append(repositories, harness.Pause)
	}
	for _, repository := range repositories {
		if !hasImage(t, r, repository) {
			t.Errorf("image %s is gone too", repository)
		}
	}
}

// hasImage looks at Docker's own list beside the shim's, which has the digest of a manifest or of a configuration, by its tags.
func hasImage(t *testing.T, r *kubeletRun, repository string) bool {
	t.Helper()
	reply, err := r.n.Shim.Images.ImageStatus(ctx(t), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: r.n.Registry.Ref(repository)}})
	if err != nil {
		t.Fatal(err)
	}
	if r.n.Docker != nil && !r.n.Shim.Both() {
		if tags := r.n.Docker.ImageTags(t); slices.Contains(tags, r.n.Registry.Ref(repository)) != (reply.Image != nil) {
			t.Errorf("the status of image %s is %v, and the Docker Engine has %v", repository, reply.Image, tags)
		}
	}
	return reply.Image != nil
}
