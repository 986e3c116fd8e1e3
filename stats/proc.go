package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Bounds of one Processes: a fork bomb or a process of very many files must not make a metrics call long.
const (
	maxProcesses = 2000
	maxFDs       = 20000
)

// network reads the interfaces of the network namespace of a pod's process, without lo, and when. The file stays open until
// Forget of the pod, because its opening takes twice as long as its reading; an open one holds the network namespace, which
// therefore outlives its last process until then, or until nobody has asked for a minute. ErrNotFound when the process is gone.
func (r *Reader) network(pod string, pid int) ([]NetInterface, time.Time, error) {
	if pid <= 0 {
		return nil, time.Time{}, fmt.Errorf("network counters of no process: %w", errdefs.ErrNotFound)
	}
	process := strconv.Itoa(pid)
	key := pod + "/" + process // process ids come again
	h := r.history(key, pod)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.newest.Time, h.hasNewest = r.clock(), true
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	data, err := h.kept.readLines(r.root, "/proc/"+process, "/net/dev", buf[:], true)
	if err != nil {
		r.forget(key, h)
		h.end()
		return nil, time.Time{}, err
	}
	return parseNetDev(data), h.newest.Time, nil
}

// parseNetDev reads /proc/net/dev: two lines of heading, then "eth0: 16 numbers".
func parseNetDev(data []byte) []NetInterface {
	var interfaces []NetInterface
	for line := range bytes.Lines(data) {
		name, counters, ok := bytes.Cut(line, []byte(":"))
		if name = bytes.TrimSpace(name); !ok || string(name) == "lo" {
			continue
		}
		var n [16]uint64
		if !counts(counters, n[:]) {
			continue
		}
		interfaces = append(interfaces, NetInterface{
			Name: string(name), RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		})
	}
	return interfaces
}

// counts reads as many numbers as into has places, and says whether they are there.
func counts(text []byte, into []uint64) bool {
	for i := range into {
		text = bytes.TrimLeft(text, " ")
		digits := 0
		for ; digits < len(text) && '0' <= text[digits] && text[digits] <= '9'; digits++ {
			into[i] = into[i]*10 + uint64(text[digits]-'0')
		}
		if digits == 0 {
			return false
		}
		text = text[digits:]
	}
	return true
}

// Processes counts what the processes of a cgroup, and of those below it, hold. It opens a few files per process: for
// metrics, not for lists. ErrNotFound when the cgroup is gone.
func (r *Reader) Processes(cgroupPath string) (Processes, error) {
	var p Processes
	dir := r.tree.procs(filepath.Clean("/" + cgroupPath))
	if _, err := os.Stat(dir); err != nil {
		return p, gone(dir, err)
	}
	var pids []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if !entry.IsDir() {
			return nil
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err == nil {
			pids = append(pids, strings.Fields(string(data))...)
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	p.Processes = uint64(len(pids))
	for i, pid := range pids {
		if i == maxProcesses || p.FDs >= maxFDs {
			break
		}
		r.countFDs(pid, &p)
	}
	if len(pids) > 0 {
		p.Ulimits = r.ulimits(pids[0])
	}
	if sample, err := r.Container(cgroupPath); err == nil {
		p.Threads = sample.Pids.Current
	} else if !errors.Is(err, errdefs.ErrNotFound) {
		return p, err
	}
	return p, nil
}

func (r *Reader) countFDs(pid string, p *Processes) {
	dir := r.root + "/proc/" + pid + "/fd"
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	names, _ := f.Readdirnames(maxFDs)
	for _, name := range names {
		p.FDs++
		if target, err := os.Readlink(dir + "/" + name); err == nil && strings.HasPrefix(target, "socket:") {
			p.Sockets++
		}
	}
}

// ulimits reads the soft limit of open files, the one that cAdvisor reports.
func (r *Reader) ulimits(pid string) map[string]int64 {
	data, err := os.ReadFile(r.root + "/proc/" + pid + "/limits")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if fields[0] == "unlimited" {
			return map[string]int64{"max_open_files": -1}
		}
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			return map[string]int64{"max_open_files": n}
		}
	}
	return nil
}
