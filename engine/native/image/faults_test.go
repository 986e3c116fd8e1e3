package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/engine"
	"crishim/internal/rowsize"
	"crishim/internal/seal"
	"crishim/internal/treesize"
)

// noise is content that does not compress.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// left are the files below the store's root, without the lock.
func left(t *testing.T, s *Store) (files []string, bytes int64) {
	t.Helper()
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == lockFile {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files, bytes = append(files, path), bytes+info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, bytes
}

// Rows: R30 (part)
func TestR30UsedImageStays(t *testing.T) {
	reg := newSite(t, nil)
	shared := layerOf(t, file("s", "shared"))
	one, two := reg.push(t, "one:v1", imageWith(t, shared, layerOf(t, file("a", "1")))), reg.push(t, "two:v1", imageWith(t, shared))
	users := []string{"container x"}
	s := newStore(t, func(o *Options) {
		o.InUse = func(context.Context, engine.ImageID) ([]string, error) { return users, nil }
	})
	a, b := pull(t, s, one), pull(t, s, two)
	if err := s.RemoveImage(t.Context(), a.ID); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "container x") {
		t.Fatal(err)
	}
	users = nil
	if err := s.Hold(t.Context(), a.ID, "creation y"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveImage(t.Context(), a.ID); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "creation y") {
		t.Fatal(err)
	}
	s.Release(a.ID, "creation y")
	for range 2 {
		if err := s.RemoveImage(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Hold(t.Context(), a.ID, "z"); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	if read(t, s, b.ID, 0, "s") != "shared" {
		t.Fatal("a shared layer went with the other image")
	}
	if err := s.RemoveImage(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	if files, _ := left(t, s); len(files) != 0 {
		t.Errorf("after the last one there are %v", files)
	}
}

// Removals, pulls and uses at once: who holds an image has all of it.
//
// Rows: R30
func TestR30RacesOfPullRemoveAndUse(t *testing.T) {
	rounds := rowsize.Of(10, 250)
	reg := newSite(t, nil)
	base, app := homes()
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, append(base, file("a", "1"))...), layerOf(t, append(app, file("b", "2"))...)))
	s := newStore(t, nil)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for round := range rounds {
				img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref})
				if errdefs.IsNotFound(err) {
					continue // removed between the pull's end and its answer
				}
				if err != nil {
					t.Errorf("pull: %v", err)
					return
				}
				owner := fmt.Sprintf("%d %d", worker, round)
				if err := s.Hold(t.Context(), img.ID, owner); err == nil {
					dirs, err := s.LayerDirs(t.Context(), img.ID)
					if err != nil {
						t.Errorf("a held image is gone: %v", err)
					}
					for i, name := range []string{"a", "b"} {
						if _, err := os.Stat(filepath.Join(dirs[i], name)); err != nil {
							t.Errorf("a held image is half: %v", err)
						}
					}
					if err := inheritedHome(t.Context(), s, img.ID, 2); err != nil {
						t.Errorf("a held image is half: %v", err)
					}
					s.Release(img.ID, owner)
				} else if !errdefs.IsNotFound(err) {
					t.Errorf("hold: %v", err)
				}
				if err := s.RemoveImage(t.Context(), img.ID); err != nil && !errdefs.IsFailedPrecondition(err) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	group.Wait()
}

// Rows: R31
func TestR31EachBlobIsFetchedOnceAndCallersMayLeave(t *testing.T) {
	gate := make(chan struct{})
	var waiting atomic.Int32
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				waiting.Add(1)
				<-gate
			}
			next.ServeHTTP(w, r)
		}
	})
	shared := layerOf(t, file("s", noise(100_000)))
	var refs []string
	for i := range 5 {
		refs = append(refs, reg.push(t, fmt.Sprintf("app%d:v1", i), imageWith(t, shared, layerOf(t, file("own", fmt.Sprint(i))))))
	}
	s := newStore(t, nil)
	leaving, leave := context.WithCancel(t.Context())
	errs := make(chan error, 50)
	for i := range 50 {
		ctx := t.Context()
		if i < 5 { // the first of each: the pull is theirs
			ctx = leaving
		}
		go func() {
			_, err := s.PullImage(ctx, &engine.PullSpec{Ref: refs[i%5]})
			errs <- err
		}()
	}
	for waiting.Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	leave()
	close(gate)
	left := 0
	for range 50 {
		if err := <-errs; errors.Is(err, context.Canceled) {
			left++
		} else if err != nil {
			t.Error(err)
		}
	}
	if left > 5 {
		t.Errorf("%d callers were cancelled with 5 that left", left)
	}
	digest, err := shared.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if n := reg.count(http.MethodGet, digest.String()); n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
}

