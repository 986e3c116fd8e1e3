package docker

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/system"
)

func TestOnlyDevicesOfCDIFilesAreTaken(t *testing.T) {
	known := []system.DeviceInfo{{Source: "other", ID: "vendor.example/disk=0"}, {Source: "cdi", ID: "vendor.example/gpu=0"}, {Source: "cdi", ID: "vendor.example/gpu=1"}}
	if err := missingCDI([]string{"vendor.example/gpu=1", "vendor.example/gpu=0"}, known); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"vendor.example/gpu=2", "vendor.example/disk=0", ""} {
		if err := missingCDI([]string{"vendor.example/gpu=0", name}, known); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want an invalid argument", name, err)
		}
	}
}
