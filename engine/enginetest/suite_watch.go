package enginetest

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"time"

	"crishim/engine"

	"github.com/containerd/errdefs"
)

var watchTests = map[string]func(*suite){
	"health comes first, then the snapshot": func(s *suite) {
		if got := s.seen.first(2); !slices.Equal(got, []string{"health", "resync"}) {
			s.Errorf("%v", got)
		}
		info := s.Engine.Info()
		if s.Engine.Name() == "" || info.CgroupDriver == "" {
			s.Errorf("name %q, info %+v", s.Engine.Name(), info)
		}
		if _, ok := info.Handlers[""]; !ok {
			s.Error("no default handler")
		}
	},
	"every change is told": func(s *suite) {
		spec := s.containerSpec(s.Commands.Exit(9))
		s.eventually("the pod is told as ready", func() bool {
			p, ok := s.seen.pod(spec.Pod)
			return ok && p.State == engine.PodReady && p.Key == spec.PodKey && p.NetNSPath != ""
		})
		id := s.createContainer(spec).ID
		s.eventually("the container is told", func() bool {
			c, ok := s.seen.container(id)
			return ok && c.Key == spec.Key && c.Pod == spec.Pod
		})
		_, err := s.Engine.StartContainer(s.Context(), id, spec)
		s.ok(err, "start")
		s.eventually("the exit is told with its code", func() bool {
			c, ok := s.seen.container(id)
			return ok && c.State == engine.ContainerExited && c.ExitCode == 9 && !c.FinishedAt.IsZero()
		})
		s.ok(s.Engine.RemoveContainer(s.Context(), id), "remove")
		s.eventually("the removal is told", func() bool { _, ok := s.seen.container(id); return !ok })
		s.ok(s.Engine.StopPod(s.Context(), spec.Pod), "stop pod")
		s.eventually("the pod's end is told", func() bool {
			p, ok := s.seen.pod(spec.Pod)
			return ok && p.State == engine.PodNotReady
		})
		s.clearPod(spec.Pod)
		s.eventually("the pod's removal is told", func() bool { _, ok := s.seen.pod(spec.Pod); return !ok })
	},
	"who ends by himself is told too": func(s *suite) {
		if s.Forget == nil {
			s.Skip("the fixture cannot remove behind the engine's back")
		}
		id := s.runContainer(s.containerSpec(s.Commands.Run))
		s.eventually("the container is told", func() bool { _, ok := s.seen.container(id); return ok })
		s.Forget(s.T, id)
		s.eventually("the removal is told", func() bool { _, ok := s.seen.container(id); return !ok })
		_, err := s.Engine.ContainerStatus(s.Context(), id)
		s.class(err, errdefs.IsNotFound, "status")
	},
	"a gap ends in a full snapshot": func(s *suite) {
		if s.Gap == nil {
			s.Skip("the fixture cannot lose events")
		}
		pod, podSpec := s.runPod()
		gone := s.runContainer(s.containerSpecIn(pod, podSpec, s.Commands.Run))
		ended := s.runContainer(s.containerSpecIn(pod, podSpec, s.Commands.Stubborn))
		s.eventually("both are told", func() bool {
			_, one := s.seen.container(gone)
			_, two := s.seen.container(ended)
			return one && two
		})
		before := s.seen.resyncs()
		s.Gap(s.T, func() {
			s.ok(s.Engine.RemoveContainer(s.Context(), gone), "remove")
			s.ok(s.Engine.StopContainer(s.Context(), ended, 0), "stop")
		})
		s.eventually("a snapshot comes", func() bool { return s.seen.resyncs() > before })
		s.eventually("it is true", func() bool {
			_, there := s.seen.container(gone)
			c, _ := s.seen.container(ended)
			return !there && c.State == engine.ContainerExited && c.ExitCode == 137
		})
	},
	"specs can be read back, should their records be lost": func(s *suite) {
		spec := s.containerSpec(s.Commands.Run)
		id := s.runContainer(spec)
		s.eventually("both are told with their specs", func() bool {
			p, _ := s.seen.pod(spec.Pod)
			c, _ := s.seen.container(id)
			return p.Spec != nil && c.Spec != nil && c.Spec.LogPath == spec.LogPath
		})
	},
}