// Everybody who asks for an image that is not there, or of a registry that is down, is told so, and nothing goes on.
//
// Rows: R31 (part), R33 (part)
func TestR31FailingPullsEndForAll(t *testing.T) {
	reg := newSite(t, nil)
	down := newSite(t, nil)
	down.Close()
	s := newStore(t, nil)
	for name, test := range map[string]struct {
		ref string
		is  func(error) bool
	}{
		"no such image":           {reg.host() + "/none:v1", errdefs.IsNotFound},
		"a registry that is down": {down.host() + "/app:v1", errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			var callers sync.WaitGroup
			for range 420 { // as a job of many pods with a wrong name did
				callers.Go(func() {
					if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: test.ref, NoProgress: time.Minute}); !test.is(err) {
						t.Errorf("%v", err)
					}
				})
			}
			callers.Wait()
			if n := s.counts.running.Load(); n != 0 {
				t.Errorf("%d pulls go on", n)
			}
		})
	}
}

// cut breaks answers of blobs off after some bytes, as often as told.
func cut(after int64, times *atomic.Int32, ranges string) func(http.Handler) http.HandlerFunc {
	return func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				next.ServeHTTP(w, r)
				return
			}
			inner := r.Clone(r.Context())
			inner.Header.Del("Range")
			body := &recorder{header: http.Header{}}
			next.ServeHTTP(body, inner)
			data := body.Bytes()
			switch asked := r.Header.Get("Range") != ""; {
			case asked && ranges == "ignored":
				r.Header.Del("Range")
			case asked && ranges == "refused":
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			case asked && ranges == "another":
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data[7:])
				return
			}
			if int64(len(data)) > 2*after && times.Add(-1) >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:after])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}
	}
}

type recorder struct {
	bytes.Buffer
	header http.Header
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(int)     {}

// Rows: R32
func TestR32BrokenPullGoesOn(t *testing.T) {
	for _, ranges := range []string{"kept", "ignored", "refused", "another"} {
		t.Run("ranges are "+ranges, func(t *testing.T) {
			var times atomic.Int32
			reg := newSite(t, cut(500_000, &times, ranges))
			ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("f", noise(2_000_000)))))
			times.Store(2)
			s := newStore(t, nil)
			img := pull(t, s, ref)
			if read(t, s, img.ID, 0, "f") != noise(2_000_000) {
				t.Fatal("another content")
			}
			if times.Load() > 0 {
				t.Error("nothing broke off")
			}
		})
	}
}

