package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"crishim/internal/atomicfile"
	"crishim/internal/process"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Quarantined is a record that is not served.
type Quarantined struct {
	// Path is where the file is now: in the quarantine directory, or, for a newer schema, where it was.
	Path   string
	Kind   string // "pod" or "container"
	Reason string
	// Newer says that the record is intact and was written by a newer version.
	Newer bool
}

// Quarantined lists the records that are not served, those of earlier starts that nobody has removed included.
func (s *Store) Quarantined() []Quarantined {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.quarantined)
}

// load fills the store before it is shared.
func (s *Store) load() error {
	s.loadQuarantine()
	if err := s.checkBoot(); err != nil {
		return err
	}
	if err := s.pods.load(); err != nil {
		return err
	}
	if err := s.containers.load(); err != nil {
		return err
	}
	for _, e := range s.pods.bySeq {
		e.over = s.rebooted && e.rec.Phase == PhaseRunning
	}
	return nil
}

// checkBoot finds out whether the machine was booted since the last use.
func (s *Store) checkBoot() error {
	id, err := process.Boot()
	if err != nil {
		return err
	}
	now := []byte(id + "\n")
	then, err := os.ReadFile(s.bootFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("learn the last boot id: %w", err)
	}
	s.rebooted = len(then) > 0 && !bytes.Equal(now, then)
	if s.readOnly || bytes.Equal(now, then) {
		return nil
	}
	s.unwrittenBoot = now
	if err := s.writeBoot(); err != nil {
		klog.ErrorS(err, "The boot id could not be written, and no record is written before it")
	}
	return nil
}

// load reads every record of the kind. An error is only a directory that cannot be read, or that this process has no descriptor left.
func (t *table[S, R, P, V]) load() error {
	files, err := os.ReadDir(t.dir)
	if err != nil {
		return fmt.Errorf("load %s records: %w", t.kind, err)
	}
	left := map[string]bool{} // by path: temporary files
	var paths []string
	for _, f := range files {
		path := filepath.Join(t.dir, f.Name())
		if strings.HasPrefix(f.Name(), atomicfile.TempPrefix) {
			left[path] = true
		} else {
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		rec := new(R)
		err := t.read(path, path, rec)
		if older := atomicfile.Older(path); left[older] && !process.Starved(err) {
			err = t.unsettled(path, older, rec, err)
			delete(left, older)
		}
		if process.Starved(err) {
			return fmt.Errorf("load %s record %s: %w", t.kind, filepath.Base(path), err)
		}
		if t.store.readOnly && errors.Is(err, fs.ErrNotExist) {
			continue // the daemon has removed it meanwhile
		}
		if err != nil {
			t.refuse(path, err)
			continue
		}
		if t.store.rebooted {
			P(rec).forgetProcess()
		}
		t.store.lastSeq = max(t.store.lastSeq, *P(rec).seq())
		e := &entry[S, R]{rec: *rec, recorded: true, file: path}
		t.derive(e)
		t.index(e)
	}
	for path := range left {
		if !t.store.readOnly {
			_ = os.Remove(path)
		}
	}
	return nil
}

// unsettled takes the older self of a record that was not settled, where a power cut has left nothing that can be read (reason)
// of the newer one. Else the newer one still is to be settled.
func (t *table[S, R, P, V]) unsettled(path, older string, rec *R, reason error) error {
	s := t.store
	if reason == nil || errors.Is(reason, errNewer) {
		if !s.readOnly {
			s.unsettled[path] = struct{}{}
		}
		return reason
	}
	*rec = *new(R)
	err := t.read(older, path, rec)
	if process.Starved(err) {
		return err
	}
	if err != nil && !errors.Is(err, errNewer) {
		if !s.readOnly && !unreadable(err) {
			_ = os.Remove(older)
		}
		return reason
	}
	klog.InfoS("The last second's change of a record is lost by a power cut, it is as before", "kind", t.kind, "path", path, "reason", reason)
	if s.readOnly || unreadable(reason) {
		return err // both stay, the next write replaces the newer one
	}
	if rerr := os.Rename(older, path); rerr != nil {
		klog.ErrorS(rerr, "What a record was before a power cut could not be put back, both files stay", "path", path)
	}
	return err
}

// unreadable says that a file could not be read, which tells nothing of what is in it.
func unreadable(err error) bool {
	var failed *fs.PathError
	return errors.As(err, &failed)
}

// read decodes a file and checks that it may stand at path.
func (t *table[S, R, P, V]) read(file, path string, rec *R) error {
	data, err := readRecord(file)
	if err != nil {
		return err
	}
	if err := decode(t.kind, data, P(rec)); err != nil {
		return err
	}
	id, key := P(rec).identity()
	if path != t.path(key) && path != t.path(hashName(key, id)) {
		return errors.New("the file's name belongs to another record")
	}
	if id != "" && t.byID[id] != nil {
		return fmt.Errorf("a second record of %s %s", t.kind, id)
	}
	if t.bySeq[*P(rec).seq()] != nil {
		return fmt.Errorf("a second record with sequence number %d", *P(rec).seq())
	}
	return nil
}

func readRecord(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if info.Size() > maxRecord {
		return nil, fmt.Errorf("%d bytes, more than a record has", info.Size())
	}
	return io.ReadAll(io.LimitReader(f, maxRecord+1))
}

// refuse keeps a bad record from being served: one of a newer schema stays, others move to the quarantine.
func (t *table[S, R, P, V]) refuse(path string, reason error) {
	s := t.store
	q := Quarantined{Path: path, Kind: t.kind, Reason: reason.Error(), Newer: errors.Is(reason, errNewer)}
	switch {
	case q.Newer:
		t.newer[path] = struct{}{}
	case !s.readOnly:
		to := filepath.Join(s.root, "quarantine", fmt.Sprintf("%s-%d-%s", t.kind, time.Now().UnixNano(), filepath.Base(path)))
		if err := os.Rename(path, to); err != nil {
			klog.ErrorS(err, "A bad record could not be moved away", "path", path)
			t.newer[path] = struct{}{} // nothing may be written in its place
			break
		}
		q.Path = to
		// The reason is for the operator: losing it on a full disk is no failure.
		_ = os.WriteFile(to+".reason", []byte(q.Reason+"\n"), 0o600)
	}
	klog.ErrorS(reason, "A record is not served", "kind", t.kind, "path", q.Path)
	s.quarantined = append(s.quarantined, q)
}

// loadQuarantine lists what earlier starts have put there.
func (s *Store) loadQuarantine() {
	dir := filepath.Join(s.root, "quarantine")
	files, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".reason") {
			continue
		}
		path := filepath.Join(dir, f.Name())
		kind, _, _ := strings.Cut(f.Name(), "-")
		reason, _ := os.ReadFile(path + ".reason")
		s.quarantined = append(s.quarantined, Quarantined{Path: path, Kind: kind, Reason: strings.TrimSpace(string(reason))})
	}
}
