package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"crishim/internal/powercut"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// content is of a length that does not fit blocks.
func content(round int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("round %d\n", round)), 700+round)
}

// Wherever the power is cut, the file is what one of its writes left, whole: the last one that had returned, or one that had
// begun after it. What was placed and not settled yet may be empty.
//
// Rows: R22 (part)
func TestAPowerCutLeavesOldOrNew(t *testing.T) {
	disk := powercut.New(t, 16<<20)
	path := filepath.Join(disk.Dir, "record.json")
	// Each is a state of the file, by when the disk had first and last to do with it.
	type state struct {
		content        []byte
		placed         bool
		begun, durable int
	}
	var states []state
	change := func(content []byte, steps ...func() error) {
		s := state{content: content, placed: len(states)%4 == 2, begun: disk.Now()}
		for _, step := range steps {
			must(t, step())
		}
		s.durable = disk.Now()
		states = append(states, s)
	}
	for round := range 12 {
		next := content(round)
		switch round % 4 {
		case 0:
			change(next, func() error { return Write(path, next, 0o600) })
		case 1:
			change(next, func() error { return Swap(path, next, 0o600) }, func() error { return SyncDir(disk.Dir) })
		case 2:
			change(next, func() error { return Place(path, next, 0o600) }, func() error { return Settle(path) })
		case 3:
			change(nil, func() error { return Remove(path) })
		}
	}
	cuts := 0
	for _, at := range disk.Moments(24) {
		for _, lossy := range []bool{false, true} {
			cuts++
			disk.Cut(at, lossy, func(dir string) {
				got, err := os.ReadFile(filepath.Join(dir, "record.json"))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				oldest := -1
				for i, s := range states {
					if s.durable <= at {
						oldest = i
					}
				}
				fine := oldest < 0 && got == nil
				for i, s := range states {
					possible := i >= oldest && s.begun < at
					fine = fine || possible && (bytes.Equal(s.content, got) && (s.content == nil) == (got == nil) || s.placed && got != nil && len(got) == 0)
				}
				if !fine {
					t.Errorf("cut after write %d (lossy: %v) the file has %d bytes %.20q, state %d was durable", at, lossy, len(got), got, oldest)
				}
			})
		}
	}
	t.Logf("%d cuts in %d writes", cuts, disk.Now())
}
