package docker

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// proc is a process as /proc/PID/stat shows it to us.
type proc struct {
	pid, parent, session int
	startTicks           uint64
}

// killSession kills the first process of an exec, root, with its descendants and every process of a session that one of
// them leads: the OCI runtime makes each exec a session of its own, by which children that outlived their parent are
// found. Only processes in the container's cgroup are killed, whatever became of the pid. It goes on until none is left
// and root was reaped, or ctx ends; who cannot be looked at for want of descriptors or memory may be one.
func killSession(ctx context.Context, root int, containerID string) {
	var first proc
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		all, starved := processes()
		left := starved != nil
		for _, victim := range execProcesses(all, root) {
			if victim.pid == root {
				first = victim
			}
			h, err := process.Open(victim.pid, victim.startTicks)
			if err != nil {
				left = left || process.Starved(err)
				continue
			}
			// Read while the process is pinned.
			in, err := inContainer(victim.pid, containerID)
			left = in && h.Signal(unix.SIGKILL) == nil || process.Starved(err) || left
			h.Close()
		}
		if !left {
			awaitReaped(ctx, first)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// reapLimit is far longer than a shim takes to reap what it is the parent of.
const reapLimit = time.Second

// awaitReaped waits until a process that has ended is not even a zombie, which the container's ps would show. The zero proc
// was never seen.
func awaitReaped(ctx context.Context, p proc) {
	ctx, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	for wait := time.Millisecond; p.pid != 0; wait = min(2*wait, 50*time.Millisecond) {
		if ticks, err := process.StartTicks(p.pid); err != nil || ticks != p.startTicks {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// inContainer goes by the cgroup's name, which has the container's id with both drivers.
func inContainer(pid int, containerID string) (bool, error) {
	data, err := os.ReadFile(procPath(pid, "cgroup"))
	return err == nil && bytes.Contains(data, []byte(containerID)), err
}

// execProcesses are those of the exec whose first process is or was root.
func execProcesses(all []proc, root int) []proc {
	ours := map[int]bool{}
	var victims []proc
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if ours[p.pid] || p.pid != root && p.session != root && !ours[p.parent] && !ours[p.session] {
				continue
			}
			ours[p.pid] = true
			victims = append(victims, p)
			grown = true
		}
	}
	return victims
}

// processes reads the process table, without zombies. starved is why there may be more (process.Starved).
func processes() (all []proc, starved error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile(procPath(pid, "stat"))
		if err != nil {
			if process.Starved(err) {
				starved = err
			}
			continue
		}
		if p, ok := parseStat(pid, data); ok {
			all = append(all, p)
		}
	}
	return all, starved
}

// parseStat reads the fields after the command's closing parenthesis: state, parent, group, session, … start time.
func parseStat(pid int, data []byte) (proc, bool) {
	end := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[end+1:])
	if end < 0 || len(fields) < 20 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return proc{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	start, err3 := strconv.ParseUint(string(fields[19]), 10, 64)
	return proc{pid, parent, session, start}, err1 == nil && err2 == nil && err3 == nil
}
