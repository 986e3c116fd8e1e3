package ns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/rmtree"
)

// Unpin drops one pin by its name. OK when there is none.
func (p *Pins) Unpin(id engine.PodID, name string) error {
	if err := validName(string(id), name); err != nil {
		return err
	}
	if err := clear(p.path(id, name)); err != nil {
		return fmt.Errorf("unpin the namespace %s of pod %s: %w", name, id, err)
	}
	return nil
}

// Remove drops all pins of the pod. OK when there are none.
func (p *Pins) Remove(id engine.PodID) error {
	if err := validName(string(id)); err != nil {
		return err
	}
	if err := clear(p.path(id, "")); err != nil {
		return fmt.Errorf("unpin the namespaces of pod %s: %w", id, err)
	}
	return nil
}

// clear unmounts and removes path, a pod's folder with its pins, or whatever somebody put in its place. Links are not
// followed, and nothing is removed behind a mount.
func clear(path string) error {
	detach(path)
	entries, err := os.ReadDir(path)
	if st, lerr := os.Lstat(path); err == nil && lerr == nil && st.IsDir() {
		for _, entry := range entries {
			detach(filepath.Join(path, entry.Name()))
		}
	}
	return rmtree.Remove(context.Background(), path)
}

// detach takes away all mounts at path; EINVAL says that there is none, or that path is a link.
func detach(path string) {
	for range 16 {
		if unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) != nil {
			return
		}
	}
}

// List are the pods that have anything here.
func (p *Pins) List() ([]engine.PodID, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list the pins of pods: %w", err)
	}
	ids := make([]engine.PodID, 0, len(entries))
	for _, entry := range entries {
		ids = append(ids, engine.PodID(entry.Name()))
	}
	return ids, nil
}
