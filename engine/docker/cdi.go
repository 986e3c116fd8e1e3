package docker

import (
	"context"
	"slices"

	"github.com/docker/docker/api/types/system"

	"crishim/engine"
)

// apiCDIListed is the first API whose /info lists the CDI devices.
const apiCDIListed = "1.50"

// checkCDI refuses devices that the engine does not know; Docker would tell at the start only. What CDI files hold may
// change at any time, so that it is asked for where a container wants some.
func (e *Engine) checkCDI(ctx context.Context, spec *engine.ContainerSpec, f *facts) error {
	if len(spec.CDIDevices) == 0 || !f.cdi || !f.atLeast(apiCDIListed) {
		return nil
	}
	info, err := ask(ctx, e, "ask for CDI devices", quickLimit, func(ctx context.Context, s *session) (system.Info, error) {
		return s.cli.Info(ctx)
	})
	if err != nil {
		return err
	}
	return missingCDI(spec.CDIDevices, info.DiscoveredDevices)
}

func missingCDI(wanted []string, known []system.DeviceInfo) error {
	for _, name := range wanted {
		if !slices.Contains(known, system.DeviceInfo{Source: "cdi", ID: name}) {
			return invalid("no CDI file describes device %.200q", name)
		}
	}
	return nil
}
