package imagestore

import (
	"errors"
	"testing"
)

// Rows: R19 (part)
func TestAFullDiskIsKnownByTheKernelsWords(t *testing.T) {
	for text, want := range map[string]bool{
		"Error response from daemon: write /var/lib/docker/overlay2/x/link: no space left on device": true,
		"failed to register layer: disk quota exceeded":                                              true,
		"manifest unknown": false,
	} {
		if got := DiskFull(errors.New(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if DiskFull(nil) {
		t.Error("no error is one")
	}
}
