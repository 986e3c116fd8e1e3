package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crishim/engine"
)

// localPatience is how many times longer than the network the local disk may take without a sign: Docker says nothing
// while it flushes a large layer, and ends nothing by waiting.
const localPatience = 10

// progress is what a pull has done, and last did. Its methods may be called from any goroutine.
type progress struct {
	started time.Time

	mu     sync.Mutex
	last   time.Time
	layers map[string]*layerProgress
}

// layerProgress is one layer, or under "" the pull itself.
type layerProgress struct {
	status  string
	seen    map[string]bool
	current int64
	// fetched of total are bytes of its download, as far as Docker has said.
	fetched, total int64
}

func newProgress() *progress {
	now := time.Now()
	return &progress{started: now, last: now, layers: map[string]*layerProgress{}}
}

// message is one line of the stream that Docker answers a pull with (pkg/jsonmessage).
type message struct {
	ID             string `json:"id"`
	Status         string `json:"status"`
	ProgressDetail *struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error       string `json:"error"`
	ErrorDetail *struct {
		Message string `json:"message"`
	} `json:"errorDetail"`
}

// The words of Docker's stream that mean more than a step forward.
const (
	statusLayer       = "Pulling fs layer"
	statusDownloading = "Downloading"
	statusDownloaded  = "Download complete"
	statusExtracting  = "Extracting"
	statusVerifying   = "Verifying Checksum"
	statusPulled      = "Pull complete"
	statusExists      = "Already exists"
	// retryingPrefix begins a text that is new each second ("Retrying in 4 seconds") and no step forward.
	retryingPrefix = "Retrying in "
)

// touch notes a step outside of Docker's stream.
func (p *progress) touch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
}

// note takes a message in: progress is a count that moved, or a phase that a layer was not in before.
func (p *progress) note(msg *message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	layer := p.layers[msg.ID]
	if layer == nil {
		layer = &layerProgress{seen: map[string]bool{}}
		p.layers[msg.ID] = layer
	}
	status := msg.Status
	if strings.HasPrefix(status, retryingPrefix) {
		layer.status = retryingPrefix
		return
	}
	moved := !layer.seen[status]
	layer.seen[status] = true
	if msg.ProgressDetail != nil && msg.ProgressDetail.Current != layer.current {
		layer.current = msg.ProgressDetail.Current
		moved = true
	}
	layer.status = status
	switch {
	case status == statusDownloading && msg.ProgressDetail != nil:
		layer.fetched, layer.total = msg.ProgressDetail.Current, msg.ProgressDetail.Total
	case status == statusDownloaded:
		layer.fetched = layer.total
	}
	if moved {
		p.last = time.Now()
	}
}

// Left is how long the pull may still go on without progress under the limit; 0 or less when it was too long already.
func (p *progress) Left(limit time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, layer := range p.layers {
		if layer.status == statusExtracting || layer.status == statusVerifying {
			limit *= localPatience
			break
		}
	}
	return limit - time.Since(p.last)
}

// logEvery has the log say how far the pull is, once in each interval, until stop is called; with 0 never.
func (p *progress) logEvery(interval time.Duration, ref string) (stop func()) {
	if interval == 0 {
		return func() {}
	}
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				p.log(ref)
			}
		}
	}()
	return func() {
		close(ended)
		<-stopped
	}
}

func (p *progress) log(ref string) {
	p.mu.Lock()
	var fetched, total int64
	ready, layers := 0, 0
	for _, l := range p.layers {
		fetched, total = fetched+l.fetched, total+l.total
		if l.seen[statusLayer] || l.seen[statusExists] {
			layers++
		}
		if l.seen[statusPulled] || l.seen[statusExists] {
			ready++
		}
	}
	p.mu.Unlock()
	// Docker says how large a layer is once it downloads it.
	klog.InfoS("Pulling image", "image", ref, "fetched", fetched, "of", total, "ready", ready, "layers", layers,
		"duration", time.Since(p.started).Round(time.Second))
}

// logEnd says that the pull is over. What Docker unpacked it does not tell.
func (p *progress) logEnd(ref string, id engine.ImageID, digest string) {
	p.mu.Lock()
	var fetched int64
	for _, l := range p.layers {
		fetched += l.fetched
	}
	p.mu.Unlock()
	klog.InfoS("Pulled image", "image", ref, "id", id, "digest", digest, "fetched", fetched, "duration", time.Since(p.started))
}

// streamError is what Docker says in the stream, after its answer had begun.
type streamError struct{ text string }

func (e *streamError) Error() string { return e.text }

// follow reads the stream to its end, with the error that Docker put into it.
func (p *progress) follow(stream io.Reader) error {
	decoder := json.NewDecoder(stream)
	for {
		var msg message
		if err := decoder.Decode(&msg); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read Docker's progress: %w", err)
		}
		if msg.ErrorDetail != nil && msg.ErrorDetail.Message != "" {
			return &streamError{msg.ErrorDetail.Message}
		}
		if msg.Error != "" {
			return &streamError{msg.Error}
		}
		p.note(&msg)
	}
}
