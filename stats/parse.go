package stats

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
)

// bufferSize holds the largest file that is read: memory.stat has 2 to 5 KiB; io.stat is cut on hosts of very many devices.
const bufferSize = 16 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// files reads the files of one cgroup, each below the mount point of a hierarchy. The first error that is not "absent" stays;
// absent files read as zero, since controllers and kernels differ.
type files struct {
	path string // of the cgroup in its hierarchy
	buf  *[bufferSize]byte
	kept *keptFiles
	keep bool // what is opened from now on is kept
	err  error
}

func openFiles(path string, kept *keptFiles) *files {
	return &files{path: path, buf: buffers.Get().(*[bufferSize]byte), kept: kept, keep: true}
}

func (f *files) close() { buffers.Put(f.buf) }

func (f *files) bytes(mount, name string) ([]byte, bool) {
	data, err := f.kept.read(mount, f.path, name, f.buf[:], f.keep)
	if err != nil {
		if f.err == nil && !errors.Is(err, errdefs.ErrNotFound) {
			f.err = err
		}
		return nil, false
	}
	return data, true
}

// number reads a file of one number; "max" is math.MaxUint64.
func (f *files) number(mount, name string) (uint64, bool) {
	data, ok := f.bytes(mount, name)
	if !ok {
		return 0, false
	}
	return number(bytes.TrimSpace(data))
}

// pairs reads lines "key value" into where each key's value belongs, nil where it is of no use.
func (f *files) pairs(mount, name string, into func(key []byte) *uint64) bool {
	data, ok := f.bytes(mount, name)
	if !ok {
		return false
	}
	for len(data) > 0 {
		line := data
		if end := bytes.IndexByte(data, '\n'); end >= 0 {
			line, data = data[:end], data[end+1:]
		} else {
			data = nil
		}
		space := bytes.IndexByte(line, ' ')
		if space < 0 {
			continue
		}
		to := into(line[:space])
		if to == nil {
			continue
		}
		if n, ok := number(line[space+1:]); ok {
			*to = n
		}
	}
	return true
}

// pressure reads a PSI file; nil where there is none or PSI is off (EOPNOTSUPP).
func (f *files) pressure(mount, name string) *PSI {
	data, err := f.kept.read(mount, f.path, name, f.buf[:], f.keep)
	if err != nil {
		return nil
	}
	return parsePSI(data)
}

// pressure is that of all three resources.
func pressure(f *files, mount string) Pressure {
	return Pressure{CPU: f.pressure(mount, "/cpu.pressure"), Memory: f.pressure(mount, "/memory.pressure"), IO: f.pressure(mount, "/io.pressure")}
}

func number(text []byte) (uint64, bool) {
	if string(text) == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(string(text), 10, 64)
	return n, err == nil
}

// parsePSI reads lines as "some avg10=0.12 avg60=0.00 avg300=0.00 total=12345", total in µs.
func parsePSI(data []byte) *PSI {
	var psi PSI
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		into := &psi.Some
		if string(fields[0]) == "full" {
			into = &psi.Full
		}
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte("="))
			switch string(key) {
			case "avg10":
				into.Avg10, _ = strconv.ParseFloat(string(value), 64)
			case "avg60":
				into.Avg60, _ = strconv.ParseFloat(string(value), 64)
			case "avg300":
				into.Avg300, _ = strconv.ParseFloat(string(value), 64)
			case "total":
				total, _ := strconv.ParseUint(string(value), 10, 64)
				into.Total = total * 1000
			}
		}
	}
	return &psi
}

// finish derives what both versions do alike.
func (m *Memory) finish(inactiveFile uint64) {
	m.WorkingSet = m.Usage - min(m.Usage, inactiveFile)
	if m.Limit > 0 {
		m.Available = m.Limit - min(m.Limit, m.WorkingSet)
	}
}

// unlimited takes the ways in which kernels say "no limit" for 0. cgroup v1 gives the largest number of whole pages.
func unlimited(limit uint64) uint64 {
	if limit >= 1<<62 {
		return 0
	}
	return limit
}
