package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// Processes are the pids in the cgroup at p and below, in any hierarchy. None when it is absent.
func (d *Driver) Processes(p string) ([]int, error) {
	if err := checkPath(p); err != nil {
		return nil, err
	}
	hierarchies, err := d.hierarchies()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, h := range hierarchies {
		err := eachCgroup(filepath.Join(h, p), func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if gone(err) || errors.Is(err, unix.EOPNOTSUPP) { // threaded cgroups have none
				return nil
			}
			for field := range strings.FieldsSeq(string(data)) {
				// 0 is a process of a pid namespace that we are not in.
				if pid, perr := strconv.Atoi(field); perr == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list the processes of cgroup %s: %w", p, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// eachCgroup calls f for the cgroup at dir and all below, the deepest last. Absent ones are passed over.
func eachCgroup(dir string, f func(dir string) error) error {
	return filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case gone(err):
			return nil
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		}
		return f(name)
	})
}

// gone is how the absence of a cgroup shows: also as ENODEV, in a file that was open.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// breeding is the try to kill from which the cgroup is frozen for it: what forks faster than it is listed and killed, in a pod that has
// no PID namespace of its own, would live on where the kernel has no cgroup.kill (before Linux 5.14). Mostly none gets so far.
const breeding = 5

// Kill ends every process in the cgroup at p and below, and waits until none is left or ctx ends. Frozen ones are thawed. OK
// when absent.
func (d *Driver) Kill(ctx context.Context, p string) error {
	wait := time.Millisecond
	for try := 1; ; try++ {
		pids, err := d.Processes(p)
		if err != nil || len(pids) == 0 {
			return err
		}
		if try >= breeding {
			d.freeze(ctx, p)
			pids, err = d.Processes(p)
		}
		if err == nil {
			err = d.killOnce(p, pids)
		}
		if err = errors.Join(err, d.thaw(p)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill the %d processes left in cgroup %s: %w", len(pids), p, ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

func (d *Driver) killOnce(p string, pids []int) error {
	hierarchies, err := d.hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		// The kernel's own way reaches what forks meanwhile, and what is frozen (cgroup v2 since Linux 5.14).
		if err := write(filepath.Join(h, p, "cgroup.kill"), "1"); err != nil && !gone(err) {
			return fmt.Errorf("kill cgroup %s: %w", p, err)
		}
	}
	for _, pid := range pids {
		handle, err := process.Open(pid, 0)
		if err != nil {
			continue
		}
		// Asked while the process is pinned: it is still the one of the cgroup.
		if inCgroup(pid, p) {
			_ = handle.Signal(unix.SIGKILL)
		}
		handle.Close()
	}
	return nil
}

// inCgroup says whether the process is in the cgroup at p or below, in any hierarchy.
func inCgroup(pid int, p string) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, own, _ := strings.Cut(rest, ":")
		if own == p || strings.HasPrefix(own, p+"/") {
			return true
		}
	}
	return false
}

// freezeTries bounds the wait for the kernel, a millisecond each: a process that waits for a disk is not frozen before that.
const freezeTries = 100

// freeze keeps what is in the cgroup at p and below from forking until thaw, as far as the kernel can.
func (d *Driver) freeze(ctx context.Context, p string) {
	dir := d.controller("freezer", p)
	file, value, state, frozen := "freezer.state", "FROZEN", "freezer.state", "FROZEN"
	if d.host.CgroupV2 {
		file, value, state, frozen = "cgroup.freeze", "1", "cgroup.events", "frozen 1"
	}
	if write(filepath.Join(dir, file), value) != nil {
		return
	}
	for range freezeTries {
		if data, err := os.ReadFile(filepath.Join(dir, state)); err != nil || strings.Contains(string(data), frozen) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// thaw lets frozen processes die. Those of cgroup v2 do so frozen: there only what freeze did is undone.
func (d *Driver) thaw(p string) error {
	var err error
	if d.host.CgroupV2 {
		err = write(filepath.Join(d.controller("freezer", p), "cgroup.freeze"), "0")
		if gone(err) {
			err = nil
		}
	} else {
		err = eachCgroup(d.controller("freezer", p), func(dir string) error {
			err := write(filepath.Join(dir, "freezer.state"), "THAWED")
			if gone(err) {
				return nil
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", p, err)
	}
	return nil
}

// write never makes a file: an absent one is a cgroup or feature that is not there.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// removeLimit bounds the wait for the kernel, which keeps a cgroup busy for a moment after its last process.
const removeLimit = 5 * time.Second

// Remove kills what is in the cgroup at p and removes it, with what is below, in every hierarchy. OK when absent.
func (d *Driver) Remove(ctx context.Context, p string) error {
	if err := d.Kill(ctx, p); err != nil {
		return err
	}
	if d.systemd() && d.exists(p) {
		// The unit is systemd's: it goes with its last process, or is stopped.
		m, err := d.manage(p, &cgroups.Resources{})
		if err != nil {
			return err
		}
		if err := m.Destroy(); err != nil {
			return fmt.Errorf("stop the unit of cgroup %s: %w", p, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := d.removeOnce(p)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func (d *Driver) removeOnce(p string) error {
	hierarchies, err := d.hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hierarchies {
		var dirs []string
		if err := eachCgroup(filepath.Join(h, p), func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
			errs = append(errs, err)
		}
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) exists(p string) bool {
	_, err := os.Lstat(d.controller("memory", p))
	return err == nil
}
