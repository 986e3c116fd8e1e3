package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/cgroup"
	"crishim/engine/native/host"
	"crishim/engine/native/monitor"
	"crishim/engine/native/rootfs"
)

// recordVersion is that of podRecord and containerRecord. Fields are only added; a record of a higher version is left
// alone, and so is all that it names.
const recordVersion = 1

// header begins each record, of this version and of all to come.
type header struct {
	Version int `json:"version"`
	// Revision counts the times that the record was replaced.
	Revision uint64 `json:"revision,omitempty"`
	// Boot is the run of the kernel in which the object was made: after another nothing of it runs.
	Boot string `json:"boot"`
}

// podRecord is what is kept of a pod, over reboots too. The records are replaced at once but not synced: after a power cut
// the server's records count, and what no record names any more is removed.
type podRecord struct {
	header
	ID        engine.PodID   `json:"id"`
	Spec      engine.PodSpec `json:"spec"`
	CreatedAt time.Time      `json:"createdAt"`
	StartedAt time.Time      `json:"startedAt,omitzero"`
	// Stopped: StopPod was called, or the pod's monitor died.
	Stopped bool        `json:"stopped,omitempty"`
	Cgroup  cgroup.Pod  `json:"cgroup"`
	Labels  host.Labels `json:"labels,omitzero"`
	// Files are what its containers share, of this boot.
	Files rootfs.Pod `json:"files,omitzero"`
	// Monitor is the process, for when its own record is damaged.
	Monitor monitor.Record `json:"monitor,omitzero"`
	// IPs are for plugins; empty without any.
	IPs []string `json:"ips,omitempty"`
}

// containerRecord is what is kept of a container.
type containerRecord struct {
	header
	ID         engine.ContainerID   `json:"id"`
	Spec       engine.ContainerSpec `json:"spec"`
	CreatedAt  time.Time            `json:"createdAt"`
	StartedAt  time.Time            `json:"startedAt,omitzero"`
	Cgroup     cgroup.Container     `json:"cgroup"`
	User       engine.User          `json:"user"`
	StopSignal string               `json:"stopSignal"`
	Upper      string               `json:"upper"`
	// Disk has the writable layer and volumes of the image, "" without volumes.
	Disk string `json:"disk,omitempty"`
	// Started is set before the monitor is asked: from then on the monitor, or the exit file, knows what became of it.
	Started bool `json:"started,omitempty"`
	// PluginLimits are what plugins set, over Spec.Resources.
	PluginLimits *specs.LinuxResources `json:"pluginLimits,omitempty"`
	// Ended is the end where no monitor wrote an exit file: a start that failed, a monitor that died, a reboot.
	Ended *ending `json:"ended,omitempty"`
}

// decodePod fills in the record of pod id of which decode has found the header.
func decodePod(id string, data []byte) (podRecord, error) {
	var r podRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	if string(r.ID) != id || r.Cgroup.Path == "" {
		return r, fmt.Errorf("it is the record of %q in cgroup %q: %w", r.ID, r.Cgroup.Path, errdefs.ErrDataLoss)
	}
	return r, nil
}

// decodeContainer is decodePod for a container's.
func decodeContainer(id string, data []byte) (containerRecord, error) {
	var r containerRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	if string(r.ID) != id || r.Spec.Pod == "" || r.Cgroup.Path == "" {
		return r, fmt.Errorf("it is the record of %q in pod %q and cgroup %q: %w", r.ID, r.Spec.Pod, r.Cgroup.Path, errdefs.ErrDataLoss)
	}
	return r, nil
}

// ending is how a container ended.
type ending struct {
	Code    int32     `json:"code"`
	Reason  string    `json:"reason"`
	Message string    `json:"message,omitempty"`
	At      time.Time `json:"at"`

	// untold says that no exit file tells it, any more.
	untold bool
}

// diskError gives what a full or read-only disk says its class.
func diskError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: free space in the root folder: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: the root folder cannot be written: %w", err, errdefs.ErrUnavailable)
	}
	return err
}
