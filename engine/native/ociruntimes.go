package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"crishim/engine"
)

// featuresLimit bounds the question what an OCI runtime can do, outputDelay how long its output is waited for after its end: a child
// may hold it.
const (
	featuresLimit = 5 * time.Second
	outputDelay   = time.Second
)

// describeRuntimes asks the OCI runtimes what they can do. One that cannot be run is a warning: the others' pods go on.
func (e *Engine) describeRuntimes(own engine.HandlerFeatures) (handlers map[string]engine.HandlerFeatures, warnings []string) {
	handlers = map[string]engine.HandlerFeatures{}
	for name, program := range e.opts.Runtimes {
		handlers[name] = engine.HandlerFeatures{}
		if _, err := exec.LookPath(program); err != nil {
			warnings = append(warnings, fmt.Sprintf("the OCI runtime of handler %q cannot be run, its pods' containers will not start: %v", name, err))
			continue
		}
		ctx, cancel := context.WithTimeout(e.life, featuresLimit)
		cmd := exec.CommandContext(ctx, program, "features")
		cmd.WaitDelay = outputDelay
		out, err := cmd.Output()
		cancel()
		if errors.Is(err, exec.ErrWaitDelay) { // it has ended well, and said what it had to say
			err = nil
		}
		var f features.Features
		if err != nil || json.Unmarshal(out, &f) != nil {
			continue // an old one: nothing says that it has either
		}
		handlers[name] = engine.HandlerFeatures{
			RecursiveReadonlyMounts: own.RecursiveReadonlyMounts && slices.Contains(f.MountOptions, "rro"),
			UserNamespaces:          own.UserNamespaces && hasIDMap(&f),
		}
	}
	return handlers, warnings
}

// hasIDMap: volumes of a pod with a user namespace are id-mapped.
func hasIDMap(f *features.Features) bool {
	return f.Linux != nil && slices.Contains(f.Linux.Namespaces, "user") && f.Linux.MountExtensions != nil &&
		f.Linux.MountExtensions.IDMap != nil && f.Linux.MountExtensions.IDMap.Enabled != nil && *f.Linux.MountExtensions.IDMap.Enabled
}

// runtimeOf is the program that makes a pod's containers, "" for libcontainer.
func (e *Engine) runtimeOf(p *pod) (string, error) {
	handler := p.Spec.Handler
	if handler == "" {
		return "", nil
	}
	program := e.opts.Runtimes[handler]
	if !filepath.IsAbs(program) {
		return "", fmt.Errorf("runtime handler %q has no OCI runtime in the configuration any more: %w", handler, errdefs.ErrFailedPrecondition)
	}
	return program, nil
}
