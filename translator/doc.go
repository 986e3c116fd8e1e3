// Package translator turns CRI requests into engine specs and engine statuses into CRI replies. It decides every default
// and refuses every value that is unsafe or contradicts itself, once for all engines.
//
// All of it is pure: no file, clock or engine is asked, nothing that is passed in is changed, and results share maps and
// slices with their inputs (records are immutable). The server calls Pod or Container, then CheckPod or CheckContainer
// with the engine's features, fills in what needs I/O (image ids, the content of seccomp profiles) and hands the spec to
// the engine. docs/compatibility.md has a line for every field; testdata/*.json shows the translation of each.
//
// Errors name all faults of a request at once, each by its CRI field, and are errdefs.ErrInvalidArgument, or
// ErrNotImplemented where only this engine, or the OCI runtime, cannot do it.
package translator

import "crishim/engine"

// Defaults are what the operator and the engine decide about specs.
type Defaults struct {
	// PauseImage is the reference of the image that holds a pod's namespaces.
	PauseImage string
	// CgroupDriver is the engine's; it decides the syntax of cgroup_parent. "" accepts both.
	CgroupDriver engine.CgroupDriver
	// SeccompRoot is the only folder that Localhost seccomp profiles may lie in: the kubelet's. "" allows none.
	SeccompRoot string
	// MaxLabelBytes bounds the labels and annotations of one pod or container, keys and values; 0 is DefaultMaxLabelBytes.
	MaxLabelBytes int
}

// DefaultMaxLabelBytes keeps a List of hundreds of pods within gRPC's 16 MiB.
const DefaultMaxLabelBytes = 512 << 10
