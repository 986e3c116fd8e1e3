package imagestore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/google/go-containerregistry/pkg/name"
	testregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
	"crishim/engine/docker/pause"
)

// startDocker starts a Docker Engine of the test's own, with its data, sockets and bridge apart from the host's.
func startDocker(t *testing.T) *client.Client {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: no Docker Engine is started")
	}
	if os.Getuid() != 0 {
		t.Skip("a Docker Engine needs root")
	}
	for _, program := range []string{"dockerd", "containerd", "runc", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("not installed: %v", err)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "crimg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	wrapper := filepath.Join(dir, "ociwrap")
	if out, err := exec.Command("go", "build", "-o", wrapper, "crishim/e2e/ociwrap").CombinedOutput(); err != nil {
		t.Fatalf("build the OCI runtime for test hosts: %v\n%s", err, out)
	}
	bridge := fmt.Sprintf("crimg%d", os.Getpid()%1_000_000)
	for _, args := range [][]string{{"link", "add", bridge, "type", "bridge"}, {"addr", "add", "192.0.2.1/28", "dev", bridge}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("no bridge can be made here: ip %v: %v %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "link", "del", bridge).CombinedOutput(); err != nil {
			t.Errorf("remove the bridge: %v %s", err, out)
		}
	})
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logFile.Close() }()
	host := "unix://" + filepath.Join(dir, "d.sock")
	cmd := exec.Command("dockerd", "--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "x"),
		"--pidfile", filepath.Join(dir, "pid"), "-H", host, "--bridge", bridge, "--iptables=false", "--ip6tables=false",
		"--add-runtime", "wrapped="+wrapper, "--default-runtime", "wrapped", "--exec-opt", "native.cgroupdriver=cgroupfs")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("dockerd did not end: %v", <-ended)
		}
	})
	c, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := c.Ping(t.Context()); err == nil {
			return c
		}
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(logFile.Name())
			t.Fatalf("dockerd ended: %v\n%s", err, text)
		default:
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(logFile.Name())
			t.Fatalf("dockerd does not answer\n%s", text)
		}
	}
}

// countingRegistry is a registry on loopback that counts what is fetched and can hold blobs back.
type countingRegistry struct {
	*httptest.Server
	mu     sync.Mutex
	gets   map[string]int
	hold   func(r *http.Request) bool // whether to stall after the first half of a blob
	halved func()                     // called when a half has been written
	status int                        // answered to everything if not 0
}

func newCountingRegistry(t *testing.T) *countingRegistry {
	t.Helper()
	c := &countingRegistry{gets: map[string]int{}}
	inner := testregistry.New(testregistry.Logger(log.New(io.Discard, "", 0)))
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			c.gets[r.URL.Path]++
		}
		hold := c.hold != nil && r.Method == http.MethodGet && c.hold(r)
		status, halved := c.status, c.halved
		c.mu.Unlock()
		switch {
		case status != 0:
			w.WriteHeader(status)
		case hold:
			half(w, r, inner, halved)
		default:
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		c.CloseClientConnections()
		c.Close()
	})
	return c
}

// half answers the first half and then nothing.
func half(w http.ResponseWriter, r *http.Request, inner http.Handler, halved func()) {
	recorder := httptest.NewRecorder()
	inner.ServeHTTP(recorder, r)
	body := recorder.Body.Bytes()
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(recorder.Code)
	_, _ = w.Write(body[:len(body)/2])
	w.(http.Flusher).Flush()
	halved()
	<-r.Context().Done()
}

func (c *countingRegistry) host() string { return strings.TrimPrefix(c.URL, "http://") }

func (c *countingRegistry) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// push puts a new random image of n layers under repository:v1 and returns it.
func (c *countingRegistry) push(t *testing.T, repository string, size int64, layers int) v1.Image {
	t.Helper()
	image, err := random.Image(size, int64(layers))
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.Config(image, v1.Config{User: "4294967296:0", Env: []string{"A=b"}, Cmd: []string{"/none"}, StopSignal: "SIGINT"})
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, repository, image)
	return image
}

