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

// A kubelet collects images by their age since 1.29; before that it does when its disk is full.
var kubeletCollectionFamily = kubeletFamily{steps: []kubeletStep{
	{"images that no container has are collected, pinned ones and those in use are kept", kubeletCollectsImages},
}}

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
	// Docker's own list, which has the digest of a manifest or of a configuration, is looked at by its tags.
	has := func(repository string) bool {
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
	kept := []string{harness.Busybox, harness.Pinned}
	if r.n.Docker != nil { // the native engine has no use for it
		kept = append(kept, harness.Pause)
	}
	const collected = "kubelet_image_garbage_collected_total"
	harness.Eventually(t, 11*time.Minute, "the kubelet to collect images", func() error {
		if has(harness.Small) || series(r.Get(t, "/metrics"), collected, `reason="age"`) < 1 {
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
	for _, repository := range kept {
		if !has(repository) {
			t.Errorf("image %s is gone too", repository)
		}
	}
}
