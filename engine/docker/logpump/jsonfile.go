package logpump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxLine is more than Docker writes in one line: 16 KiB of content, each byte escaped to 6, and attributes.
	maxLine = 1 << 20
	// maxHeld is how many files that Docker has removed are kept on disk for a pump that cannot write or lags behind; then the
	// oldest is given up.
	maxHeld = 8
)

// jsonSource reads Docker's json-file log through Docker's own rotation. Docker closes PATH, removes the oldest of
// PATH.1, PATH.2, … (PATH itself with max-file=1), renames the others one up and makes a new PATH (moby
// daemon/logger/loggerutils/logfile.go); the files are told apart by inode, and a file that is held open is read to its end
// even when its last name is gone.
type jsonSource struct {
	path   string
	render renderer
	parser lineParser
	files  []*jsonFile // oldest first: the first is being read, the last is the newest known
	off    int64       // in the first file: everything before is read
	resume *jsonOffset // where to begin, until files appear
}

type jsonFile struct {
	*os.File
	id fileID
	// gap says that files before this one were lost, lost bytes of them where that is known.
	gap  bool
	lost int64
}

func newJSONSource(path string, render renderer, resume *jsonOffset) *jsonSource {
	return &jsonSource{path: path, render: render, resume: resume}
}

func (s *jsonSource) look() error {
	var st unix.Stat_t
	switch err := unix.Stat(s.path, &st); {
	case errors.Is(err, unix.ENOENT):
		return nil // not made yet, or in the middle of a rotation
	case err != nil:
		return fmt.Errorf("read Docker's log %s: %w", s.path, err)
	}
	if newest := len(s.files) - 1; newest >= 0 && s.files[newest].id.Inode == st.Ino {
		if newest == 0 && st.Size < s.off {
			s.off = 0 // somebody truncated it
		}
		return nil
	}
	found, err := s.open()
	if err != nil {
		return err
	}
	s.adopt(found)
	return nil
}

// open opens the files that are not known yet, newest first. Going up while Docker renames up meets a file twice rather
// than never.
func (s *jsonSource) open() (found []*jsonFile, err error) {
	missing := 0
	for i := 0; missing < 2; i++ {
		path := s.path
		if i > 0 {
			path += "." + strconv.Itoa(i)
		}
		f, err := openJSONFile(path)
		if errors.Is(err, os.ErrNotExist) {
			missing++ // one name is vacant in the middle of a rotation
			continue
		}
		if err != nil {
			closeAll(found)
			return nil, err
		}
		missing = 0
		is := func(other *jsonFile) bool { return other.id.Inode == f.id.Inode }
		if slices.ContainsFunc(found, is) {
			_ = f.Close()
			continue
		}
		if len(s.files) > 0 && is(s.files[len(s.files)-1]) {
			_ = f.Close()
			return found, nil // older ones are known
		}
		found = append(found, f)
	}
	// The newest known file has no name any more. If there are rotated files it should have been among them, so others went
	// with it. With max-file=1 there are none, and it went away alone.
	if len(s.files) > 0 && len(found) > 1 {
		found[len(found)-1].gap = true
	}
	return found, nil
}

