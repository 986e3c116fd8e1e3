package native

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"crishim/engine/native/helper"
	"crishim/internal/atomicfile"
	"crishim/internal/keymutex"
)

// filters are compiled seccomp profiles, which starts and execs use instead of compiling theirs (engine/native/run). They
// are a cache on a file system that a reboot, and so another kernel, empties: without a file a start only takes longer.
type filters struct {
	dir    string
	helper *os.File
	// digest is the helper's: another one may have another libseccomp.
	digest string
	busy   keymutex.Mutex[string]
	made   *atomic.Uint64
}

const (
	// maxFilters bounds the folder: a filter is some 40 KiB.
	maxFilters = 64
	// compileLimit is far more than any profile takes.
	compileLimit = 10 * time.Second
)

func newFilters(dir string, program *os.File, made *atomic.Uint64) *filters {
	return &filters{dir: dir, helper: program, digest: helper.Digest(), made: made}
}

// of is the file with the compiled profile (linux.seccomp of an OCI specification), "" where there is no profile, or none that can be compiled: whoever starts a
// process with it then says why.
func (f *filters) of(ctx context.Context, profile json.RawMessage) string {
	if len(profile) == 0 || string(profile) == "null" {
		return ""
	}
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s\n%s", f.digest, profile)
	path := filepath.Join(f.dir, hex.EncodeToString(sum.Sum(nil)))
	unlock, err := f.busy.Lock(ctx, path)
	if err != nil {
		return ""
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := f.compile(ctx, path, profile); err != nil {
		klog.V(2).InfoS("A seccomp profile cannot be compiled beforehand", "err", err)
		return ""
	}
	f.made.Add(1)
	quiet(f.prune(), "remove old compiled seccomp profiles", f.dir)
	return path
}

func (f *filters) compile(ctx context.Context, path string, profile []byte) error {
	ctx, cancel := context.WithTimeout(ctx, compileLimit)
	defer cancel()
	temp, err := os.CreateTemp(f.dir, atomicfile.TempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		_ = temp.Close()
		_ = os.Remove(temp.Name())
	}()
	var stderr bytes.Buffer
	// The helper is the first of the extra files, which start at 3.
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3", "seccomp")
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = bytes.NewReader(profile), temp, &stderr, []*os.File{f.helper}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return os.Rename(temp.Name(), path)
}

// prune removes the oldest. A start that wanted one at this moment compiles its own.
func (f *filters) prune() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) <= maxFilters {
		return err
	}
	age := func(e os.DirEntry) time.Time {
		if info, err := e.Info(); err == nil {
			return info.ModTime()
		}
		return time.Time{}
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(age(a).UnixNano(), age(b).UnixNano()) })
	for _, entry := range entries[:len(entries)-maxFilters] {
		if err := os.Remove(filepath.Join(f.dir, entry.Name())); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
