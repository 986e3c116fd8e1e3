package engine

import "context"

// Checkpointer is an engine that checkpoints several containers at one moment, and restores containers. One without may
// still have CheckpointContainer.
type Checkpointer interface {
	// Checkpoints says why there are none, with ErrNotImplemented; nil where Features.Checkpoint is set.
	Checkpoints(ctx context.Context) error
	// CheckpointContainers writes the archive of each running container to its location. All of them are paused before the
	// first is looked at, and run on when it returns; where it fails there is no archive.
	CheckpointContainers(ctx context.Context, locations map[ContainerID]string) error
	// ReadCheckpoint says of what a checkpoint is. ErrNotFound for an image that is none.
	ReadCheckpoint(ctx context.Context, ref *CheckpointRef) (*Checkpoint, error)
}

// CheckpointRef is where a checkpoint is: an archive of CheckpointContainer's at Path, or an image with the content of one.
type CheckpointRef struct {
	Path  string  `json:"path,omitempty"`
	Image ImageID `json:"image,omitempty"`
	// Exact fails the creation of a container by whose spec the process would have been another.
	Exact bool `json:"exact,omitempty"`
}

// Checkpoint is what a checkpoint says of itself.
type Checkpoint struct {
	// Name is the container's.
	Name string
	// Image is the id of the container's image, ImageNames what else it may be known by.
	Image      ImageID
	ImageNames []string
}
