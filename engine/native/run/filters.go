//go:build cgo && seccomp

package run

/*
#cgo pkg-config: libseccomp
#cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_arch_remove
#cgo LDFLAGS: -Wl,--wrap=seccomp_attr_set -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_export_bpf
#include "filters.h"
*/
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A seccomp profile is compiled by libseccomp in the first process of each container and of each exec, which takes tens of
// milliseconds, and libcontainer has no word for a compiled one. So the linker puts us between the two (filters.c):
//
//   - CompileSeccomp, in a process of its own, notes which calls libcontainer makes to libseccomp for a profile, and the
//     program that comes of them. It is run once for each profile, and the file kept.
//   - A process that is about to become a container's reads such files before it leaves the host's mount namespace. When the
//     calls that it makes are byte for byte those of a file, it is given that file's program, else libseccomp compiles.
//
// All else is libcontainer's: what the profile means, the flags, the order in relation to capabilities and no_new_privs,
// the listener for notifications, and the loading.

// CompileSeccomp reads linux.seccomp of an OCI specification (JSON) and writes the compiled filter to an empty file.
func CompileSeccomp(profile io.Reader, to *os.File) error {
	var linux specs.LinuxSeccomp
	if err := json.NewDecoder(profile).Decode(&linux); err != nil {
		return fmt.Errorf("decode the seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	config, err := specconv.SetupSeccomp(&linux)
	if err != nil {
		return fmt.Errorf("the seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if config == nil {
		return fmt.Errorf("the seccomp profile filters nothing: %w", errdefs.ErrInvalidArgument)
	}
	C.filters_capture(C.int(to.Fd()))
	// It fails by our doing before it loads anything; even if it did not, it would load it into this process only.
	_, err = seccomp.InitSeccomp(config)
	if C.filters_captured() == 0 {
		return fmt.Errorf("compile the seccomp profile: %w", errors.Join(err, errdefs.ErrInternal))
	}
	return nil
}

// filters are the files with compiled filters that this process's children try. Libcontainer gives them our first argument,
// which is the only thing of ours that reaches them before they enter a container's namespaces.
type filters struct {
	// Shared by what starts processes, which reads the argument.
	sync.RWMutex
	paths []string
}

const addWait = 200 * time.Millisecond

// maxFilters is how many files an init reads (MAX_FILTERS); the oldest gives way.
const maxFilters = 8

// add makes a file known to the processes started from now on. Where one is being started for long, held up by what its
// container has in its files, it does without: libseccomp compiles the profile then.
func (f *filters) add(path string) {
	f.RLock()
	known := path == "" || strings.Contains(path, C.FILTER_SEPARATOR) || slices.Contains(f.paths, path)
	f.RUnlock()
	if known {
		return
	}
	for deadline := time.Now().Add(addWait); !f.TryLock(); time.Sleep(time.Millisecond) { // Lock would let nobody else start one
		if time.Now().After(deadline) {
			return
		}
	}
	defer f.Unlock()
	if len(f.paths) == maxFilters {
		f.paths = f.paths[1:]
	}
	f.paths = append(f.paths, path)
	name, _, _ := strings.Cut(os.Args[0], C.FILTER_SEPARATOR)
	os.Args[0] = strings.Join(append([]string{name}, f.paths...), C.FILTER_SEPARATOR)
}
