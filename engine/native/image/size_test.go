package image

import (
	"fmt"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// The kubelet's image GC counts an image's size as what its removal frees, and stops when it thinks that this is enough. An image
// that is there by several indexes, as one that is rebuilt each day without a change for this platform, takes no more than by one.
func TestTheSizeOfAnImageCountsWhatItTakesOnce(t *testing.T) {
	reg := newSite(t, nil)
	once := layerOf(t, file("a", noise(1<<20)))
	img := imageWith(t, once)
	s := newStore(t, nil)
	first := pull(t, s, reg.push(t, "app:v1", indexOf(t, img)))
	var indexes uint64
	for i := range 5 {
		index, ok := mutate.Annotations(indexOf(t, img), map[string]string{"build": fmt.Sprint(i)}).(v1.ImageIndex)
		if !ok {
			t.Fatal("no index")
		}
		size, err := index.Size()
		if err != nil {
			t.Fatal(err)
		}
		indexes += uint64(size)
		again := pull(t, s, reg.push(t, "app:v1", index))
		if again.ID != first.ID || again.Size != first.Size+indexes {
			t.Errorf("by %d indexes the image has %d bytes, by one %d", i+2, again.Size, first.Size)
		}
	}

	twice := pull(t, s, reg.push(t, "twice:v1", imageWith(t, once, once)))
	if single := pull(t, s, reg.push(t, "once:v1", imageWith(t, once, layerOf(t, file("b", "1"))))); twice.Size > single.Size+4096 {
		t.Errorf("with a layer that is there twice it has %d bytes, with it once %d", twice.Size, single.Size)
	}
}
