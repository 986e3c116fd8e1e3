package image

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"k8s.io/klog/v2"

	"crishim/engine"
)

// held is a registry that holds back the last bytes of each large blob until gate is closed.
func held(t *testing.T, gate chan struct{}) *site {
	return newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				next.ServeHTTP(w, r)
				return
			}
			inner := r.Clone(r.Context())
			inner.Header.Del("Range")
			body := &recorder{header: http.Header{}}
			next.ServeHTTP(body, inner)
			http.ServeContent(w, r, "", time.Time{}, &heldReader{bytes.NewReader(body.Bytes()), r.Context(), gate, w})
		}
	})
}

// heldBack is how many bytes of a blob are held back.
const heldBack = 1000

type heldReader struct {
	*bytes.Reader
	ctx  context.Context
	gate chan struct{}
	w    http.ResponseWriter
}

func (h *heldReader) Read(p []byte) (int, error) {
	switch free := h.Len() - heldBack; {
	case h.Size() < 10*heldBack:
	case free > 0:
		p = p[:min(len(p), free)]
	default:
		h.w.(http.Flusher).Flush()
		select {
		case <-h.gate:
		case <-h.ctx.Done():
			return 0, h.ctx.Err()
		}
	}
	return h.Reader.Read(p)
}

// sizeOf is what a pull fetches of an image.
func sizeOf(t *testing.T, image v1.Image) (size int64) {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	size = manifest.Config.Size
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return size
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// logged is what is logged from now on, at the default level.
func logged(t *testing.T) *logText {
	t.Helper()
	t.Cleanup(klog.CaptureState().Restore)
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	log := &logText{}
	klog.SetOutput(log)
	return log
}

type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	klog.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A long pull is no silence in the log, whose many callers are told of once; of one that is soon over only the end is.
func TestTheLogSaysHowFarAPullIs(t *testing.T) {
	log := logged(t)
	gate := make(chan struct{})
	reg := held(t, gate)
	image := imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", noise(200_000))))
	ref := reg.push(t, "app:v1", image)
	s := newStore(t, func(o *Options) { o.LogInterval = 5 * time.Millisecond })
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); err != nil {
				t.Error(err)
			}
		})
	}
	size := sizeOf(t, image)
	line := fmt.Sprintf("\"Pulling image\" image=%q phase=\"fetching\" fetched=%d of=%d ready=1 layers=2 ", ref, size-heldBack, size)
	waitFor(t, line, func() bool { return strings.Contains(log.String(), line) })
	waitFor(t, "all callers", func() bool { return s.pulls.Waiting() == 3 })
	if n := s.Counts().Running; n != 1 {
		t.Errorf("%d pulls are told of", n)
	}
	close(gate)
	callers.Wait()

	soon := newStore(t, func(o *Options) { o.LogInterval = time.Hour })
	before := len(log.String())
	pull(t, soon, ref)
	if text := log.String()[before:]; strings.Contains(text, "\"Pulling image\"") || !strings.Contains(text, "\"Pulled image\"") {
		t.Errorf("of a pull that was soon over: %s", text)
	}
}

// What a long pull fetches is counted while it does, and what was fetched before is not once more.
func TestFetchedBytesAreCountedAsTheyCome(t *testing.T) {
	gate := make(chan struct{})
	reg := held(t, gate)
	image := imageWith(t, layerOf(t, file("a", "1")), layerOf(t, file("b", noise(200_000))))
	ref := reg.push(t, "app:v1", image)
	size := uint64(sizeOf(t, image))
	s := newStore(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.PullImage(ctx, &engine.PullSpec{Ref: ref})
		ended <- err
	}()
	waitFor(t, "what was sent", func() bool { return s.Counts().FetchedBytes == size-heldBack })
	waitFor(t, "what can be unpacked of it", func() bool { return s.Counts().UnpackedBytes > 100_000 })
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	waitFor(t, "the end", func() bool { return s.Counts().Abandoned == 1 })
	close(gate)
	pull(t, s, ref)
	if n := s.Counts().FetchedBytes; n != size {
		t.Errorf("%d bytes were counted of %d", n, size)
	}
	unpacked := s.Counts().UnpackedBytes
	pull(t, s, ref)
	if c := s.Counts(); c.FetchedBytes != size || c.UnpackedBytes != unpacked || c.Done != 2 {
		t.Errorf("after a pull of what is here: %+v", c)
	}
}
