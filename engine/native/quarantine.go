package native

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// badPrefix begins the names of records that were set aside.
const badPrefix = ".bad-"

// quarantine is the records that were set aside, those of earlier starts that nobody has removed included.
type quarantine struct {
	mu    sync.Mutex
	paths map[string]bool
}

// setAside gives a file that cannot be believed another name, under which it can be looked at.
func (q *quarantine) setAside(path string) {
	aside := filepath.Join(filepath.Dir(path), badPrefix+filepath.Base(path))
	if err := os.Rename(path, aside); err != nil {
		quiet(err, "set a bad record aside", path)
		return
	}
	q.note(aside)
}

// note counts a record that was set aside.
func (q *quarantine) note(path string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.paths == nil {
		q.paths = map[string]bool{}
	}
	q.paths[path] = true
}

// find counts what earlier starts have set aside in a folder.
func (q *quarantine) find(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), badPrefix) {
			q.note(filepath.Join(dir, entry.Name()))
		}
	}
	return err
}

func (q *quarantine) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.paths)
}
