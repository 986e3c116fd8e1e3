package host

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// Injector adds devices described by CDI files to a spec.
type Injector struct {
	cache *cdi.Cache
}

// NewInjector reads the CDI files in dirs, /etc/cdi and /var/run/cdi when none are named.
func NewInjector(dirs ...string) (*Injector, error) {
	options := []cdi.Option{cdi.WithAutoRefresh(false)}
	if len(dirs) > 0 {
		options = append(options, cdi.WithSpecDirs(dirs...))
	}
	cache, err := cdi.NewCache(options...)
	if err != nil {
		return nil, fmt.Errorf("CDI files: %w", err)
	}
	return &Injector{cache}, nil
}

// Inject edits s for the fully qualified names: device nodes, mounts, environment, hooks. The files are read again first.
// ErrInvalidArgument when none describes a device; s is then unchanged. Hooks run as the host's root: whoever may write CDI
// files owns the node.
func (i *Injector) Inject(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	// A file that cannot be read keeps only its own devices from being found.
	broken := i.cache.Refresh()
	unresolved, err := i.cache.InjectDevices(s, names...)
	switch {
	case err == nil:
		return nil
	case len(unresolved) > 0 && broken != nil:
		return invalid("no CDI file describes %.200q (%w)", unresolved, broken)
	case len(unresolved) > 0:
		return invalid("no CDI file describes %.200q", unresolved)
	}
	return invalid("CDI devices %.200q: %w", names, err)
}
