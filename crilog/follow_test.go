package crilog

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/fsnotify/fsnotify"
)

// A kubelet that follows a log leaves the old file the moment it hears of the new one: by then it must have heard of all that is
// in the old one.
func TestReopenMakesTheNewFileAfterTheLastWriteToTheOld(t *testing.T) {
	w, path := open(t)
	watcher, err := fsnotify.NewBufferedWatcher(1 << 10)
	must(t, err)
	must(t, watcher.Add(filepath.Dir(path)))
	watched := make(chan int)
	go func() {
		defer close(watched)
		made := 0
		for event := range watcher.Events {
			var of int
			switch {
			case event.Op == fsnotify.Create && event.Name == path:
				made++
			case event.Op == fsnotify.Write && event.Name != path:
				if _, err := fmt.Sscanf(filepath.Base(event.Name), "0.log.%d", &of); err == nil && of <= made {
					t.Errorf("%s is written to after %d new files were made", event.Name, made)
				}
			}
			if event.Op == fsnotify.Create && filepath.Base(event.Name) == "end" {
				watched <- made
				return
			}
		}
	}()

	const rotations = 300
	var writers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		writers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					w.WriteText(noon, Stdout, []byte("line\n"))
				}
			}
		})
	}
	for i := range rotations {
		must(t, os.Rename(path, fmt.Sprintf("%s.%d", path, i+1)))
		must(t, w.Reopen())
	}
	close(done)
	writers.Wait()
	must(t, os.WriteFile(filepath.Join(filepath.Dir(path), "end"), nil, 0o600))
	if made := <-watched; made != rotations {
		t.Errorf("%d files were made, want %d", made, rotations)
	}
	must(t, watcher.Close())
}
