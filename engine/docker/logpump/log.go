package logpump

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"crishim/crilog"
	"crishim/internal/process"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// longestEntry is more than any entry has: 16 KiB of text, a time and two tags.
const longestEntry = 2 * crilog.MaxContent

// criLog is the log that a pump writes to. After a crash it may hold more than the saved position says; those bytes are
// the first that the source gives again, so they are compared and passed over rather than written (held).
//
// Where the log was renamed before the crash, what follows its end is in the file at the path, from that one's beginning:
// only Reopen goes on to another file, and it saves the position.
type criLog struct {
	root, path string
	write      func(*os.File, []byte) (int, error)

	file    *os.File // nil until something is written to the log of a finished container
	id      fileID
	size    int64       // the end of what is written and compared
	held    int64       // bytes after size that the file already has
	began   bool        // it was empty when it was opened
	left    crilog.Left // the file before it
	whole   bool        // size is at the end of an entry
	torn    bool        // the file ends within an entry that nothing will complete
	renamed bool        // the file is not at the path any more: go on there once whole and nothing is held
}

// openLog opens the log at the path, or the one of the position where it can be found. It returns what the source shall
// leave out: entries before from. An intact pair of places has none.
func openLog(root, path string, write func(*os.File, []byte) (int, error), pos *position) (l *criLog, from time.Time, intact bool, err error) {
	l = &criLog{root: root, path: path, write: write, whole: true}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if pos != nil {
		found, err := l.find(pos.Log)
		if err != nil || found {
			return l, time.Time{}, found, errors.Join(err, l.settle())
		}
		if pos.Finished {
			l.renamed = true // whoever removed the log need not see it come back empty
			return l, time.Time{}, true, nil
		}
	}
	if err := l.next(); err != nil {
		return l, time.Time{}, false, err
	}
	// Without a pair the log itself says how far it is: the entries of its last moment are compared, older ones left out.
	from, offset, ok := crilog.LastMoment(l.file)
	l.rewind(offset)
	return l, from, pos != nil && !ok, nil
}

// find looks for the position's file at the path and under the names that the kubelet's rotation gives (NAME.TIME).
func (l *criLog) find(at logOffset) (found bool, err error) {
	dir, name, err := crilog.OpenParent(l.root, l.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = dir.Close() }()
	names := []string{name}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return false, fmt.Errorf("look for log %s: %w", l.path, err)
	}
	for _, entry := range entries {
		if (strings.HasPrefix(entry.Name(), name+".") || entry.Name() == name+crilog.OverflowSuffix) && entry.Type().IsRegular() {
			names = append(names, entry.Name())
		}
	}
	for i, name := range names {
		f, err := crilog.OpenExisting(dir, name, unix.O_RDWR|unix.O_APPEND)
		if errors.Is(err, os.ErrNotExist) || err != nil && i > 0 && !process.Starved(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		id, size, err := identify(f)
		if err == nil && id.same(at.File) && size >= at.Offset {
			l.file, l.id, l.size, l.held, l.renamed = f, id, at.Offset, size-at.Offset, i > 0
			return true, nil
		}
		_ = f.Close()
	}
	return false, nil
}

// next goes on in the file at the path, after what it has.
func (l *criLog) next() error {
	f, err := crilog.OpenFile(l.root, l.path)
	if err != nil {
		return err
	}
	id, size, err := identify(f)
	if err != nil {
		_ = f.Close()
		return err
	}
	l.close()
	l.file, l.id, l.size, l.held = f, id, size, 0
	l.began = size == 0
	l.whole, l.renamed, l.torn = true, false, !crilog.EndsWithNewline(f)
	return nil
}

// settle leaves a renamed log that is complete.
func (l *criLog) settle() error {
	if !l.renamed || !l.whole || l.held > 0 {
		return nil
	}
	if err := l.next(); err != nil {
		return err
	}
	l.rewind(0)
	return nil
}

// rewind makes what the file has after the offset to be compared.
func (l *criLog) rewind(offset int64) {
	l.held += l.size - offset
	l.size, l.torn = offset, false
}

