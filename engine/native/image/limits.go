package image

import "crishim/engine/native/image/unpack"

// Limits bound what one image may cost. They are of what a registry or an archive sends, before any of it is believed. How large
// an image is says the disk alone, of which Layer.Reserve is kept free.
type Limits struct {
	// Layer bounds one layer.
	Layer unpack.Limits
	// Layers is their number. Overlay takes 500, but each one's path stands in a line of the node's mount table, which many programs
	// read with a bound of 64 KiB: with a longer line none of them could read it, the kubelet's cAdvisor neither.
	Layers int
	// Manifest and Config are the largest sizes of these documents, in bytes.
	Manifest, Config int64
	// IndexDepth is how deep indexes may lie in indexes.
	IndexDepth int
	// ArchiveEntries is the number of entries of an archive that is imported.
	ArchiveEntries int
}

// DefaultLimits are far above real images and far below what harms a node.
var DefaultLimits = Limits{
	Layer: unpack.DefaultLimits, Layers: 256, Manifest: 4 << 20, Config: 8 << 20, IndexDepth: 3, ArchiveEntries: 100_000,
}
