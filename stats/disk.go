package stats

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crishim/internal/treesize"
)

const (
	// A directory is walked again after paceFactor times as long as its walk took, within these bounds, at a multiple of the least.
	paceFactor = 50
	paceLeast  = 10 * time.Second
	paceMost   = 20 * time.Minute
)

// Disk measures directories in the background. Its methods may be called from many goroutines.
type Disk struct {
	began time.Time
	wake  chan struct{}

	mu      sync.Mutex
	watched map[string]*measured
}

type measured struct {
	dir    string
	bytes  uint64
	inodes uint64
	at     time.Time
	due    time.Time // zero: at once
	ok     bool
}

// NewDisk makes a sampler that does nothing until Run.
func NewDisk() *Disk {
	return &Disk{began: time.Now(), wake: make(chan struct{}, 1), watched: map[string]*measured{}}
}

// Watch begins to measure dir for id (a container id; UpperDir of engine.ContainerStatus). Again with the same dir: nothing.
func (d *Disk) Watch(id, dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.watched[id]; dir == "" || m != nil && m.dir == dir {
		return
	}
	d.watched[id] = &measured{dir: dir}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Forget ends it.
func (d *Disk) Forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.watched, id)
}

// Retain is Forget for every id but those that keep knows.
func (d *Disk) Retain(keep func(id string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.watched, func(id string, _ *measured) bool { return !keep(id) })
}

// Usage is the last measurement and when it was taken; ok is false before the first one.
func (d *Disk) Usage(id string) (bytes, inodes uint64, at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.watched[id]
	if m == nil || !m.ok {
		return 0, 0, time.Time{}, false
	}
	return m.bytes, m.inodes, m.at, true
}

// Sum is that of the last measurements of all directories below one ("" for all); what was not measured yet counts as
// nothing.
func (d *Disk) Sum(below string) (bytes, inodes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.watched {
		if below == "" || strings.HasPrefix(m.dir, below+"/") {
			bytes, inodes = bytes+m.bytes, inodes+m.inodes
		}
	}
	return bytes, inodes
}

// dir is the directory watched for id, "" when none is.
func (d *Disk) dir(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.watched[id]; m != nil {
		return m.dir
	}
	return ""
}

// Run walks the watched directories until ctx ends: each once at once, then again at a pace that follows how long a walk
// takes. One walk at a time, most of them together: each time that an idle process gets up costs more than the walk of an empty
// directory.
func (d *Disk) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		due, wait := d.due(time.Now())
		for _, id := range due {
			d.measure(ctx, id)
			if len(d.wake) > 0 { // a new one goes first
				break
			}
		}
		if len(due) > 0 {
			wait = 0 // others may have become due
		}
		timer.Reset(wait)
	}
}

// due are the directories to walk now, those longest due first, or how long there is none.
func (d *Disk) due(now time.Time) (ids []string, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := now.Add(paceMost)
	for id, m := range d.watched {
		switch {
		case !m.due.After(now):
			ids = append(ids, id)
		case m.due.Before(first):
			first = m.due
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return d.watched[a].due.Compare(d.watched[b].due) })
	return ids, first.Sub(now)
}

func (d *Disk) measure(ctx context.Context, id string) {
	d.mu.Lock()
	m := d.watched[id]
	d.mu.Unlock()
	if m == nil {
		return
	}
	began := time.Now()
	size, err := treesize.Of(ctx, m.dir, treesize.Options{Gently: true})
	took := time.Since(began)
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	pace := min(max(took*paceFactor, paceLeast), paceMost)
	m.due = d.began.Add((time.Since(d.began) + pace).Round(paceLeast))
	if err == nil {
		m.bytes, m.inodes, m.at, m.ok = size.Bytes, size.Inodes, began, true
	} else if !errors.Is(err, os.ErrNotExist) {
		klog.ErrorS(err, "The writable layer cannot be measured", "container", id, "dir", m.dir)
	}
}
