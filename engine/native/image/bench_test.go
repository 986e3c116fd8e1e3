package image

import (
	"fmt"
	"testing"
)

// BenchmarkR22Pull pulls an image of a hundred megabytes, and tells what part of the time its flush to disk took.
func BenchmarkR22Pull(b *testing.B) {
	needRoot(b)
	reg := newSite(b, nil)
	var entries []entry
	for d := range 100 {
		entries = append(entries, dir(fmt.Sprintf("usr/lib/d%d", d)))
		for f := range 30 {
			entries = append(entries, file(fmt.Sprintf("usr/lib/d%d/f%d", d, f), noise(35_000+f)))
		}
	}
	ref := reg.push(b, "app:v1", imageWith(b, layerOf(b, entries...)))
	s := newStore(b, nil)
	for b.Loop() {
		img := pull(b, s, ref)
		b.StopTimer()
		if err := s.RemoveImage(b.Context(), img.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	c := s.Counts()
	b.SetBytes(int64(c.UnpackedBytes) / int64(c.Done))
	b.ReportMetric(100*c.FlushSeconds/c.Seconds, "flush-%")
}