// A pull that ends in the middle, as a killed daemon's does, is gone on with by the next process.
//
// Rows: R32
func TestR32PullGoesOnAfterARestart(t *testing.T) {
	content := noise(3_000_000)
	var sent atomic.Int64
	stuck := make(chan struct{})
	var block atomic.Bool
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				next.ServeHTTP(w, r)
				return
			}
			inner := r.Clone(r.Context())
			inner.Header.Del("Range")
			body := &recorder{header: http.Header{}}
			next.ServeHTTP(body, inner)
			if len(body.Bytes()) > 1_000_000 && block.Load() {
				w.Header().Set("Content-Length", fmt.Sprint(body.Len()))
				_, _ = w.Write(body.Bytes()[:2_500_000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				close(stuck)
				return
			}
			counting := &countingWriter{ResponseWriter: w, n: &sent}
			http.ServeContent(counting, r, "", time.Time{}, bytes.NewReader(body.Bytes()))
		}
	})
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("f", content))))
	block.Store(true)
	s := newStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.PullImage(ctx, &engine.PullSpec{Ref: ref})
		ended <- err
	}()
	for {
		entries, _ := os.ReadDir(s.path(partsDir))
		if len(entries) == 1 {
			if info, err := entries[0].Info(); err == nil && info.Size() >= 2_400_000 {
				break
			}
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-stuck
	block.Store(false)
	_ = s.Close()
	// What a crash leaves in tmp/ goes after the start, which does not wait for it: nobody takes its names meanwhile.
	for _, name := range []string{"no-number", "1", "zz"} {
		if err := os.MkdirAll(s.path(tempDir, name, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	again := reopen(t, s.root, nil)
	if fresh := again.tempPath(); fresh != again.path(tempDir, "100") {
		t.Errorf("the next name is %s", fresh)
	}
	_ = again.Close() // as a command does, without Run
	again = reopen(t, s.root, nil)
	if entries, err := os.ReadDir(again.path(tempDir)); err != nil || len(entries) != 0 {
		t.Errorf("tmp holds %v, %v", entries, err)
	}
	sent.Store(0)
	img := pull(t, again, ref)
	if read(t, again, img.ID, 0, "f") != content {
		t.Fatal("another content")
	}
	if n := sent.Load(); n > 700_000 { // 3 MB, less the 2.5 that were here, and the config
		t.Errorf("%d bytes were fetched again", n)
	}
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// Rows: R33
func TestR33NoProgressEndsAPullAndSlownessDoesNot(t *testing.T) {
	for name, part := range map[string]string{"manifest": "/manifests/", "blob": "/blobs/"} {
		t.Run("nothing of a "+name, func(t *testing.T) {
			reg := newSite(t, func(next http.Handler) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet && strings.Contains(r.URL.Path, part) {
						<-r.Context().Done()
						return
					}
					next.ServeHTTP(w, r)
				}
			})
			ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
			s := newStore(t, nil)
			start := time.Now()
			_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: 400 * time.Millisecond})
			if took := time.Since(start); err == nil || took > time.Minute {
				t.Fatalf("%v after %v", err, took)
			}
		})
	}
	t.Run("nothing of a token", func(t *testing.T) {
		var locked atomic.Bool
		var reg *site
		reg = newSite(t, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					<-r.Context().Done()
				case locked.Load():
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, reg.URL))
					w.WriteHeader(http.StatusUnauthorized)
				default:
					next.ServeHTTP(w, r)
				}
			}
		})
		ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
		locked.Store(true)
		_, err := newStore(t, nil).PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: 400 * time.Millisecond})
		if err == nil || reg.count(http.MethodGet, "/token") == 0 {
			t.Errorf("%v", err)
		}
	})
	t.Run("no limit", func(t *testing.T) {
		reg := newSite(t, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					time.Sleep(time.Second)
				}
				next.ServeHTTP(w, r)
			}
		})
		pull(t, newStore(t, nil), reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1")))))
	})
	t.Run("a slow disk", func(t *testing.T) {
		s := newStore(t, nil)
		const limit = 500 * time.Millisecond
		writes := func(at *progress, work func() error) error { return at.onDisk(work) }
		waits := func(_ *progress, work func() error) error { return work() }
		for name, test := range map[string]struct {
			on    func(*progress, func() error) error
			ended bool
		}{"for the disk": {writes, false}, "for the registry": {waits, true}} {
			_, err := s.pulls.Do(t.Context(), name, limit, func(ctx context.Context, at *progress) (engine.ImageID, error) {
				return "", test.on(at, func() error {
					select {
					case <-ctx.Done():
						return context.Cause(ctx)
					case <-time.After(2 * limit):
						return nil
					}
				})
			})
			if (err != nil) != test.ended {
				t.Errorf("waiting %s: %v", name, err)
			}
		}
	})
	t.Run("no more of a blob", func(t *testing.T) {
		var stuck atomic.Bool
		reg := newSite(t, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if !stuck.Load() || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
					next.ServeHTTP(w, r)
					return
				}
				inner := r.Clone(r.Context())
				inner.Header.Del("Range") // asked again it sends the same bytes, which are no progress
				body := &recorder{header: http.Header{}}
				next.ServeHTTP(body, inner)
				w.Header().Set("Content-Length", fmt.Sprint(body.Len()))
				if body.Len() < 100_000 {
					_, _ = w.Write(body.Bytes())
					return
				}
				_, _ = w.Write(body.Bytes()[:body.Len()/2])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		})
		image := imageWith(t, layerOf(t, file("a", noise(300_000))))
		ref := reg.push(t, "app:v1", image)
		stuck.Store(true)
		s := newStore(t, nil)
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: 2 * time.Second})
		// On a busy disk, whose time is not counted, the last answer of the registry is given up first.
		if !errdefs.IsDeadlineExceeded(err) && (!errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no byte came for too long")) {
			t.Errorf("%v", err)
		}
		if n := s.Counts().FetchedBytes; n < 150_000 || n >= uint64(sizeOf(t, image)) {
			t.Errorf("%d bytes had come", n)
		}
		stuck.Store(false)
		pull(t, s, ref)
	})
	t.Run("slow", func(t *testing.T) {
		reg := newSite(t, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
					next.ServeHTTP(w, r)
					return
				}
				body := &recorder{header: http.Header{}}
				next.ServeHTTP(body, r)
				for data := body.Bytes(); len(data) > 0; {
					n := min(len(data), 20_000)
					_, _ = w.Write(data[:n])
					w.(http.Flusher).Flush()
					data = data[n:]
					time.Sleep(100 * time.Millisecond)
				}
			}
		})
		ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", noise(300_000)))))
		s := newStore(t, nil)
		if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Second}); err != nil {
			t.Fatal(err)
		}
	})
}