var imageTests = map[string]func(*suite){
	"an image is found by every kind of reference": func(s *suite) {
		hex := strings.TrimPrefix(string(s.image.ID), "sha256:")
		refs := append([]string{s.Image, string(s.image.ID), hex, hex[:12]}, s.image.RepoTags...)
		for _, ref := range append(refs, s.image.RepoDigests...) {
			image, err := s.Engine.Image(s.Context(), ref)
			if err != nil || image.ID != s.image.ID {
				s.Errorf("%s: %+v, %v", ref, image, err)
			}
		}
		if s.image.Size == 0 || len(s.image.RepoTags) == 0 {
			s.Errorf("%+v", s.image)
		}
		list, err := s.Engine.ListImages(s.Context())
		s.ok(err, "list")
		if !slices.ContainsFunc(list, func(i engine.Image) bool { return i.ID == s.image.ID && i.Size == s.image.Size }) {
			s.Errorf("not in the list of %d", len(list))
		}
	},
	"an absent image is not found": func(s *suite) {
		for _, ref := range []string{string(absentImage), "example.invalid/absent:1", hexOf(absentImage)[:12]} {
			_, err := s.Engine.Image(s.Context(), ref)
			s.class(err, errdefs.IsNotFound, ref)
		}
		s.ok(s.Engine.RemoveImage(s.Context(), absentImage), "remove")
	},
	"an image in use is not removed": func(s *suite) {
		s.createContainer(s.containerSpec(s.Commands.Run))
		s.class(s.Engine.RemoveImage(s.Context(), s.image.ID), errdefs.IsFailedPrecondition, "remove")
		_, err := s.Engine.Image(s.Context(), s.Image)
		s.ok(err, "the image afterwards")
	},
	"an image is pulled and removed": func(s *suite) {
		if s.Pullable == "" {
			s.Skip("the fixture has no image to pull")
		}
		before := s.seen.imageChanges()
		image, err := s.Engine.PullImage(s.Context(), &engine.PullSpec{Ref: s.Pullable, NoProgress: time.Minute})
		s.ok(err, "pull")
		again, err := s.Engine.PullImage(s.Context(), &engine.PullSpec{Ref: s.Pullable})
		if err != nil || again.ID != image.ID {
			s.Errorf("second pull: %+v, %v", again, err)
		}
		if image.ID == "" || image.Size == 0 || len(image.RepoDigests) == 0 {
			s.Errorf("pulled: %+v", image)
		}
		s.eventually("the change is told", func() bool { return s.seen.imageChanges() > before })
		s.ok(s.Engine.RemoveImage(s.Context(), image.ID), "remove")
		s.ok(s.Engine.RemoveImage(s.Context(), image.ID), "remove again")
		_, err = s.Engine.Image(s.Context(), s.Pullable)
		s.class(err, errdefs.IsNotFound, "the image afterwards")
	},
	"an image is carried away and back": func(s *suite) {
		carrier, ok := s.Engine.(engine.ImageCarrier)
		if !ok {
			s.Skip("the engine's images cannot be carried")
		}
		ref := s.Removable
		if ref == "" {
			if ref = s.Pullable; ref == "" {
				s.Skip("the fixture has no image to remove")
			}
			_, err := s.Engine.PullImage(s.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
			s.ok(err, "pull")
		}
		image, err := s.Engine.Image(s.Context(), ref)
		s.ok(err, "the image")
		var archive bytes.Buffer
		s.ok(carrier.ExportImage(s.Context(), image.ID, &archive), "export")
		s.ok(s.Engine.RemoveImage(s.Context(), image.ID), "remove")
		half := io.LimitReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()/2))
		if _, err := carrier.ImportImage(s.Context(), half, image); err == nil {
			s.Error("half an archive is imported")
		}
		_, err = s.Engine.Image(s.Context(), ref)
		s.class(err, errdefs.IsNotFound, "the image after half an archive")
		back, err := carrier.ImportImage(s.Context(), &archive, image)
		s.ok(err, "import")
		if !back.SameContent(image) {
			s.Errorf("%+v came back as %+v", image, back)
		}
		for _, ref := range append(slices.Clone(image.RepoTags), image.RepoDigests...) {
			if found, err := s.Engine.Image(s.Context(), ref); err != nil || found.ID != back.ID {
				s.Errorf("%s: %+v, %v", ref, found, err)
			}
		}
		s.ok(s.Engine.RemoveImage(s.Context(), back.ID), "remove again")
		s.class(carrier.ExportImage(s.Context(), back.ID, io.Discard), errdefs.IsNotFound, "export of what is gone")
	},
	"the file systems of images have a time and a place": func(s *suite) {
		s.eventually("a sample was taken", func() bool {
			images, _, err := s.Engine.ImageFS(s.Context())
			return err == nil && len(images) > 0 && !images[0].Timestamp.IsZero() && images[0].Mountpoint != ""
		})
	},
}

func hexOf(id engine.ImageID) string { return strings.TrimPrefix(string(id), "sha256:") }
