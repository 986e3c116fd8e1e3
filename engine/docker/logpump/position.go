package logpump

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crishim/internal/atomicfile"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// positionVersion is raised when a field changes its meaning; an unknown version is treated as no position.
const positionVersion = 1

// position is the durable pair: everything of the source before JSON or API is in the log before Log, and nothing else.
type position struct {
	Version int         `json:"version"`
	JSON    *jsonOffset `json:"json,omitempty"`
	API     *apiOffset  `json:"api,omitempty"`
	Log     logOffset   `json:"log"`
	// From is what older entries are still left out before, zero where none are.
	From time.Time `json:"from,omitzero"`
	// Finished says that the container had exited and its log was complete.
	Finished bool `json:"finished,omitempty"`
}

// jsonOffset is a place in a json-file. Tail is a hash of the bytes before it, which tells the file from a later one with
// the same inode number.
type jsonOffset struct {
	File   fileID `json:"file"`
	Offset int64  `json:"offset"`
	Tail   uint64 `json:"tail"`
}

// apiOffset is a place in the stream of the Engine API: Count entries of the time Time were read, and all before.
type apiOffset struct {
	Time  time.Time `json:"time"`
	Count int       `json:"count"`
}

// logOffset is a place in a CRI log file.
type logOffset struct {
	File   fileID `json:"file"`
	Offset int64  `json:"offset"`
}

// fileID tells a file from others, whatever it is called. Inode numbers are used again, so the time of birth (in ns) comes
// with it where the file system has one.
type fileID struct {
	Inode uint64 `json:"inode"`
	Born  int64  `json:"born,omitempty"`
}

func (id fileID) same(other fileID) bool {
	return id.Inode == other.Inode && (id.Born == other.Born || id.Born == 0 || other.Born == 0)
}

// identify returns the file's identity and size.
func identify(f *os.File) (id fileID, size int64, err error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_SIZE|unix.STATX_BTIME, &st); err != nil {
		return fileID{}, 0, fmt.Errorf("identify %s: %w", f.Name(), err)
	}
	id.Inode = st.Ino
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Born = st.Btime.Sec*int64(time.Second) + int64(st.Btime.Nsec)
	}
	return id, int64(st.Size), nil
}

// tailHash hashes the bytes before the offset: they hold the time of the last entry, which is in no other file.
func tailHash(f *os.File, offset int64) (uint64, error) {
	tail := make([]byte, min(offset, 128))
	if _, err := f.ReadAt(tail, offset-int64(len(tail))); err != nil {
		return 0, err
	}
	h := fnv.New64a()
	_, _ = h.Write(tail)
	return h.Sum64(), nil
}

const (
	positionSuffix = ".json"
	badSuffix      = ".bad"
)

// positionPath returns the file of the id's position; ids become file names, so only their characters are allowed.
func positionPath(dir, id string) (string, error) {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, bad) {
		return "", fmt.Errorf("log of container %q: not a container id: %w", id, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(dir, id+positionSuffix), nil
}

// sane says whether the numbers can be of a position: no file has a place before its start.
func (p *position) sane() bool {
	return p.Log.Offset >= 0 && (p.JSON == nil || p.JSON.Offset >= 0) && (p.API == nil || p.API.Count >= 0)
}

// loadPosition returns nil where there is none. One that cannot be understood is put aside.
func loadPosition(path string) (*position, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log position: %w", err)
	}
	var pos position
	if err := json.Unmarshal(data, &pos); err != nil || pos.Version != positionVersion || !pos.sane() {
		klog.ErrorS(err, "Log position is unreadable; going on after the last entry of the log", "path", path, "version", pos.Version)
		if err := os.Rename(path, path+badSuffix); err != nil {
			return nil, fmt.Errorf("put aside log position: %w", err)
		}
		return nil, nil
	}
	return &pos, nil
}

// savePosition replaces the position. It does not sync: a killed process loses nothing of a rename, and after a power cut
// an older position is as good, because what the log holds beyond it is compared. Syncing hundreds of positions a second
// would cost more than it could save.
func savePosition(path string, pos *position) error {
	pos.Version = positionVersion
	data, err := json.Marshal(pos)
	if err != nil {
		return err
	}
	temp := tempOf(path)
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return fmt.Errorf("write log position: %w", err)
	}
	return os.Rename(temp, path)
}

// tempOf is where a position is written before it has its name, and where a daemon that dies then, or a full disk, leaves a part of it.
func tempOf(path string) string {
	return filepath.Join(filepath.Dir(path), atomicfile.TempPrefix+filepath.Base(path))
}

// removePosition removes every trace of it.
func removePosition(path string) error {
	for _, name := range []string{path, path + badSuffix, tempOf(path)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove log position: %w", err)
		}
	}
	return nil
}
