package server

import (
	"context"
	"errors"
	"fmt"
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
		image, err := s.defaultEngine.Image(ctx, ref)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{translator.ImageReply(*image)}, nil
	}
	images, err := s.defaultEngine.ListImages(ctx)
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
	image, err := s.defaultEngine.Image(ctx, ref)
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	resp := &runtimeapi.ImageStatusResponse{Image: translator.ImageReply(*image)}
	if req.GetVerbose() {
		resp.Info = jsonInfo(map[string]any{"info": image, "engine": s.defaultEngine.Name()})
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
	return &runtimeapi.PullImageResponse{ImageRef: string(image.ID)}, nil
}

// RemoveImage removes the image with all its tags, by any reference to it. OK when it is absent.
func (s *Server) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image: no reference: %w", errdefs.ErrInvalidArgument)
	}
	var errs []error
	for _, eng := range s.engines {
		image, err := eng.Image(ctx, ref)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err == nil {
			err = eng.RemoveImage(ctx, image.ID)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove image %s: %w", ref, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo answers from the engines' background samples. An engine that measures no writable layers has them in its own
// folder, and they are measured here, for the statistics of containers.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, containers, err := s.defaultEngine.ImageFS(ctx)
	if err != nil {
		return nil, fmt.Errorf("usage of the image file system: %w", err)
	}
	if len(containers) == 0 {
		bytes, inodes := s.disk.Sum()
		containers = []engine.FSUsage{{Timestamp: time.Now(), Mountpoint: s.defaultEngine.Info().RootDir, UsedBytes: bytes, InodesUsed: inodes}}
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: fsUsage(images), ContainerFilesystems: fsUsage(containers)}, nil
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

// resolveImage fills in what the engine knows of the image, which must be there.
func resolveImage(ctx context.Context, eng engine.Engine, ref *engine.ImageRef) error {
	image, err := eng.Image(ctx, ref.Ref)
	if err != nil {
		return fmt.Errorf("image %s: %w", ref.Ref, err)
	}
	ref.ID = image.ID
	if len(image.RepoDigests) > 0 {
		ref.RepoDigest = image.RepoDigests[0]
	}
	if len(image.RepoTags) > 0 {
		ref.Name = image.RepoTags[0]
	}
	return nil
}