func (c *countingRegistry) write(t *testing.T, repository string, image v1.Image) {
	t.Helper()
	ref, err := name.ParseReference(c.host() + "/" + repository + ":v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
}

func digestOf(t *testing.T, image v1.Image) string {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// Rows: R30, R31, R33
func TestOnARealDockerEngine(t *testing.T) {
	docker := startDocker(t)
	reg := newCountingRegistry(t)
	certs := t.TempDir()
	s := New(Options{
		Client: func() *client.Client { return docker }, StateDir: filepath.Join(t.TempDir(), "images"),
		RegistryConfigDirs: []string{certs}, PauseImage: pause.DefaultRef, SampleInterval: 200 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })

	t.Run("pull, list, look up and remove", func(t *testing.T) { testLifeOfAnImage(t, s, reg) })
	t.Run("R31 twenty pulls fetch each blob once", func(t *testing.T) { testJoinedPulls(t, s, reg) })
	t.Run("a cancelled pull ends in Docker", func(t *testing.T) { testCancelledPull(t, s, reg) })
	t.Run("R33 a stalled registry", func(t *testing.T) { testStalledPull(t, s, reg) })
	t.Run("errors of the registry", func(t *testing.T) { testRegistryErrors(t, s, reg) })
	t.Run("mirrors", func(t *testing.T) { testMirrors(t, s, docker, certs) })
	t.Run("R30 an image in use", func(t *testing.T) { testUsedImage(t, s, docker, reg) })
	t.Run("the built-in pause image runs", func(t *testing.T) { testPauseRuns(t, s, docker) })
	t.Run("disk usage", func(t *testing.T) { testDiskUsage(t, s, reg) })
	t.Run("no helper name is left", func(t *testing.T) {
		list, err := docker.ImageList(t.Context(), image.ListOptions{All: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, summary := range list {
			if slices.ContainsFunc(slices.Concat(summary.RepoTags, summary.RepoDigests), pullthrough.IsHelper) {
				t.Errorf("%+v", summary)
			}
		}
	})
}

func testLifeOfAnImage(t *testing.T, s *Store, reg *countingRegistry) {
	image := reg.push(t, "life/app", 2000, 2)
	byTag, byDigest := reg.host()+"/life/app:v1", reg.host()+"/life/app@"+digestOf(t, image)
	pulled, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: byTag, NoProgress: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(pulled.RepoTags, byTag) || !slices.Contains(pulled.RepoDigests, byDigest) || pulled.Username != "4294967296" || pulled.UID != nil || pulled.Size == 0 {
		t.Fatalf("%+v", pulled)
	}
	if string(pulled.ID) != config.String() && string(pulled.ID) != digestOf(t, image) {
		t.Fatalf("id %s is neither the config's nor the manifest's", pulled.ID)
	}
	for _, ref := range []string{byTag, byDigest, string(pulled.ID), string(pulled.ID[7:]), string(pulled.ID[7:20])} {
		if img, err := s.Image(t.Context(), ref); err != nil || img.ID != pulled.ID {
			t.Errorf("%s: %v, %v", ref, img, err)
		}
	}
	if again, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: byDigest}); err != nil || again.ID != pulled.ID {
		t.Errorf("by digest: %v, %v", again, err)
	}
	list, err := s.ListImages(t.Context())
	if err != nil || !slices.ContainsFunc(list, func(i engine.Image) bool { return i.ID == pulled.ID }) {
		t.Errorf("%v, %v", list, err)
	}
	for range 2 {
		if err := s.RemoveImage(t.Context(), pulled.ID); err != nil {
			t.Fatal(err)
		}
	}
	if img, err := s.Image(t.Context(), byDigest); !errdefs.IsNotFound(err) {
		t.Errorf("%v, %v; want NotFound", img, err)
	}
}

func testJoinedPulls(t *testing.T, s *Store, reg *countingRegistry) {
	image := reg.push(t, "joined/app", 200_000, 4)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.host() + "/joined/app:v1", NoProgress: time.Minute}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if n := reg.gets["/v2/joined/app/blobs/"+digest.String()]; n != 1 {
			t.Errorf("%s was fetched %d times", digest, n)
		}
	}
}

