package serve

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"crishim/internal/process"
)

// killTreeTimeout bounds the rounds of killTree: longer lives what forks faster than it is killed, or what the kernel
// cannot end.
const killTreeTimeout = 5 * time.Second

// member is a process as /proc/PID/stat shows it.
type member struct {
	pid, parent, session int
	startTicks           uint64
}

// killTree kills the first process of an exec, root, with its descendants and every process of a session that one of
// them leads: each exec is a session of its own, by which children that outlived their parent are found. Only processes
// of the container's cgroup are looked at, so a recycled pid elsewhere is safe. It goes on until none is left; who cannot be
// looked at for want of descriptors or memory may be one.
//
// An exec has no cgroup of its own, in which a daemon that left the session and lost its parent would still be found: a
// process must see the same cgroup in an exec as in the container.
func killTree(container Container, root int) {
	// It is our child and not reaped yet, so the pid is its own: it goes also where nobody can be looked at for want of descriptors.
	defer func() { _ = unix.Kill(root, unix.SIGKILL) }()
	deadline := time.Now().Add(killTreeTimeout)
	seen := map[int]struct{}{root: {}}
	for wait := time.Millisecond; time.Now().Before(deadline); wait = min(2*wait, 50*time.Millisecond) {
		all, left := members(container)
		for _, victim := range tree(all, seen) {
			h, err := process.Open(victim.pid, victim.startTicks)
			if err != nil {
				left = left || process.Starved(err)
				continue
			}
			left = h.Signal(unix.SIGKILL) == nil || left
			h.Close()
		}
		if !left {
			return
		}
		time.Sleep(wait)
	}
}

// tree picks the processes that belong to seen, by parent or session, and adds them to it: a later round finds those by
// a session whose leader is gone.
func tree(all []member, seen map[int]struct{}) (found []member) {
	in := func(pid int) bool { _, ok := seen[pid]; return ok }
	taken := map[int]struct{}{}
	for grown := true; grown; {
		grown = false
		for _, m := range all {
			if _, ok := taken[m.pid]; ok || !in(m.pid) && !in(m.parent) && !in(m.session) {
				continue
			}
			taken[m.pid], seen[m.pid] = struct{}{}, struct{}{}
			found = append(found, m)
			grown = true
		}
	}
	return found
}

// members reads the container's processes, without zombies, and says whether some could not be read for now.
func members(container Container) (all []member, starved bool) {
	pids, err := container.PIDs()
	if err != nil {
		return nil, process.Starved(err)
	}
	for _, pid := range pids {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			starved = starved || process.Starved(err)
			continue
		}
		if m, ok := parseStat(pid, data); ok {
			all = append(all, m)
		}
	}
	return all, starved
}

// parseStat reads the fields after the command's closing parenthesis: state, parent, group, session, … start time.
func parseStat(pid int, data []byte) (member, bool) {
	end := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[end+1:])
	if end < 0 || len(fields) < 20 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return member{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	start, err3 := strconv.ParseUint(string(fields[19]), 10, 64)
	return member{pid, parent, session, start}, err1 == nil && err2 == nil && err3 == nil
}
