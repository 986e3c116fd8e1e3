package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/openat2"
)

// maxSeccompSize bounds a profile file; Docker's own default is 13 KiB.
const maxSeccompSize = 1 << 20

// loadSeccomp reads a Localhost profile. The translation has checked that its path is inside the seccomp folder; the file
// is opened so that no symlink can lead out of it (kubelet CVE-2023-2431, runc CVE-2019-16884), and must be a regular
// file with JSON in it: a missing or empty profile is never taken for "unconfined".
func (s *Server) loadSeccomp(p *engine.Profile) error {
	if p.Type != engine.ProfileLocalhost {
		return nil
	}
	data, err := readProfile(s.opts.Translation.SeccompRoot, p.LocalhostRef)
	if err != nil {
		return fmt.Errorf("seccomp profile %s: %w", p.LocalhostRef, err)
	}
	p.Content = data
	return nil
}

func readProfile(root, path string) ([]byte, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return nil, errors.Join(err, errdefs.ErrInvalidArgument)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w: %w", root, err, errdefs.ErrInvalidArgument)
	}
	defer func() { _ = unix.Close(dir) }()
	// O_NONBLOCK: opening a FIFO must not hang.
	fd, err := openat2.Open(dir, rel, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open below %s: %w: %w", root, err, errdefs.ErrInvalidArgument)
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file: %w", errdefs.ErrInvalidArgument)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSeccompSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSeccompSize {
		return nil, fmt.Errorf("larger than %d bytes: %w", maxSeccompSize, errdefs.ErrInvalidArgument)
	}
	var profile struct {
		DefaultAction string `json:"defaultAction"`
	}
	if err := json.Unmarshal(data, &profile); err != nil || profile.DefaultAction == "" {
		return nil, fmt.Errorf("no seccomp profile in JSON with a defaultAction: %w", errors.Join(err, errdefs.ErrInvalidArgument))
	}
	return data, nil
}