// heldLayer is the size of a layer whose half does not fit what the two ends of a connection keep: once it is written, it is
// being read. Docker 20.10 does not end a download that is asked for and not read yet.
const heldLayer = 32 << 20

// holdLayers makes the image's layers stall in the repository, and says when one began to and when it was given up. The
// config is left alone: Docker 20.10 does not end its download with the pull.
func holdLayers(t *testing.T, reg *countingRegistry, repository string, image v1.Image) (began, ended chan struct{}) {
	t.Helper()
	config, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	began, ended = make(chan struct{}, 100), make(chan struct{}, 100)
	reg.set(func() {
		reg.hold = func(r *http.Request) bool {
			if !strings.HasPrefix(r.URL.Path, "/v2/"+repository+"/blobs/") || strings.HasSuffix(r.URL.Path, config.String()) {
				return false
			}
			context.AfterFunc(r.Context(), func() { ended <- struct{}{} })
			return true
		}
		reg.halved = func() { began <- struct{}{} }
	})
	t.Cleanup(func() { reg.set(func() { reg.hold = nil }) })
	return began, ended
}

func receive(t *testing.T, what string, from chan struct{}) {
	t.Helper()
	select {
	case <-from:
	case <-time.After(5 * time.Minute): // half a minute on a machine with much else to do, and more
		t.Fatalf("waited in vain: %s", what)
	}
}

// testCancelledPull tries a few images: a download that Docker 20.10 has hardly begun to read, as on a busy machine, goes on there.
func testCancelledPull(t *testing.T, s *Store, reg *countingRegistry) {
	for n := range 4 {
		repository := fmt.Sprintf("cancelled/app%d", n)
		image := reg.push(t, repository, heldLayer, 1)
		began, ended := holdLayers(t, reg, repository, image)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-began
			cancel()
		}()
		if _, err := s.PullImage(ctx, &engine.PullSpec{Ref: reg.host() + "/" + repository + ":v1"}); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		select {
		case <-ended:
			return
		case <-time.After(time.Minute):
			t.Logf("%s is downloaded on", repository)
		}
	}
	t.Fatal("Docker ends no download")
}

func testStalledPull(t *testing.T, s *Store, reg *countingRegistry) {
	image := reg.push(t, "stalled/app", 500_000, 1)
	holdLayers(t, reg, "stalled/app", image)
	pull := &engine.PullSpec{Ref: reg.host() + "/stalled/app:v1", NoProgress: time.Second}
	start := time.Now()
	if _, err := s.PullImage(t.Context(), pull); !errdefs.IsDeadlineExceeded(err) || time.Since(start) > time.Minute {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
	// Docker 20.10 keeps the connection on which nothing comes; that must not stand in the way of the next try.
	reg.set(func() { reg.hold = nil })
	if _, err := s.PullImage(t.Context(), pull); err != nil {
		t.Fatalf("after the registry recovered: %v", err)
	}
}

func testRegistryErrors(t *testing.T, s *Store, reg *countingRegistry) {
	pull := func(ref string) error {
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
		return err
	}
	if err := pull(reg.host() + "/absent/app:v1"); !errdefs.IsNotFound(err) {
		t.Errorf("an absent image: %v", err)
	}
	reg.set(func() { reg.status = http.StatusServiceUnavailable })
	if err := pull(reg.host() + "/any/app:v1"); !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("a broken registry: %v", err)
	}
	reg.set(func() { reg.status = 0 })
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	if err := pull(strings.TrimPrefix(dead.URL, "http://") + "/any/app:v1"); !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("a dead registry: %v", err)
	}
}