// What is said to be used is what lies on the disk, after each pull and each removal, and it is said without a look at it.
//
// Rows: R34
func TestR34UsageIsWhatIsOnDisk(t *testing.T) {
	images := rowsize.Of(8, 1000)
	reg := newSite(t, nil)
	base := layerOf(t, dir("d/"), file("d/f", noise(1_000_000)))
	s := newStore(t, nil)
	check := func(what string) {
		t.Helper()
		used, err := treesize.Of(t.Context(), s.root, treesize.Options{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		got := s.Usage()
		if took := time.Since(start); took > rowsize.Of(time.Minute, 100*time.Millisecond) {
			t.Errorf("%s: it took %v", what, took)
		}
		if diff := float64(int64(got.UsedBytes)-int64(used.Bytes)) / float64(used.Bytes); diff > 0.02 || diff < -0.02 {
			t.Errorf("%s: %d bytes, on disk %d", what, got.UsedBytes, used.Bytes)
		}
		if d := int64(got.InodesUsed) - int64(used.Inodes); d > 3 || d < -3 {
			t.Errorf("%s: %d inodes, on disk %d", what, got.InodesUsed, used.Inodes)
		}
	}
	var ids []engine.ImageID
	for i := range images {
		ref := reg.push(t, fmt.Sprintf("app%d:v1", i), imageWith(t, base, layerOf(t, file("g", noise(10+i)))))
		ids = append(ids, pull(t, s, ref).ID)
		if i < 4 || i == images-1 {
			check(fmt.Sprintf("%d images", i+1))
		}
	}
	for i, id := range ids {
		if err := s.RemoveImage(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if i < 4 {
			check(fmt.Sprintf("%d images less", i+1))
		}
	}
	if _, bytes := left(t, s); bytes > 0 || s.Usage().UsedBytes > 1<<20 {
		t.Errorf("%d bytes are left, usage says %d", bytes, s.Usage().UsedBytes)
	}
}

// After a power cut at the worst moments a store lists only what is whole.
//
// Rows: R21 (part), R22 (part), R23 (part)
func TestDamagedStoreListsOnlyWholeImagesAndHeals(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", noise(5000)))))
	only := func(dir string) string {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) == 0 {
			t.Fatal(err, entries)
		}
		return filepath.Join(dir, entries[0].Name())
	}
	for name, damage := range map[string]func(*Store) error{
		"an empty record": func(s *Store) error { return os.Truncate(only(s.path(recordsDir)), 0) },
		"garbage":         func(s *Store) error { return os.WriteFile(only(s.path(recordsDir)), []byte("{\"version\":1}"), 0o600) },
		"a flipped bit": func(s *Store) error {
			path := only(s.path(recordsDir))
			data, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(data, []byte("app:v1")) {
				return fmt.Errorf("no tag in %q: %w", data, err)
			}
			return os.WriteFile(path, bytes.Replace(data, []byte("app:v1"), []byte("app:v3"), 1), 0o600)
		},
		"a newer version":  func(s *Store) error { return os.WriteFile(only(s.path(recordsDir)), []byte("{\"version\":9}"), 0o600) },
		"no layer":         func(s *Store) error { return os.RemoveAll(only(s.path(layersDir))) },
		"an unnamed layer": func(s *Store) error { return os.Remove(filepath.Join(only(s.path(layersDir)), layerFile)) },
		"a short blob":     func(s *Store) error { return os.Truncate(only(s.path(blobsDir, "sha256")), 3) },
		"no blob":          func(s *Store) error { return os.Remove(only(s.path(blobsDir, "sha256"))) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, nil)
			pull(t, s, ref)
			_ = s.Close()
			if err := damage(s); err != nil {
				t.Fatal(err)
			}
			again := reopen(t, s.root, nil)
			if list, err := again.ListImages(t.Context()); err != nil || len(list) != 0 {
				t.Fatalf("%v %v", list, err)
			}
			aside, err := filepath.Glob(again.path(recordsDir, "*"+badSuffix))
			if n := again.Counts().Quarantined; err != nil || n != len(aside) || n == 0 && name != "a newer version" {
				t.Errorf("%d records are counted as set aside, there are %v, %v", n, aside, err)
			}
			img := pull(t, again, ref)
			if read(t, again, img.ID, 0, "a") != noise(5000) {
				t.Error("another content")
			}
			_ = again.Close()
			if n := reopen(t, s.root, nil).Counts().Quarantined; n != len(aside) {
				t.Errorf("at the next start %d records are counted as set aside, there are %v", n, aside)
			}
		})
	}
}

