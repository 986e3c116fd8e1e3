package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/cgroup"
	"crishim/engine/native/host"
	"crishim/engine/native/rootfs"
	"crishim/internal/atomicfile"
)

// recordVersion is that of podRecord and containerRecord. Fields are only added; a record of a higher version is left
// alone, and so is all that it names.
const recordVersion = 1

// podRecord is what is kept of a pod, over reboots too. The records are replaced at once but not synced: after a power cut
// the server's records count, and what no record names any more is removed.
type podRecord struct {
	Version   int            `json:"version"`
	ID        engine.PodID   `json:"id"`
	Boot      string         `json:"boot"`
	Spec      engine.PodSpec `json:"spec"`
	CreatedAt time.Time      `json:"createdAt"`
	StartedAt time.Time      `json:"startedAt,omitzero"`
	// Stopped: StopPod was called, or the pod's monitor died.
	Stopped bool        `json:"stopped,omitempty"`
	Cgroup  cgroup.Pod  `json:"cgroup"`
	Labels  host.Labels `json:"labels,omitzero"`
	// Files are what its containers share, of this boot.
	Files rootfs.Pod `json:"files,omitzero"`
}

// containerRecord is what is kept of a container.
type containerRecord struct {
	Version    int                  `json:"version"`
	ID         engine.ContainerID   `json:"id"`
	Boot       string               `json:"boot"`
	Spec       engine.ContainerSpec `json:"spec"`
	CreatedAt  time.Time            `json:"createdAt"`
	StartedAt  time.Time            `json:"startedAt,omitzero"`
	Cgroup     cgroup.Container     `json:"cgroup"`
	User       engine.User          `json:"user"`
	StopSignal string               `json:"stopSignal"`
	Upper      string               `json:"upper"`
	// Started is set before the monitor is asked: from then on the monitor, or the exit file, knows what became of it.
	Started bool `json:"started,omitempty"`
	// Ended is the end where no monitor wrote an exit file: a start that failed, a monitor that died, a reboot.
	Ended *ending `json:"ended,omitempty"`
}

// ending is how a container ended.
type ending struct {
	Code    int32     `json:"code"`
	Reason  string    `json:"reason"`
	Message string    `json:"message,omitempty"`
	At      time.Time `json:"at"`
}

func writeRecord(dir, id string, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, id)
	temp := filepath.Join(dir, atomicfile.TempPrefix+id)
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("record %s: %w", id, diskError(err))
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

// readRecords calls add with each record of the folder. One that cannot be read is set aside, once, and logged: it keeps
// nothing else from being served.
func readRecords[R any](dir string, add func(name string, record *R) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(dir, entry.Name())
		if strings.HasPrefix(name, ".") || !entry.Type().IsRegular() {
			if strings.HasPrefix(name, atomicfile.TempPrefix) {
				_ = os.Remove(path)
			}
			continue
		}
		record := new(R)
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, record)
		}
		if err == nil {
			err = add(name, record)
		}
		if err != nil && !errors.Is(err, errNewer) {
			klog.ErrorS(err, "A record of the native engine cannot be read and is set aside", "path", path)
			_ = os.Rename(path, filepath.Join(dir, ".bad-"+name))
		}
	}
	return nil
}

// errNewer is a record that a newer version wrote.
var errNewer = fmt.Errorf("the record is of a newer version: %w", errdefs.ErrFailedPrecondition)

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
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