func testMirrors(t *testing.T, s *Store, docker *client.Client, certs string) {
	mirror := newCountingRegistry(t)
	image := mirror.push(t, "team/app", 300_000, 3)
	second := mirror.push(t, "team/other", 1000, 1)
	folder := filepath.Join(certs, "registry.invalid")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	file := fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", dead.URL, dead.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(folder, "hosts.toml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	digest := digestOf(t, image)
	for _, ref := range []string{"registry.invalid/team/app:v1", "registry.invalid/team/app@" + digest} {
		t.Run(ref, func(t *testing.T) {
			pulled, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(pulled.RepoDigests, []string{"registry.invalid/team/app@" + digest}) {
				t.Fatalf("%+v", pulled)
			}
			tagged := !strings.Contains(ref, "@")
			if tagged && !slices.Equal(pulled.RepoTags, []string{"registry.invalid/team/app:v1"}) || !tagged && pulled.RepoTags != nil {
				t.Fatalf("tags %v", pulled.RepoTags)
			}
			for _, again := range []string{ref, "registry.invalid/team/app@" + digest, string(pulled.ID)} {
				if img, err := s.Image(t.Context(), again); err != nil || img.ID != pulled.ID {
					t.Fatalf("%s: %v, %v", again, img, err)
				}
			}
			if err := s.RemoveImage(t.Context(), pulled.ID); err != nil {
				t.Fatal(err)
			}
			if in, err := docker.ImageInspect(t.Context(), string(pulled.ID)); !errdefs.IsNotFound(err) {
				t.Fatalf("Docker keeps %v, %v", in.RepoTags, err)
			}
		})
	}
	t.Run("joined", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 5 {
			for _, ref := range []string{"registry.invalid/team/app:v1", "registry.invalid/team/other:v1"} {
				wg.Go(func() {
					if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, NoProgress: time.Minute}); err != nil {
						t.Error(err)
					}
					list, err := s.ListImages(t.Context())
					if err != nil {
						t.Error(err)
					}
					for _, img := range list {
						if slices.ContainsFunc(slices.Concat(img.RepoTags, img.RepoDigests), pullthrough.IsHelper) {
							t.Errorf("a helper's name is listed: %+v", img)
						}
					}
				})
			}
		}
		wg.Wait()
		if img, err := s.Image(t.Context(), "registry.invalid/team/other@"+digestOf(t, second)); err != nil || len(img.RepoTags) != 1 {
			t.Errorf("%v, %v", img, err)
		}
	})
	t.Run("absent everywhere", func(t *testing.T) {
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "registry.invalid/team/none:v1"})
		if !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "RegistryUnavailable") || strings.Contains(err.Error(), "crishim-pull") {
			t.Errorf("the registry itself is dead: %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		image := mirror.push(t, "team/held", heldLayer, 1)
		began, ended := holdLayers(t, mirror, "team/held", image)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-began
			cancel()
		}()
		if _, err := s.PullImage(ctx, &engine.PullSpec{Ref: "registry.invalid/team/held:v1"}); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		receive(t, "the download ends", ended)
	})
}

func testUsedImage(t *testing.T, s *Store, docker *client.Client, reg *countingRegistry) {
	reg.push(t, "used/app", 1000, 1)
	pulled, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.host() + "/used/app:v1"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: string(pulled.ID)}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveImage(t.Context(), pulled.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("with a container: %v", err)
	}
	if img, err := s.Image(t.Context(), string(pulled.ID)); err != nil || len(img.RepoTags) != 1 {
		t.Errorf("the refusal changed the image: %v, %v", img, err)
	}
	if err := docker.ContainerRemove(t.Context(), made.ID, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveImage(t.Context(), pulled.ID); err != nil {
		t.Error(err)
	}
}

