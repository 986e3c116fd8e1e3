package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

type usedImages struct{ engine.Images }

func (usedImages) RemoveImage(context.Context, engine.ImageID) error {
	return fmt.Errorf("image a is used by container b, remove that first: %w", errdefs.ErrFailedPrecondition)
}

func TestWhyAMovedImageWasKeptIsSaidInPlainWords(t *testing.T) {
	kept, err := leave(t.Context(), usedImages{}, &engine.Image{})
	if want := " (kept: image a is used by container b, remove that first)"; kept != want || err != nil {
		t.Errorf("%q, %v", kept, err)
	}
}