// Rows: S69 (part)
func FuzzDecodeRecord(f *testing.F) {
	id := engine.ImageID(digest.FromString("config"))
	good := &record{
		Version: 1, ID: id, Tags: []tag{{"a.example/app:v1", 3}}, Digests: []string{"a.example/app@" + string(id)}, DiffIDs: []digest.Digest{digest.FromString("layer")},
		Manifests: []manifest{{Config: ocispec.Descriptor{Digest: digest.Digest(id), Size: 7}, Layers: []ocispec.Descriptor{{Digest: digest.FromString("blob")}}}},
	}
	for _, marshal := range []func(any) ([]byte, error){seal.Marshal, json.Marshal} {
		data, err := marshal(good)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := decodeRecord(recordName(id), data)
		if err != nil {
			return
		}
		for i := range rec.Manifests {
			if rec.ID != id || len(rec.Manifests[i].Layers) != len(rec.DiffIDs) {
				t.Errorf("believed: %+v", rec)
			}
		}
		again, err := seal.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRecord(recordName(id), again); err != nil {
			t.Errorf("not readable after a rewrite: %v", err)
		}
	})
}

// An image of which the record or a blob is damaged or lost cannot be told any more, but its layers lie under a container: they stay until
// that has gone.
//
// Rows: R30 (part), R21 (part)
func TestLayersInUseStayWithoutARecord(t *testing.T) {
	reg := newSite(t, nil)
	shared := layerOf(t, file("s", "shared"))
	ref, other := reg.push(t, "app:v1", imageWith(t, shared, layerOf(t, file("a", "1")))), reg.push(t, "other:v1", imageWith(t, shared))
	for name, damage := range map[string]func(s *Store, m *manifest) error{
		"a cut record": func(s *Store, m *manifest) error {
			return os.Truncate(s.path(recordsDir, recordName(engine.ImageID(m.Config.Digest))), 20)
		},
		"no record": func(s *Store, m *manifest) error {
			return os.Remove(s.path(recordsDir, recordName(engine.ImageID(m.Config.Digest))))
		},
		"a short layer's blob": func(s *Store, m *manifest) error { return os.Truncate(s.blobPath(m.Layers[0].Digest), 3) },
		"no config":            func(s *Store, m *manifest) error { return os.Remove(s.blobPath(m.Config.Digest)) },
		"another config": func(s *Store, m *manifest) error {
			return os.WriteFile(s.blobPath(m.Config.Digest), []byte("{}"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			used := true
			var id engine.ImageID
			inUse := func(o *Options) {
				o.InUse = func(_ context.Context, asked engine.ImageID) (users []string, err error) {
					if used && asked == id {
						users = []string{"container x"}
					}
					return users, nil
				}
			}
			s := newStore(t, inUse)
			img := pull(t, s, ref)
			id = img.ID
			pull(t, s, other)
			dirs, err := s.LayerDirs(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			m := s.images[id].record.Manifests[0]
			_ = s.Close()
			if err := damage(s, &m); err != nil {
				t.Fatal(err)
			}
			for range 2 { // at the second start the record has been set aside before
				s = reopen(t, s.root, inUse)
				if err := s.Collect(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				if err := s.RemoveImage(t.Context(), engine.ImageID(other)); err != nil {
					t.Fatal(err)
				}
				for i, file := range []string{"s", "a"} {
					if _, err := os.Stat(filepath.Join(dirs[i], file)); err != nil {
						t.Errorf("under a container: %v", err)
					}
				}
				_ = s.Close()
			}
			s = reopen(t, s.root, inUse)
			if again := pull(t, s, ref); again.ID != id || read(t, s, id, 1, "a") != "1" {
				t.Errorf("pulled again it is %v", again)
			}
			sound(t, s)
			used = false
			if err := s.RemoveImage(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if err := s.Collect(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			for _, dir := range dirs {
				if _, err := os.Stat(dir); !os.IsNotExist(err) {
					t.Errorf("%s stays for ever: %v", dir, err)
				}
			}
		})
	}
}

// The description of a layer is damaged while containers run on it: its files stay under them until a boot, and pulls make it anew.
//
// Rows: R21 (part), R23 (part)
func TestADamagedLayerStaysUnderItsContainers(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "1"))))
	for name, damage := range map[string]func(string) error{
		"cut":  func(file string) error { return os.Truncate(file, 20) },
		"gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, nil)
			img := pull(t, s, ref)
			diffID := digest.Digest(img.Layers[0])
			mounted, err := os.Open(s.layerTree(diffID))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = mounted.Close() }()
			_ = s.Close()
			if err := damage(filepath.Join(s.layerPath(diffID), layerFile)); err != nil {
				t.Fatal(err)
			}
			file := fmt.Sprintf("/proc/self/fd/%d/a", mounted.Fd())
			for range 2 {
				s = reopen(t, s.root, nil)
				if err := s.Collect(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				if again := pull(t, s, ref); again.ID != img.ID || read(t, s, img.ID, 0, "a") != "1" {
					t.Errorf("pulled again it is %v", again)
				}
				_ = s.Close()
				if data, err := os.ReadFile(file); err != nil || string(data) != "1" {
					t.Errorf("under a container: %q, %v", data, err)
				}
			}
			bad, err := filepath.Glob(s.path(layersDir, badPrefix+"*"))
			if err != nil || len(bad) != 1 {
				t.Fatalf("set aside: %v, %v", bad, err)
			}
			if err := os.Rename(bad[0], s.path(layersDir, badPrefix+"another-boot")); err != nil {
				t.Fatal(err)
			}
			_ = reopen(t, s.root, nil).Close()
			if _, err := os.ReadFile(file); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after a boot: %v", err)
			}
		})
	}
}