// reopen goes on in the file at the path, unless it is the same one still.
func (l *criLog) reopen() error {
	old := l.id
	if l.file == nil || l.renamed {
		return l.next()
	}
	dir, name, err := crilog.MakeParent(l.root, l.path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Ino == old.Inode {
		return nil
	}
	if l.left.TakenBack(l.root, l.path, l.file) {
		return l.carry()
	}
	left := crilog.Leave(l.file)
	if err := l.next(); err != nil {
		return err
	}
	l.left = left
	return nil
}

// leave begins the file at the path, where there is none, for what comes after the bytes that are still compared. Where that is
// so already the file at the path may have some of it, and must not get another name before it is compared.
func (l *criLog) leave() error {
	if l.renamed {
		return fmt.Errorf("what was written before a crash is still compared: %w", errdefs.ErrUnavailable)
	}
	f, err := crilog.OpenFile(l.root, l.path)
	if err != nil {
		return err
	}
	id, _, err := identify(f)
	_ = f.Close()
	if err == nil {
		l.renamed = !id.same(l.id)
	}
	return err
}

// goBack goes on in the log that the kubelet has put in the place of the file (crilog.TakenBack).
func (l *criLog) goBack() (bool, error) {
	if l.file == nil || l.renamed || !l.whole || l.held > 0 || !crilog.TakenBack(l.root, l.path, l.file) {
		return false, nil
	}
	return true, l.carry()
}

// carry goes on in the file at the path after what came into this one, which has no name any more. An error leaves all as it is.
func (l *criLog) carry() error {
	f, err := crilog.OpenFile(l.root, l.path)
	if err != nil {
		return err
	}
	_, end, err := identify(f)
	if err == nil && l.began && l.size > 0 {
		if !crilog.EndsWithNewline(f) {
			_, err = l.write(f, []byte{'\n'})
		}
		piece := make([]byte, min(l.size, readSize))
		for at := int64(0); err == nil && at < l.size; {
			var n int
			if n, err = l.file.ReadAt(piece[:min(l.size-at, readSize)], at); err == nil {
				_, err = l.write(f, piece[:n])
				at += int64(n)
			}
		}
		if err != nil {
			_ = f.Truncate(end)
		}
	}
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("write log %s: %w", l.path, err)
	}
	if err := l.next(); err != nil {
		return err
	}
	l.began = end == 0 // what was carried into it is in no other file, and may have to be carried on
	return nil
}

// outgrown says that the log has bytes enough, and can be changed for another.
func (l *criLog) outgrown(bound int64) bool {
	if bound <= 0 || l.file == nil || l.size < bound || !l.whole || l.renamed || l.held > 0 {
		return false
	}
	// Somebody may have made room by emptying it.
	if _, size, err := identify(l.file); err == nil {
		l.size = min(l.size, size)
	}
	return l.size >= bound
}

// forget gives up comparing what the file holds beyond the place.
func (l *criLog) forget() {
	l.size += l.held
	l.held, l.whole = 0, true
	l.torn = l.file != nil && !crilog.EndsWithNewline(l.file)
}

// put writes entries, or the rest of some after an error, and returns how many of the bytes are in the log.
func (l *criLog) put(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	for n < len(b) {
		if err := l.settle(); err != nil {
			return n, err
		}
		if l.held > 0 {
			n = l.compare(b, n)
			continue
		}
		if l.torn {
			if _, err := l.append([]byte{'\n'}); err != nil {
				return n, err
			}
			l.torn = false
		}
		piece := b[n:]
		if l.renamed { // only the torn entry's missing bytes belong here
			piece = piece[:bytes.IndexByte(piece, '\n')+1]
		}
		m, err := l.append(piece)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, l.settle()
}

func (l *criLog) append(b []byte) (int, error) {
	n, err := l.write(l.file, b)
	if n > 0 {
		l.size += int64(n)
		l.whole = b[n-1] == '\n'
	}
	if err != nil {
		return n, fmt.Errorf("write log %s: %w", l.path, err)
	}
	return n, nil
}

// compare passes over what the file holds of b[n:], and returns the new n. Where the file holds something else the entry
// is to be written whole: n is then its beginning.
func (l *criLog) compare(b []byte, n int) int {
	piece := b[n:]
	piece = piece[:min(int64(len(piece)), l.held)]
	have := make([]byte, len(piece))
	got, _ := l.file.ReadAt(have, l.size)
	same := 0
	for same < got && have[same] == piece[same] {
		same++
	}
	if same < len(piece) {
		l.forget()
		return bytes.LastIndexByte(b[:n+same], '\n') + 1
	}
	l.size += int64(same)
	l.held -= int64(same)
	l.whole = piece[same-1] == '\n'
	return n + same
}

// cut takes back an entry that a full disk let in only in part, where nothing will complete it.
func (l *criLog) cut() {
	if l.file == nil || l.whole || l.held > 0 {
		return
	}
	from := max(0, l.size-longestEntry)
	tail := make([]byte, l.size-from)
	n, _ := l.file.ReadAt(tail, from)
	end := bytes.LastIndexByte(tail[:n], '\n')
	if end < 0 && from > 0 {
		return
	}
	if err := l.file.Truncate(from + int64(end+1)); err != nil {
		klog.ErrorS(err, "A container log ends within an entry", "path", l.path)
	}
}

func (l *criLog) close() {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
