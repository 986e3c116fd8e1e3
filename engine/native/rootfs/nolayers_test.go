package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// An image may have no layer at all (FROM scratch and labels). As a volume it is an empty folder that everybody may look into.
func TestAnImageWithoutLayersIsAnEmptyVolume(t *testing.T) {
	s := store(t)
	for name, m := range map[string]*Idmap{"host's users": nil, "own users": idmap(t)} {
		t.Run(name, func(t *testing.T) {
			path, err := s.MountImage(t.Context(), "c", 0, &ImageVolume{Layers: Layers{Idmap: m}})
			if err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(path)
			if err != nil || len(entries) != 0 {
				t.Errorf("%v, %v", entries, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			if uid, _ := owner(t, path); (uid == 100000) != (m != nil) {
				t.Errorf("%d's", uid)
			}
			if err := os.WriteFile(filepath.Join(path, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("it can be written: %v", err)
			}
			if err := s.Remove(t.Context(), "c"); err != nil {
				t.Error(err)
			}
			if n := mountsIn(t, s.run); n != 1 {
				t.Errorf("%d mounts are left", n-1)
			}
		})
	}
}