// A record of a newer version keeps what it names until that version comes back, whatever this one removes; a pull records the
// image anew, in a form that the newer version knows.
//
// Rows: R05 (part)
func TestR05ImagesOfANewerVersionAreKept(t *testing.T) {
	reg := newSite(t, nil)
	shared := layerOf(t, file("s", "shared"))
	newer, mine := reg.push(t, "newer:v1", imageWith(t, shared, layerOf(t, file("a", "1")))), reg.push(t, "mine:v1", imageWith(t, shared))
	s := newStore(t, nil)
	kept, removed := pull(t, s, newer), pull(t, s, mine)
	_ = s.Close()
	path := s.path(recordsDir, recordName(kept.ID))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A later version may give a field another form.
	future := bytes.Replace(good, []byte(`"version":1,`), []byte(`"version":2,`), 1)
	future = bytes.Replace(future, []byte(`"tags":`), []byte(`"tags":7,"names":`), 1)
	future = bytes.Replace(future, []byte(`"diffIDs"`), []byte(`"layers"`), 1)
	future, _, _ = bytes.Cut(future, []byte(`,"crc32c":`))
	if future, err = seal.Marshal(json.RawMessage(string(future) + "}")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, future, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s.root, nil)
	if _, err := s.Image(t.Context(), newer); !errdefs.IsNotFound(err) {
		t.Errorf("an image of a newer version: %v", err)
	}
	if err := s.RemoveImage(t.Context(), removed.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, future) {
		t.Errorf("the record of a newer version is %q, %v", now, err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil { // it comes back
		t.Fatal(err)
	}
	s = reopen(t, s.root, nil)
	if read(t, s, kept.ID, 0, "s") != "shared" || read(t, s, kept.ID, 1, "a") != "1" {
		t.Error("another content")
	}
	_ = s.Close()
	if err := os.WriteFile(path, future, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s.root, nil)
	if img := pull(t, s, newer); img.ID != kept.ID || read(t, s, img.ID, 1, "a") != "1" {
		t.Errorf("pulled again it is %v", img)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Contains(now, []byte(`"version":1,`)) {
		t.Errorf("its record is %q, %v", now, err)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	s := newStore(t, nil)
	if _, err := Open(Options{Root: s.root}); !errdefs.IsFailedPrecondition(err) {
		t.Fatal(err)
	}
}

// Documents that could be read in two ways, or are no image. Each is served in place of a manifest.
//
// Rows: S39 (part)
func TestS39MalformedImagesAreRefused(t *testing.T) {
	config := `{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:` + strings.Repeat("a", 64) + `"}`
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":2,"digest":"sha256:` + strings.Repeat("b", 64) + `"}`
	tests := map[string]string{
		"nothing": "", "no JSON": "{", "a list": "[]", "schema 1": `{"schemaVersion":1,"fsLayers":[]}`, "no version": `{"config":` + config + `}`,
		"both kinds":          `{"schemaVersion":2,"config":` + config + `,"layers":[],"manifests":[]}`,
		"a key twice":         `{"schemaVersion":2,"config":` + config + `,"layers":[],"layers":[` + layer + `]}`,
		"a key in two cases":  `{"schemaVersion":2,"config":` + config + `,"layers":[],"Layers":[` + layer + `]}`,
		"another media type":  `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":` + config + `,"layers":[]}`,
		"an artifact":         `{"schemaVersion":2,"artifactType":"x/y","config":` + config + `,"layers":[]}`,
		"a config of no kind": `{"schemaVersion":2,"config":` + strings.Replace(config, "config.v1", "other.v1", 1) + `,"layers":[]}`,
		"a path as digest":    `{"schemaVersion":2,"config":` + strings.Replace(config, strings.Repeat("a", 64), "../../../../etc/passwd", 1) + `,"layers":[]}`,
		"a negative size":     `{"schemaVersion":2,"config":` + strings.Replace(config, `"size":2`, `"size":-2`, 1) + `,"layers":[]}`,
		"a huge config":       `{"schemaVersion":2,"config":` + strings.Replace(config, `"size":2`, `"size":99999999999`, 1) + `,"layers":[]}`,
		"too many layers":     `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + strings.Repeat(","+layer, 10_000) + `]}`,
		"deep nesting":        `{"schemaVersion":2,"config":` + config + `,"layers":[],"annotations":` + strings.Repeat(`{"a":`, 5000) + `1` + strings.Repeat(`}`, 5000) + `}`,
		"many manifests":      `{"schemaVersion":2,"manifests":[{}` + strings.Repeat(",{}", 1<<20) + `]}`,
		"something behind":    `{"schemaVersion":2,"config":` + config + `,"layers":[]} {}`,
		"a large manifest":    `{"schemaVersion":2,"x":"` + strings.Repeat("x", 5<<20) + `"}`,
	}
	named := slices.Collect(maps.Keys(tests))
	// A manifest of which a value is another one, and one that ends early.
	whole := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + config + `,"layers":[` + layer + `]}`
	values := map[string]string{
		"schemaVersion": "2", "mediaType": `"application/vnd.oci.image.manifest.v1+json"`, "config": config, "layers": "[" + layer + "]", "one layer": layer,
		"size of the config": `"size":2,"digest":"sha256:a`, "size of the layer": `"size":2,"digest":"sha256:b`,
		"digest of the config": `"sha256:` + strings.Repeat("a", 64) + `"`, "digest of the layer": `"sha256:` + strings.Repeat("b", 64) + `"`,
		"type of the config": `"application/vnd.oci.image.config.v1+json"`, "type of the layer": `"application/vnd.oci.image.layer.v1.tar+gzip"`,
	}
	// What a manifest may leave out: of such a one the config is looked for, which is not there.
	legal := []string{"mediaType is null", `mediaType is ""`, "type of the config is null", `type of the config is ""`,
		"layers is null", "layers is []", "one layer is ", "size of the layer is null", "size of the layer is 0"}
	for name, value := range values {
		for _, other := range []string{"null", "true", "0", "-1", "1.5", "1e30", `""`, `"x"`, `"../x"`, "[]", "[[]]", "{}", `{"x":{}}`, ``} {
			changed := strings.Replace(whole, value, other, 1)
			if rest, found := strings.CutPrefix(value, `"size":2`); found {
				changed = strings.Replace(whole, value, `"size":`+other+rest, 1)
			}
			if name := name + " is " + other; !slices.Contains(legal, name) {
				tests[name] = changed
			}
		}
	}
	for n := range len(whole) {
		tests[fmt.Sprintf("%d bytes", n)] = whole[:n]
	}
	for i, name := range slices.Sorted(maps.Keys(tests)) {
		if generated := !slices.Contains(named, name); generated && i%rowsize.Of(20, 1) != 0 {
			continue
		}
		manifest := tests[name]
		t.Run(name, func(t *testing.T) {
			reg := newSite(t, func(http.Handler) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/manifests/") {
						_, _ = w.Write([]byte(manifest))
						return
					}
					http.NotFound(w, r)
				}
			})
			s := newStore(t, nil)
			_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.host() + "/app:v1"})
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) && !errdefs.IsDataLoss(err) {
				t.Fatal(err)
			}
			if err := s.Collect(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if files, _ := left(t, s); len(files) != 0 {
				t.Errorf("%v are left", files)
			}
		})
	}
}

// Indexes may lie in indexes so deep and no deeper.
//
// Rows: S39 (part)
func TestS39IndexesInIndexes(t *testing.T) {
	docs := map[string][]byte{}
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if doc := docs[path.Base(r.URL.Path)]; doc != nil {
				w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
				_, _ = w.Write(doc)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	img := imageWith(t, layerOf(t, file("a", "1")))
	reg.push(t, "app:v0", img)
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	kind := "application/vnd.docker.distribution.manifest.v2+json"
	for depth := 1; depth <= 6; depth++ {
		raw = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"size":%d,"digest":"sha256:%x"}]}`,
			kind, len(raw), sha256.Sum256(raw))
		kind = "application/vnd.oci.image.index.v1+json"
		docs[fmt.Sprintf("sha256:%x", sha256.Sum256(raw))], docs[fmt.Sprintf("depth%d", depth)] = raw, raw
	}
	s := newStore(t, nil)
	for depth := 1; depth <= 6; depth++ {
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: fmt.Sprintf("%s/app:depth%d", reg.host(), depth)})
		if depth <= DefaultLimits.IndexDepth && err != nil || depth > DefaultLimits.IndexDepth+1 && !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

