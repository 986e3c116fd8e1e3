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
	"golang.org/x/sys/unix"
)

// Bounds of one Processes: a fork bomb or a process of very many files must not make a metrics call long.
const (
	maxProcesses = 2000
	maxFDs       = 20000
)

// Network reads the interfaces of the network namespace of a process, without lo, and when. ErrNotFound when the process
// is gone.
func (r *Reader) Network(pid int) ([]NetInterface, time.Time, error) {
	if pid <= 0 {
		return nil, time.Time{}, fmt.Errorf("network counters of no process: %w", errdefs.ErrNotFound)
	}
	now := r.clock()
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	data, err := readFile(r.root+"/proc/"+strconv.Itoa(pid)+"/net/dev", buf[:])
	if err != nil {
		return nil, time.Time{}, err
	}
	return parseNetDev(data), now, nil
}

// readFile reads a small file of /proc into buf with four system calls, half as many as os.ReadFile. A file whose process is
// gone is ErrNotFound.
func readFile(path string, buf []byte) ([]byte, error) {
	fd, err := open(path)
	if err != nil {
		return nil, gone(path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, gone(path, err)
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
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
		found := 0
		for field := range bytes.FieldsSeq(counters) {
			if found == len(n) {
				break
			}
			n[found], _ = number(field)
			found++
		}
		if found < len(n) {
			continue
		}
		interfaces = append(interfaces, NetInterface{
			Name: string(name), RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		})
	}
	return interfaces
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