func openJSONFile(path string) (*jsonFile, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open Docker's log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open Docker's log %s: it is not a regular file: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	id, _, err := identify(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &jsonFile{File: f, id: id}, nil
}

func closeAll(files []*jsonFile) {
	for _, f := range files {
		_ = f.Close()
	}
}

// adopt puts new files, newest first, behind the known ones.
func (s *jsonSource) adopt(found []*jsonFile) {
	if len(found) == 0 {
		return
	}
	if s.resume != nil {
		at := slices.IndexFunc(found, s.resume.in)
		if at >= 0 {
			closeAll(found[at+1:])
			found = found[:at+1]
			s.off = s.resume.Offset
		} else {
			found[len(found)-1].gap = true
		}
		s.resume = nil
	}
	slices.Reverse(found)
	s.files = append(s.files, found...)
	for s.removed() > maxHeld {
		s.giveUpOldest()
	}
}

// removed counts the files that only we keep on disk; they are the oldest ones.
func (s *jsonSource) removed() int {
	named := slices.IndexFunc(s.files, func(f *jsonFile) bool {
		var st unix.Stat_t
		return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink > 0
	})
	if named < 0 {
		return 0 // the newest is being rotated
	}
	return named
}

// in says whether the place is in the file.
func (o *jsonOffset) in(f *jsonFile) bool {
	if !o.File.same(f.id) {
		return false
	}
	tail, err := tailHash(f.File, o.Offset)
	return err == nil && tail == o.Tail
}

// giveUpOldest leaves the file being read, so that its space is freed.
func (s *jsonSource) giveUpOldest() {
	head, next := s.files[0], s.files[1]
	next.gap = true
	next.lost += head.lost
	if info, err := head.Stat(); err == nil {
		next.lost += max(0, info.Size()-s.off)
	}
	s.nextFile()
}

func (s *jsonSource) nextFile() {
	_ = s.files[0].Close()
	s.files = slices.Delete(s.files, 0, 1)
	s.off = 0
}

func (s *jsonSource) read(buf *buffers) (batch, error) {
	b := batch{out: buf.out[:0]}
	if err := s.look(); err != nil {
		return b, err
	}
	if len(s.files) == 0 {
		return b, nil
	}
	head := s.files[0]
	if head.gap {
		appendGap(&b, s.firstTime(head, buf.in), head.lost)
		head.gap = false
		return b, nil
	}
	n, consumed, err := s.readLines(&b, head, buf.in)
	if err == nil && consumed == 0 && n == len(buf.in) {
		n, consumed, err = s.readLong(&b, head)
	}
	if err != nil {
		return b, err
	}
	s.off += int64(consumed)
	if consumed == 0 && len(s.files) > 1 {
		// Docker closed head before it made the next one, and head was read after that was seen: n bytes are a torn line.
		b.garbage += min(n, 1)
		s.nextFile()
		b.advanced, b.save = true, true
	}
	return b, nil
}

// firstTime is when the file's first entry was written, or now where it has none: the line about a gap stands before it,
// and times in a log do not go back.
func (s *jsonSource) firstTime(f *jsonFile, in []byte) time.Time {
	n, _ := f.ReadAt(in, 0)
	line, _, _ := bytes.Cut(in[:n], []byte{'\n'})
	if e, ok := s.parser.parse(line); ok {
		return e.time
	}
	return time.Now()
}

// readLines reads once and renders the whole lines.
func (s *jsonSource) readLines(b *batch, head *jsonFile, in []byte) (n, consumed int, err error) {
	n, err = head.ReadAt(in, s.off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, fmt.Errorf("read Docker's log: %w", err)
	}
	for {
		end := bytes.IndexByte(in[consumed:n], '\n')
		if end < 0 {
			return n, consumed, nil
		}
		line := in[consumed : consumed+end]
		consumed += end + 1
		b.advanced = true
		if e, ok := s.parser.parse(line); ok {
			s.render.append(b, e)
		} else {
			b.garbage++
		}
	}
}

// readLong reads a line that is longer than the buffer; one longer than any of Docker's is garbage and skipped piecewise.
func (s *jsonSource) readLong(b *batch, head *jsonFile) (n, consumed int, err error) {
	in := make([]byte, maxLine)
	n, consumed, err = s.readLines(b, head, in)
	if err == nil && consumed == 0 && n == maxLine {
		// An entry may begin within it, without a newline before it.
		if consumed = bytes.LastIndex(in, lineStart); consumed <= 0 {
			consumed = n - len(lineStart)
		}
		b.garbage++
		b.advanced = true
	}
	return n, consumed, err
}

func (s *jsonSource) fill(pos *position) error {
	pos.From = s.render.from
	if len(s.files) == 0 {
		pos.JSON = s.resume
		return nil
	}
	head := s.files[0]
	tail, err := tailHash(head.File, s.off)
	if err != nil {
		return fmt.Errorf("read Docker's log: %w", err)
	}
	pos.JSON = &jsonOffset{File: head.id, Offset: s.off, Tail: tail}
	return nil
}

func (s *jsonSource) finish() {}

// drained is always true: dockerd writes the last line before it says that the container has exited.
func (s *jsonSource) drained() bool { return true }

func (s *jsonSource) close() {
	closeAll(s.files)
	s.files = nil
}
