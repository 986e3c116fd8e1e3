package host

import "github.com/containerd/errdefs"

// Probe asks the host. An error means that no container can run here, and says what to do (ErrFailedPrecondition).
func Probe(opts Options) (*Host, error) { return nil, errdefs.ErrNotImplemented }
