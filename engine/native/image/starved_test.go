package image

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crishim/internal/starving"
)

// A daemon that has no descriptor left does not open the store, and throws no layer or record away as one that is not whole.
//
// Rows: R21 (part)
func TestWhatCannotBeOpenedNowIsNotThrownAway(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, richLayer(t)...), layerOf(t, file("top", "2"))))
	s := newStore(t, nil)
	img := pull(t, s, ref)
	reg.Close()
	_ = s.Close()
	var err error
	starving.Opening(t, 0, unix.O_DIRECTORY|unix.O_CREAT, func() {
		var opened *Store
		if opened, err = Open(Options{Root: s.root}); err == nil {
			_ = opened.Close()
		}
	})
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("the store was opened: %v", err)
	}
	s = reopen(t, s.root, nil)
	if now, err := s.Image(t.Context(), ref); err != nil || now.ID != img.ID {
		t.Errorf("%v, %v", now, err)
	}
	if s.content.layers[digest.Digest(img.Layers[0])] == nil {
		t.Error("its layer is gone")
	}
	sound(t, s)
}
