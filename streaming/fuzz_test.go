package streaming

import (
	"slices"
	"testing"
)

// FuzzFrames: however a client cuts its bytes, the same frames are found in them.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x80\x03\x00\x01\x01\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"), uint8(3))
	f.Add([]byte("\x00\x00\x00\x01\x00\xff\xff\xffhello"), uint8(1))
	f.Add([]byte("\x80\x03\x00\x03\x00\x00\x00\x02ab\x80\x03\x00\x06\x00\x00\x00\x00"), uint8(7))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		find := func(chunk int) (found []frame, within bool) {
			var s frameScanner
			for part := range slices.Chunk(data, chunk) {
				if _, err := s.scan(part, func(f frame) error { found = append(found, f); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			return found, s.within()
		}
		whole, within := find(len(data) + 1)
		cut, cutWithin := find(int(size) + 1)
		if !slices.Equal(whole, cut) || within != cutWithin {
			t.Fatalf("%q: %v %v in one piece, %v %v in pieces of %d", data, whole, within, cut, cutWithin, int(size)+1)
		}
	})
}
