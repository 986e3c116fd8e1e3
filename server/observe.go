package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// observable are the calls that a server which only observes answers (Options.Observe), beside the List and Stream ones:
// none changes anything. A call that is not known here is refused, so that a new one is.
var observable = []string{
	"Version", "Status", "RuntimeConfig", "PodSandboxStatus", "ContainerStatus", "ImageStatus", "ImageFsInfo",
	"ContainerStats", "PodSandboxStats", "GetContainerEvents",
}

// refuseChange says no to a call that would change something.
func refuseChange(method string) error {
	if slices.Contains(observable, method) || strings.HasPrefix(method, "List") || strings.HasPrefix(method, "Stream") {
		return nil
	}
	return fmt.Errorf("%s is refused: this crishim only observes (serve --observe), the pods are another shim's until the switch: %w", method, errdefs.ErrFailedPrecondition)
}
