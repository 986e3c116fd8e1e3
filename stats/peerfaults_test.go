package stats

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestPeerFaultNN are the faults that were seen in cri-dockerd, by number; see server/peerfaults_test.go.

// 07: the size of the writable layer was dereferenced unasked, and read without its lock.
func TestPeerFault07AContainerWithoutAMeasuredLayerHasNoSize(t *testing.T) {
	disk := NewDisk()
	c := NewCollector(testReader(t, "v2"), disk)
	layer := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { disk.Run(ctx) })
	for _, target := range []Target{{ContainerID: "unwatched"}, {ContainerID: "gone", CgroupPath: v1Path}} {
		disk.Watch("gone", filepath.Join(layer, "absent"))
		if got, err := c.ContainerStats(target); err != nil || got.WritableLayer.GetUsedBytes() != nil {
			t.Errorf("%s: %v, %v", target.ContainerID, got, err)
		}
	}
	// Measured, forgotten and read at once: the race detector looks on.
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 100 {
				disk.Watch("c", layer)
				if _, err := c.ContainerStats(Target{ContainerID: "c", CgroupPath: v1Path, Mountpoint: layer}); err != nil {
					t.Error(err)
				}
				disk.Forget("c")
			}
		})
	}
	readers.Wait()
}

// 08: statistics with a filter made the collector forget those of every other container.
func TestPeerFault08ReadingOneContainerKeepsTheRatesOfTheOthers(t *testing.T) {
	r, set, now := counters(t)
	root := filepath.Join(r.root, "sys/fs/cgroup")
	must(t, os.CopyFS(filepath.Join(root, "other"), os.DirFS(filepath.Join(root, "c"))))
	c := NewCollector(r, NewDisk())
	read := func(path string) *uint64 {
		t.Helper()
		got, err := c.ContainerStats(Target{ContainerID: path, CgroupPath: path})
		if err != nil {
			t.Fatal(err)
		}
		if got.Cpu.UsageNanoCores == nil {
			return nil
		}
		return &got.Cpu.UsageNanoCores.Value
	}
	set(1_000_000)
	must(t, os.WriteFile(filepath.Join(root, "other/cpu.stat"), []byte("usage_usec 1000000\n"), 0o644))
	read("/c")
	read("/other")
	for range 5 { // "/other" alone is asked for, again and again
		*now = now.Add(2 * time.Second)
		read("/other")
	}
	set(11_000_000)
	if rate := read("/c"); rate == nil || *rate != 1_000_000_000 {
		t.Errorf("10 s of CPU in 10 s: %v", rate)
	}
}

// 09: cgroup v1 was assumed.
func TestPeerFault09BothCgroupVersionsAreRead(t *testing.T) {
	for tree, path := range map[string]string{"v1hybrid": v1Path, "v2": v1Path, "v2systemd": systemdPath} {
		c := NewCollector(testReader(t, tree), NewDisk())
		got, err := c.ContainerStats(Target{ContainerID: "c", CgroupPath: path})
		if err != nil || got.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || got.Memory.GetWorkingSetBytes().GetValue() == 0 {
			t.Errorf("%s: %v, %v", tree, got, err)
		}
	}
}
