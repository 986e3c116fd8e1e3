package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"crishim/internal/powercut"

	"golang.org/x/sys/unix"
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

// state is one that a file was in, by when the disk had first and last to do with it: neverDurable where nothing waited for it.
type state struct {
	content        []byte // nil of none
	begun, durable int
}

const neverDurable = math.MaxInt

// life is the states of a file on a disk.
type life struct {
	disk   *powercut.Disk
	states []state
}

func (l *life) change(t *testing.T, durably bool, content []byte, steps ...func() error) {
	t.Helper()
	s := state{content: content, begun: l.disk.Now(), durable: neverDurable}
	for _, step := range steps {
		must(t, step())
	}
	if durably {
		s.durable = l.disk.Now()
	}
	l.states = append(l.states, s)
}

// possible says whether the file may have this content after a cut at this write: of the last state that was durable by then,
// or of one that had begun after it.
func (l *life) possible(got []byte, at int) bool {
	oldest := -1
	for i, s := range l.states {
		if s.durable <= at {
			oldest = i
		}
	}
	fine := oldest < 0 && got == nil
	for i, s := range l.states {
		fine = fine || i >= oldest && s.begun < at && bytes.Equal(s.content, got) && (s.content == nil) == (got == nil)
	}
	return fine
}

// whole says whether the content is that of any state, not torn.
func (l *life) whole(got []byte) bool {
	return slices.ContainsFunc(l.states, func(s state) bool { return s.content != nil && bytes.Equal(s.content, got) })
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return got
}

// cuts calls check with what is on the disk after cuts at moments spread over all that was written.
func (l *life) cuts(t *testing.T, check func(dir string, at int) (got []byte)) {
	t.Helper()
	cuts := 0
	for _, at := range l.disk.Moments(24) {
		for _, lossy := range []bool{false, true} {
			cuts++
			l.disk.Cut(at, lossy, func(dir string) {
				if got := check(dir, at); !l.possible(got, at) {
					t.Errorf("cut after write %d (lossy: %v) the file has %d bytes %.20q", at, lossy, len(got), got)
				}
			})
		}
	}
	t.Logf("%d cuts in %d writes", cuts, l.disk.Now())
}

// Wherever the power is cut, the file is what one of its writes left, whole: the last one that had returned, or one that had
// begun after it.
//
// Rows: R22 (part)
func TestAPowerCutLeavesOldOrNew(t *testing.T) {
	l := life{disk: powercut.New(t, 16<<20)}
	path := filepath.Join(l.disk.Dir, "record.json")
	for round := range 12 {
		next := content(round)
		switch round % 3 {
		case 0:
			l.change(t, true, next, func() error { return Write(path, next, 0o600) })
		case 1:
			l.change(t, true, next, func() error { return Swap(path, next, 0o600) }, func() error { return SyncDir(l.disk.Dir) })
		case 2:
			l.change(t, true, nil, func() error { return Remove(path) })
		}
	}
	l.cuts(t, func(dir string, _ int) []byte { return read(t, filepath.Join(dir, "record.json")) })
}

// What is placed may be torn by a power cut: the older self then is what was settled before, or what was placed before. Where
// the file system has no links it is not torn; one that cannot exchange files renames.
//
// Rows: R22 (part)
func TestAPowerCutLeavesWhatWasSettled(t *testing.T) {
	for _, lacks := range []string{"nothing", "links", "exchange"} {
		t.Run("without "+lacks, func(t *testing.T) {
			links := lacks != "links"
			if lacks == "exchange" {
				renameat2 = func(int, string, int, string, uint) error { return unix.EINVAL }
				t.Cleanup(func() { renameat2 = unix.Renameat2 })
			}
			if !links {
				link = func(old, _ string) error {
					if _, err := os.Stat(old); err != nil {
						return err
					}
					return unix.EPERM
				}
				t.Cleanup(func() { link = os.Link })
			}
			l := life{disk: powercut.New(t, 16<<20)}
			path := filepath.Join(l.disk.Dir, "record.json")
			for round := range 14 {
				next := content(round)
				place := func() error { return Place(path, next, 0o600) }
				switch round % 7 {
				case 0: // nothing was there
					l.change(t, false, next, place)
				case 1, 4:
					l.change(t, true, next, place, func() error { return Settle(path) })
				case 2, 3, 5:
					l.change(t, false, next, place)
				case 6:
					l.change(t, false, nil, func() error { return Drop(path) })
				}
				if round%2 == 0 { // somebody else's fsync writes the folder, not what the file has
					must(t, Write(filepath.Join(l.disk.Dir, "elsewhere"), next, 0o600))
				}
			}
			torn, saved := 0, 0
			l.cuts(t, func(dir string, at int) []byte {
				got := read(t, filepath.Join(dir, "record.json"))
				if got == nil || l.whole(got) {
					return got
				}
				torn++
				older := read(t, Older(filepath.Join(dir, "record.json")))
				if !l.whole(older) { // lost, which it may be where there was nothing before
					return nil
				}
				saved++
				return older
			})
			t.Logf("torn %d times, its older self was there %d times", torn, saved)
			if links != (saved > 0) {
				t.Errorf("an older self was there %d times, with links: %v", saved, links)
			}
		})
	}
}
