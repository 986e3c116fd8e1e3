package native

import (
	"context"
	"io"

	"crishim/engine"
)

var _ engine.ImageCarrier = (*Engine)(nil)

// ExportImage implements engine.ImageCarrier.
func (e *Engine) ExportImage(ctx context.Context, id engine.ImageID, w io.Writer) error {
	return e.images.ExportImage(ctx, id, w)
}

// ImportImage implements engine.ImageCarrier.
func (e *Engine) ImportImage(ctx context.Context, r io.Reader, image *engine.Image) (*engine.Image, error) {
	return e.images.ImportImage(ctx, r, image)
}
