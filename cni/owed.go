package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"crishim/internal/atomicfile"
	"crishim/internal/process"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/utils"
	"k8s.io/klog/v2"
)

const (
	owedVersion = 1
	// Owed DELs are tried again after owedFirst, twice that, … at most owedMost, and at each start.
	owedFirst = 5 * time.Second
	owedMost  = 10 * time.Minute
	// owedAtOnce bounds the retries that run together.
	owedAtOnce = 4
)

// Owed is one pod's DELs that are still to be done.
type Owed struct {
	Version     int          `json:"version"`
	ID          string       `json:"id"` // the pod's
	Attachments []Attachment `json:"attachments"`
	Reason      string       `json:"reason"`
	Since       time.Time    `json:"since"`
	Tries       int          `json:"tries"`
	LastError   string       `json:"lastError,omitempty"`
	NextTry     time.Time    `json:"nextTry"`
}

// Owe takes over attachments whose DEL keeps failing: they are kept on disk and Run retries them with growing pauses until
// they succeed, also after restarts. reason is for people. When it returns nil the caller may forget the attachments.
func (n *Network) Owe(attachments []Attachment, reason string) error {
	return n.owed.add(attachments, reason)
}

// Owed lists the DELs that are owed, oldest first.
func (n *Network) Owed() []Owed { return n.owed.list() }

// owedQueue is the owed DELs, each in a file named after its pod.
type owedQueue struct {
	dir  string
	wake chan struct{}

	mu   sync.Mutex
	pods map[string]Owed
	busy map[string]bool // being retried now
}

func loadOwed(dir string) (*owedQueue, error) {
	q := &owedQueue{dir: dir, wake: make(chan struct{}, 1), pods: map[string]Owed{}, busy: map[string]bool{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read owed DELs: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if strings.HasPrefix(entry.Name(), atomicfile.TempPrefix) {
			_ = os.Remove(path)
			continue
		}
		if filepath.Ext(path) != ".json" {
			continue
		}
		o, err := readOwed(path)
		if process.Starved(err) {
			return nil, fmt.Errorf("read an owed DEL: %w", err)
		}
		if o.Version > owedVersion {
			klog.InfoS("An owed DEL is left alone, a newer version of crishim wrote it", "path", path, "version", o.Version)
			continue
		}
		if err != nil {
			// Kept aside for a person: one bad file must not keep the others from being paid.
			klog.ErrorS(err, "An owed DEL cannot be read", "path", path)
			_ = os.Rename(path, path+".bad")
			continue
		}
		o.NextTry = time.Time{} // much may be better after a restart
		q.pods[o.ID] = o
	}
	return q, nil
}

func readOwed(path string) (Owed, error) {
	var o Owed
	data, err := os.ReadFile(path)
	if err != nil {
		return o, err
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return o, err
	}
	if o.Version != owedVersion || len(o.Attachments) == 0 || o.ID+".json" != filepath.Base(path) {
		return o, fmt.Errorf("version %d, pod %q, %d attachments: not of this version", o.Version, o.ID, len(o.Attachments))
	}
	return o, nil
}

func (q *owedQueue) add(attachments []Attachment, reason string) error {
	if len(attachments) == 0 {
		return nil
	}
	id := attachments[0].PodID
	if err := utils.ValidateContainerID(id); err != nil {
		return fmt.Errorf("owe the DEL of pod %q: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	o, again := q.pods[id]
	if !again {
		o = Owed{Version: owedVersion, ID: id, Since: now}
	}
	o.Attachments, o.Reason, o.NextTry = attachments, reason, now.Add(owedFirst)
	if err := q.write(o); err != nil {
		return err
	}
	q.pods[id] = o
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return nil
}

func (q *owedQueue) write(o Owed) error {
	data, err := json.Marshal(o)
	if err == nil {
		err = atomicfile.Write(q.path(o.ID), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("owe the DEL of pod %s: %w", o.ID, err)
	}
	return nil
}

func (q *owedQueue) path(id string) string { return filepath.Join(q.dir, id+".json") }

func (q *owedQueue) list() []Owed {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.SortedFunc(maps.Values(q.pods), func(a, b Owed) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
}

// take gives the DELs that are due, at most free, and says how long the next one has time.
func (q *owedQueue) take(free int) (due []Owed, next time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	next = owedMost
	for id, o := range q.pods {
		if q.busy[id] {
			continue
		}
		// By the monotonic clock, since this process has set it: a clock that was set back puts no try off.
		if wait := o.NextTry.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		if len(due) < free {
			q.busy[id] = true
			due = append(due, o)
		}
	}
	return due, next
}

// settle records how a retry went.
func (q *owedQueue) settle(tried Owed, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, tried.ID)
	if err == nil {
		if err = atomicfile.Remove(q.path(tried.ID)); err == nil {
			delete(q.pods, tried.ID)
			klog.InfoS("An owed DEL is done", "pod", tried.ID, "owedSince", tried.Since, "tries", tried.Tries+1)
			return
		}
	}
	o := q.pods[tried.ID]
	o.Tries++
	o.LastError = err.Error()
	o.NextTry = time.Now().Add(pause(o.Tries))
	q.pods[tried.ID] = o
	if err := q.write(o); err != nil {
		klog.ErrorS(err, "The tries of an owed DEL cannot be recorded", "pod", tried.ID)
	}
}

// pause is the wait after so many tries.
func pause(tries int) time.Duration {
	if tries > 7 {
		return owedMost
	}
	return min(owedFirst<<tries, owedMost)
}

func (n *Network) retryOwed(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	finished := make(chan struct{}, owedAtOnce)
	running := 0
	for {
		due, next := n.owed.take(owedAtOnce - running)
		for _, o := range due {
			running++
			wg.Go(func() {
				err := n.Del(ctx, o.Attachments)
				if errors.Is(err, context.Canceled) && ctx.Err() != nil {
					err = fmt.Errorf("stopped with the daemon: %w", err)
				}
				n.owed.settle(o, err)
				finished <- struct{}{}
			})
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-finished:
			running--
		case <-n.owed.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}