// A registry that sends other bytes than it was asked for gets nothing stored.
//
// Rows: S39
func TestS39WrongBytesAreNeverUsed(t *testing.T) {
	good := imageWith(t, layerOf(t, file("a", "1")))
	other := gzipped(t, archive(t, file("evil", "x")))
	reg := newSite(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			layers, _ := good.Layers()
			digest, _ := layers[0].Digest()
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.String()) {
				_, _ = w.Write(other)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	ref := reg.push(t, "app:v1", good)
	s := newStore(t, nil)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !errdefs.IsDataLoss(err) {
		t.Fatal(err)
	}
	if list, _ := s.ListImages(t.Context()); len(list) != 0 || len(s.content.layers) != 0 {
		t.Fatalf("%v %v", list, s.content.layers)
	}
	if _, err := os.ReadDir(s.path(tempDir)); err != nil {
		t.Fatal(err)
	}
}

// Whoever claims a layer's DiffID must have its content, and a name is given to what was asked for only.
//
// Rows: S40
func TestS40NobodyGetsALayerByClaimingIt(t *testing.T) {
	reg := newSite(t, nil)
	secret := layerOf(t, file("secret", "s"))
	s := newStore(t, nil)
	pull(t, s, reg.push(t, "private:v1", imageWith(t, secret)))
	diffID, err := secret.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	mine := layerOf(t, file("mine", "m"))
	thief := imageWith(t, mine)
	reg.push(t, "thief:v0", thief) // its layer is there
	config, err := thief.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	own, err := mine.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	forged := forge(t, thief, bytes.ReplaceAll(config, []byte(own.String()), []byte(diffID.String())))
	ref := reg.push(t, "thief:v1", forged)
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("%v", err)
	}
	if list, _ := s.ListImages(t.Context()); len(list) != 1 {
		t.Fatalf("%v", list)
	}
	claims := map[string]string{"org.opencontainers.image.ref.name": "private:v1", "io.containerd.image.name": reg.host() + "/private:v1"}
	labelled, err := mutate.Config(imageWith(t, layerOf(t, file("other", "o"))), v1.Config{Labels: claims})
	if err != nil {
		t.Fatal(err)
	}
	ref = reg.push(t, "thief:v2", mutate.Annotations(labelled, claims))
	if img := pull(t, s, ref); !slices.Equal(img.RepoTags, []string{ref}) || len(img.RepoDigests) != 1 {
		t.Errorf("an image that claims another's name got %q and %q", img.RepoTags, img.RepoDigests)
	}
	if img, err := s.Image(t.Context(), reg.host()+"/private:v1"); err != nil || read(t, s, img.ID, 0, "secret") != "s" {
		t.Errorf("the name is another's now: %v, %v", img, err)
	}
}

