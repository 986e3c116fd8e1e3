package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/translator"
)

// errImageVolume marks a failed image volume: the kubelet looks for this text and reports it in the pod's status.
var errImageVolume = crierrors.ErrImageVolumeMountFailed

// ListImages lists the images of all engines.
func (s *Server) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listImages(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: images}, nil
}

// StreamImages sends the same list in parts (KEP-5825).
func (s *Server) StreamImages(req *runtimeapi.StreamImagesRequest, stream runtimeapi.ImageService_StreamImagesServer) error {
	images, err := s.listImages(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return inParts(images, func(part []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: part})
	})
}

func (s *Server) listImages(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := filter.GetImage().GetImage(); ref != "" {
		image, err := s.images.Find(ctx, ref, s.imageEngine(filter.GetImage().GetRuntimeHandler()))
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{translator.ImageReply(*image)}, nil
	}
	images, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	list := make([]*runtimeapi.Image, 0, len(images))
	for i := range images {
		list = append(list, translator.ImageReply(images[i]))
	}
	return list, nil
}

// ImageStatus finds one image; an absent one is no error but an empty reply, as CRI says.
func (s *Server) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image: no reference: %w", errdefs.ErrInvalidArgument)
	}
	image, err := s.images.Find(ctx, ref, s.imageEngine(req.GetImage().GetRuntimeHandler()))
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	resp := &runtimeapi.ImageStatusResponse{Image: translator.ImageReply(*image)}
	if req.GetVerbose() {
		resp.Info = jsonInfo(map[string]any{"info": image, "engine": s.defaultEngine.Name(), "ids": s.imageIDs(ctx, image)})
	}
	return resp, nil
}

// PullImage pulls to the engine of the runtime handler. It ends with the call.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image: no reference: %w", errdefs.ErrInvalidArgument)
	}
	eng, _, err := s.handler(req.GetImage().GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	auth, err := translator.Auth(req.GetAuth())
	if err != nil {
		return nil, err
	}
	if err := s.ready(eng.Name()); err != nil {
		return nil, err
	}
	image, err := eng.PullImage(ctx, &engine.PullSpec{Ref: ref, Annotations: req.GetImage().GetAnnotations(), Auth: auth, NoProgress: s.opts.PullNoProgress})
	if err != nil {
		// Unchanged: the engine names the reference, and the kubelet looks for RegistryUnavailable at the very beginning.
		return nil, err
	}
	if err := failpoint.Hit("PullImage.pulled"); err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: string(s.toldID(ctx, eng, image.ID))}, nil
}

// toldID is the id under which ImageStatus tells of an engine's image: kubelets compare it with the one that the pull answers.
func (s *Server) toldID(ctx context.Context, eng engine.Engine, id engine.ImageID) engine.ImageID {
	if !s.several() {
		return id
	}
	image, err := s.images.Find(ctx, string(id), eng.Name())
	if err != nil {
		return id // it was pulled all the same
	}
	return image.ID
}

// RemoveImage removes the image with all its tags, by any reference to it. OK when it is absent.
func (s *Server) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image: no reference: %w", errdefs.ErrInvalidArgument)
	}
	if s.several() {
		if err := s.refuseUsedImage(ctx, ref); err != nil {
			return nil, err
		}
	}
	if err := s.images.Remove(ctx, ref); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", ref, err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// refuseUsedImage keeps an image that a container of one engine uses from being removed from the other one, halfway.
