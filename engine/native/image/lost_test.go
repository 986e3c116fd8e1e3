package image

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// What the disk has lost of a blob it tells once, and what is in memory looks whole: the blob is fetched anew.
//
// Rows: R22 (part)
func TestABlobThatTheDiskLostIsFetchedAnew(t *testing.T) {
	var mu sync.Mutex
	var lost *os.File
	real := syncFile
	syncFile = func(f *os.File) error {
		mu.Lock()
		defer mu.Unlock()
		if lost != nil {
			return real(f)
		}
		var err error
		if lost, err = os.Open(f.Name()); err != nil { // kept open: no other file gets its number
			return err
		}
		return unix.EIO
	}
	t.Cleanup(func() { syncFile = real })
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	s := newStore(t, nil)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute}); !errors.Is(err, unix.EIO) {
		t.Fatalf("pulled to a disk that lost a blob: %v", err)
	}
	defer func() { _ = lost.Close() }()
	pull(t, s, ref)
	old, err := lost.Stat()
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(s.path(blobsDir, string(digest.SHA256), "*"))
	if err != nil || len(blobs) < 3 {
		t.Fatalf("%d blobs, %v", len(blobs), err)
	}
	for _, path := range blobs {
		if now, err := os.Stat(path); err != nil || os.SameFile(old, now) {
			t.Errorf("%s is what the disk has lost, or %v", path, err)
		}
	}
	sound(t, s)
}

// A flush is of the whole file system, and tells once what the disk has lost: also of a layer that is still being written.
func TestAFlushThatFailedCountsForAllThatWasBeingWritten(t *testing.T) {
	var y syncer
	dir := t.TempDir()
	before := y.failed.Load()
	if err := y.sync(filepath.Join(dir, "absent"), before); err == nil {
		t.Error("flushed what is absent")
	}
	if err := y.sync(dir, before); err == nil {
		t.Error("what was written before the failed flush is taken for durable")
	}
	if err := y.sync(dir, y.failed.Load()); err != nil {
		t.Errorf("what was written after it: %v", err)
	}
}