// forged is an image with another config.
type forged struct {
	v1.Image
	config   []byte
	manifest []byte
}

func forge(t *testing.T, img v1.Image, config []byte) v1.Image {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m = m.DeepCopy()
	m.Config.Digest = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(config))}
	m.Config.Size = int64(len(config))
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &forged{img, config, data}
}

func (f *forged) RawConfigFile() ([]byte, error) { return f.config, nil }
func (f *forged) RawManifest() ([]byte, error)   { return f.manifest, nil }
func (f *forged) Manifest() (*v1.Manifest, error) {
	return v1.ParseManifest(bytes.NewReader(f.manifest))
}
func (f *forged) ConfigName() (v1.Hash, error) { m, err := f.Manifest(); return m.Config.Digest, err }
func (f *forged) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(f.manifest))
	return h, err
}
func (f *forged) Size() (int64, error) { return int64(len(f.manifest)), nil }
func (f *forged) ConfigFile() (*v1.ConfigFile, error) {
	return v1.ParseConfigFile(bytes.NewReader(f.config))
}

// panics is a source of blobs with a bug.
type panics struct{}

func (panics) open(context.Context, digest.Digest, int64) (*blobStream, error) { panic("boom") }

// Rows: S53 (part)
func TestAPanicInALayerIsAnErrorOfItsPull(t *testing.T) {
	s := newStore(t, nil)
	blob := digest.FromString("blob")
	err := s.ensureLayer(t.Context(), panics{}, ocispec.Descriptor{Digest: blob, Size: 4, MediaType: ocispec.MediaTypeImageLayer}, digest.FromString("layer"), newProgress())
	if !errdefs.IsInternal(err) {
		t.Error(err)
	}
}

// A pull that panics has ended: it was told of, and counted, for ever.
func TestAPullThatPanicsHasEnded(t *testing.T) {
	reg := newSite(t, nil)
	ref := reg.push(t, "app:v1", imageWith(t, layerOf(t, file("a", "content"))))
	var told []Progress
	s := newStore(t, func(o *Options) {
		o.Changed = func() { panic("boom") }
		o.Progress = func(p Progress) { told = append(told, p) }
	})
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "boom") {
		t.Fatalf("%v", err)
	}
	if c := s.Counts(); c.Running != 0 || c.Failed != 1 || c.Done != 0 {
		t.Errorf("counted %+v", c)
	}
	if last := told[len(told)-1]; last.Phase != phaseFailed || last.Err == nil {
		t.Errorf("told at last: %+v", last)
	}
}
