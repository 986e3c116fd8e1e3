// Package helper owns the small static program that the native engine runs beside the daemon (cmd/monitor), built into
// the daemon's binary: it makes an executable that nobody can write to, not even a container that reaches it through
// /proc/PID/exe.
package helper

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// ErrNotBuilt says that this binary was built without the helper (plain `go build`; `make` builds both).
var ErrNotBuilt = fmt.Errorf("built without the native engine: build crishim with make: %w", errdefs.ErrNotImplemented)

const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Built says whether the helper is in this binary.
func Built() bool {
	_, err := fs.Stat(embedded, name)
	return err == nil
}

// Digest is the helper's SHA-256 in hexadecimal digits, "" without one. Two daemons of the same digest run the same monitor.
func Digest() string {
	program, err := embedded.Open(name)
	if err != nil {
		return ""
	}
	defer func() { _ = program.Close() }()
	sum := sha256.New()
	_, _ = io.Copy(sum, program) // from memory: it cannot fail
	letGo()
	return hex.EncodeToString(sum.Sum(nil))
}

// Open returns the helper, ready to run by way of /proc/PID/fd/N: a sealed memfd, or, where the kernel's settings let no
// memfd be executed, a file 0500 in dir, which must be on a file system that is not mounted noexec; it has no name there any more.
// The caller keeps it open; once is enough for the daemon's life. ErrNotBuilt without a helper.
func Open(dir string) (*os.File, error) {
	if !Built() {
		return nil, ErrNotBuilt
	}
	defer letGo()
	sweep(dir)
	f, err := sealed()
	if err == nil {
		return f, nil
	}
	f, ferr := written(dir)
	if ferr != nil {
		return nil, fmt.Errorf("make the native engine's helper: %w; as a file instead: %w", err, ferr)
	}
	klog.InfoS("The native engine's helper runs from a file, as it cannot from a memfd", "err", err)
	return f, nil
}

// sealed makes the memfd. From one with these seals libcontainer does not copy itself again.
func sealed() (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("crishim-monitor", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before 6.3 there is no such flag, and every memfd is executable
		fd, err = unix.MemfdCreate("crishim-monitor", flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "crishim-monitor")
	if err = copyTo(f); err == nil {
		err = seal(fd)
	}
	if err == nil {
		err = os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o500))
	}
	if err == nil {
		// vm.memfd_noexec=2, or a security module, says no only here.
		err = os.NewSyscallError("faccessat", unix.Faccessat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.X_OK, 0))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// seal waits for pages that the kernel is moving at this moment, as it does on a busy node, beyond the 150 ms that it waits itself.
func seal(fd int) error {
	for try := 1; ; try++ {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		if !errors.Is(err, unix.EBUSY) || try == 20 {
			return os.NewSyscallError("fcntl F_ADD_SEALS", err)
		}
	}
}

// sweep removes files of daemons that died while they made one, or were of a version that let it keep its name.
func sweep(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, ".helper-*"))
	for _, file := range append(left, filepath.Join(dir, "crishim-monitor")) {
		_ = os.Remove(file)
	}
}

// written makes the file, and takes its name away: it lasts as long as it is open or runs.
func written(dir string) (_ *os.File, err error) {
	temp, err := os.CreateTemp(dir, ".helper-*")
	if err != nil {
		return nil, err
	}
	path := temp.Name()
	defer func() { _ = os.Remove(path) }()
	err = copyTo(temp)
	if err == nil {
		err = temp.Chmod(0o500)
	}
	if cerr := temp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	// Opened for reading only: a program that is open for writing cannot be executed.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s cannot be executed (mounted noexec?): %w", dir, err)
	}
	return f, nil
}

func copyTo(f *os.File) error {
	program, err := embedded.Open(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, program)
	return errors.Join(err, program.Close())
}
