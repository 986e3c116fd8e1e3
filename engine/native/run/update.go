//go:build cgo

package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Update replaces the resources but for the devices. When the kernel refuses one, libcontainer sets the old ones again, and leaves what
// had none.
func (c *container) Update(raw json.RawMessage) error {
	resources := new(specs.LinuxResources)
	if err := json.Unmarshal(raw, resources); err != nil {
		return fmt.Errorf("decode resources for container %s: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	changed := *c.spec
	linux := *c.spec.Linux
	if linux.Resources != nil {
		resources.Devices = linux.Resources.Devices
	}
	linux.Resources = resources
	changed.Linux = &linux
	made, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{CgroupName: c.id, UseSystemdCgroup: c.args.SystemdCgroup, Spec: &changed}, nil)
	if err != nil {
		return fmt.Errorf("update container %s: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	config := c.container.Config()
	lift(made.Resources, config.Cgroups.Resources, cgroups.IsCgroup2UnifiedMode())
	group := *config.Cgroups
	made.Resources.Devices = group.Resources.Devices
	group.Resources = made.Resources
	config.Cgroups = &group
	// The devices stay as they are, with what others may have added. The mark is for this call alone: no process starts
	// with it.
	c.configuring <- struct{}{}
	defer func() { <-c.configuring }()
	made.Resources.SkipDevices = true
	err = c.container.Set(config)
	made.Resources.SkipDevices = false
	if errors.Is(err, libcontainer.ErrNotRunning) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	c.spec = &changed
	return nil
}

// lift says of each limit that was set and is not any more what lifts it: libcontainer leaves alone what is zero.
func lift(now, before *cgroups.Resources, v2 bool) {
	if now.Memory == 0 && before.Memory > 0 {
		now.Memory, now.MemorySwap = -1, -1
	}
	if now.MemorySwap == 0 && before.MemorySwap > 0 {
		now.MemorySwap = -1
	}
	if now.MemoryReservation == 0 && before.MemoryReservation > 0 {
		if v2 { // −1 would be written as "max" to memory.low: all of the container's memory protected, where none is to be
			unified := map[string]string{"memory.low": "0"}
			maps.Copy(unified, now.Unified)
			now.Unified = unified
		} else {
			now.MemoryReservation = -1
		}
	}
	if now.CpuQuota == 0 && before.CpuQuota > 0 {
		now.CpuQuota = -1
	}
	if now.CpuPeriod == 0 && before.CpuPeriod != 0 {
		now.CpuPeriod = 100_000 // the kernel's default, µs
	}
	if now.CpuShares == 0 && before.CpuShares != 0 {
		now.CpuShares = 1024 // the kernel's default
		now.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(now.CpuShares)
	}
	if now.PidsLimit == nil && before.PidsLimit != nil {
		unlimited := int64(-1)
		now.PidsLimit = &unlimited
	}
}
