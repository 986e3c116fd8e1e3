package image

import (
	"context"
	"os"
	"time"

	"crishim/engine"
)

// Usage is what the store takes on disk, as it was last sampled. No I/O.
func (s *Store) Usage() engine.FSUsage { return *s.usage.Load() }

// ImageFS names the store's own file system; those of containers are their owner's to say.
func (s *Store) ImageFS(context.Context) (images, containers []engine.FSUsage, err error) {
	return []engine.FSUsage{s.Usage()}, nil, nil
}

// folders are those of the store itself, one block each.
const folders = 8

// sample sums up what is known: layers and blobs were measured when they came, so that nothing is walked.
func (s *Store) sample() {
	sum := usage{bytes: folders * 4096, inodes: folders}
	for _, dir := range []string{partsDir, recordsDir} { // few and small
		entries, _ := os.ReadDir(s.path(dir)) // what cannot be read is not counted this time
		for _, entry := range entries {
			if info, err := entry.Info(); err == nil {
				sum.add(newBlob(info).usage)
			}
		}
	}
	s.mu.Lock()
	for _, b := range s.content.blobs {
		sum.add(b.usage)
	}
	for _, l := range s.content.layers {
		sum.add(usage{bytes: l.Bytes + 4096, inodes: l.Inodes + 1}) // with layer.json
	}
	for _, u := range s.content.inherited {
		if u != nil {
			sum.add(*u)
		}
	}
	s.mu.Unlock()
	s.usage.Store(&engine.FSUsage{Timestamp: time.Now(), Mountpoint: s.root, UsedBytes: uint64(sum.bytes), InodesUsed: uint64(sum.inodes)})
}