func testPauseRuns(t *testing.T, s *Store, docker *client.Client) {
	id, err := s.EnsurePause(t.Context(), pause.DefaultRef)
	if err != nil {
		t.Fatal(err)
	}
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	if other, err := s.EnsurePause(t.Context(), strings.TrimPrefix(dead.URL, "http://")+"/pause:3.10"); err != nil || other != id {
		t.Errorf("under another name: %s, %v; want %s", other, err, id)
	}
	if img, err := s.Image(t.Context(), pause.DefaultRef); err != nil || !img.Pinned || img.ID != id {
		t.Errorf("%+v, %v", img, err)
	}
	made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: string(id)}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := docker.ContainerRemove(t.Context(), made.ID, container.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}()
	if err := docker.ContainerStart(t.Context(), made.ID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	// It is stopped only once it waits; before that a pid 1 ignores signals.
	waitFor(t, func() bool {
		in, err := docker.ContainerInspect(t.Context(), made.ID)
		if err != nil || !in.State.Running {
			t.Fatalf("%+v, %v", in.State, err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", in.State.Pid))
		return err == nil && bytes.Contains(stat, []byte(" (pause) S "))
	})
	start := time.Now()
	if err := docker.ContainerStop(t.Context(), made.ID, container.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	in, err := docker.ContainerInspect(t.Context(), made.ID)
	if err != nil || in.State.ExitCode != 0 || time.Since(start) > time.Minute {
		t.Errorf("stopped with %+v, %v after %v", in.State, err, time.Since(start))
	}
}

func testDiskUsage(t *testing.T, s *Store, reg *countingRegistry) {
	measure := func() engine.FSUsage {
		images, containers, err := s.ImageFS(t.Context())
		if err != nil || len(images) != 1 || len(containers) != 1 {
			t.Fatalf("%v, %v, %v", images, containers, err)
		}
		return images[0]
	}
	// A sample from before may still have what earlier tests removed.
	begun := time.Now()
	waitFor(t, func() bool { return measure().Timestamp.After(begun) })
	before := measure()
	if age := time.Since(before.Timestamp); age < 0 || age > 30*time.Second || before.Mountpoint == "" || before.UsedBytes == 0 || before.InodesUsed == 0 {
		t.Fatalf("%+v", before)
	}
	reg.push(t, "large/app", 8<<20, 1)
	pulled, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: reg.host() + "/large/app:v1"})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return measure().UsedBytes >= before.UsedBytes+7<<20 })
	if err := s.RemoveImage(t.Context(), pulled.ID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return measure().UsedBytes < before.UsedBytes+1<<20 })
}

// Catalogue S33: nothing that a pull is made with is kept or shown.
func TestS33NoSecretIsKept(t *testing.T) {
	f := newFakeDocker(t)
	f.pull = func(w http.ResponseWriter, _ *http.Request, _ string) {
		stream(w, `{"errorDetail":{"message":"no"},"error":"no"}`)
	}
	s := newStore(t, f, func(o *Options) {
		o.RegistryConfigDirs = []string{hostsDir(t, "reg.example", "server = \"http://127.0.0.1:1\"\n[header]\nx-key = \"canary\"")}
	})
	for _, ref := range []string{"127.0.0.1:1/app", "reg.example/app"} {
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: &engine.Auth{Username: "canary", Password: "canary", IdentityToken: "canary", RegistryToken: "canary"}})
		text, jerr := json.Marshal(fmt.Sprint(err))
		if err == nil || jerr != nil || bytes.Contains(text, []byte("canary")) {
			t.Errorf("%v", err)
		}
	}
	_ = filepath.WalkDir(s.options.StateDir, func(path string, _ os.DirEntry, _ error) error {
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte("canary")) {
			t.Errorf("%s holds a secret", path)
		}
		return nil
	})
}