func (s *Server) refuseUsedImage(ctx context.Context, ref string) error {
	ids, err := s.images.IDs(ctx, ref)
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || errdefs.IsInternal(err) {
		return nil // the removal tells, or takes away what cannot be read
	}
	if err != nil {
		return err
	}
	all := slices.Concat(ids...)
	for _, c := range s.store.Containers() {
		used := slices.Contains(all, c.Spec.Image.ID) || slices.ContainsFunc(c.Spec.Mounts, func(m engine.Mount) bool { return m.Image != nil && slices.Contains(all, m.Image.ID) })
		if used {
			return fmt.Errorf("image %s is used by container %s on engine %s, remove that first: %w", ref, c.ID, c.Engine, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// imageEngine is the engine that an image is looked for first on behalf of a runtime handler; "" is the default one.
func (s *Server) imageEngine(handler string) string {
	if handler == "" {
		return ""
	}
	eng, _, err := s.handler(handler)
	if err != nil {
		return "" // looked for in all of them
	}
	return eng.Name()
}

// imageIDs are the ids that an image has in the engines' stores.
func (s *Server) imageIDs(ctx context.Context, image *engine.Image) map[string][]engine.ImageID {
	all := map[string][]engine.ImageID{}
	if ids, err := s.images.IDs(ctx, string(image.ID)); err == nil {
		for i, e := range s.order {
			all[e.Name()] = ids[i]
		}
	}
	return all
}

// ImageFsInfo answers from the engines' background samples, the default engine's first: the kubelet looks at no other. An
// engine that is away has no say while another one has.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	resp := &runtimeapi.ImageFsInfoResponse{}
	away := s.away()
	for _, e := range s.order {
		if away[e.Name()] != "" && len(away) < len(s.engines) {
			continue
		}
		images, containers, err := s.fsOf(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("usage of the image file system: %w", err)
		}
		resp.ImageFilesystems = append(resp.ImageFilesystems, fsUsage(images)...)
		resp.ContainerFilesystems = append(resp.ContainerFilesystems, fsUsage(containers)...)
	}
	return resp, nil
}

// fsOf is an engine's usage. One that measures no writable layers has them in its own folder, and they are measured here,
// for the statistics of containers.
func (s *Server) fsOf(ctx context.Context, eng engine.Engine) (images, containers []engine.FSUsage, err error) {
	images, containers, err = eng.ImageFS(ctx)
	if err != nil || len(containers) > 0 {
		return images, containers, err
	}
	root := eng.Info().RootDir
	below := ""
	if s.several() {
		below = root
	}
	bytes, inodes := s.disk.Sum(below)
	return images, []engine.FSUsage{{Timestamp: time.Now(), Mountpoint: root, UsedBytes: bytes, InodesUsed: inodes}}, nil
}

func fsUsage(all []engine.FSUsage) []*runtimeapi.FilesystemUsage {
	replies := make([]*runtimeapi.FilesystemUsage, 0, len(all))
	for _, u := range all {
		replies = append(replies, &runtimeapi.FilesystemUsage{
			Timestamp:  u.Timestamp.UnixNano(),
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
			UsedBytes:  &runtimeapi.UInt64Value{Value: u.UsedBytes},
			InodesUsed: &runtimeapi.UInt64Value{Value: u.InodesUsed},
		})
	}
	return replies
}

// resolveImage fills in what the engine knows of the image, and returns under which id callers are told of it. An image
// that only another engine has is carried over; see imageset.Set.Ensure.
func (s *Server) resolveImage(ctx context.Context, eng engine.Engine, ref *engine.ImageRef) (engine.ImageID, error) {
	image, told, err := s.images.Ensure(ctx, eng.Name(), ref.Ref, s.imageEngine(ref.RuntimeHandler))
	if err != nil {
		return "", fmt.Errorf("image %s: %w", ref.Ref, err)
	}
	ref.ID = image.ID
	nameImage(ref, image)
	return told, nil
}

// nameImage fills in the names by which people know the image; nil is one of which nothing is known.
func nameImage(ref *engine.ImageRef, image *engine.Image) {
	if image == nil {
		return
	}
	if len(image.RepoDigests) > 0 {
		ref.RepoDigest = image.RepoDigests[0]
	}
	if len(image.RepoTags) > 0 {
		ref.Name = image.RepoTags[0]
	}
}

// fetchImages makes sure that the engine has the container's images, as long as the caller waits. Only where there are
// several engines is anything to do.
func (s *Server) fetchImages(ctx context.Context, eng engine.Engine, spec *engine.ContainerSpec) error {
	if !s.several() || s.ready(eng.Name()) != nil {
		return nil // what comes tells
	}
	if _, err := s.resolveImage(ctx, eng, &spec.Image); err != nil {
		return err
	}
	for i := range spec.Mounts {
		if ref := spec.Mounts[i].Image; ref != nil {
			if _, err := s.resolveImage(ctx, eng, ref); err != nil {
				return fmt.Errorf("%w: image volume at %s: %w", errImageVolume, spec.Mounts[i].ContainerPath, err)
			}
		}
	}
	return nil
}
