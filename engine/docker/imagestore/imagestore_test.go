package imagestore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/client"
	testregistry "github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/docker/imagestore/pullthrough"
	"crishim/engine/docker/pause"
	"crishim/internal/rmtree"
	"crishim/internal/starving"
	"crishim/registry"
)

const someDigest = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"

// newStore is a Store on f; change edits its options.
func newStore(t *testing.T, f *fakeDocker, change func(*Options)) *Store {
	t.Helper()
	c := f.client(t)
	options := Options{Client: func() *client.Client { return c }, StateDir: filepath.Join(t.TempDir(), "images"), PauseImage: pause.DefaultRef}
	if change != nil {
		change(&options)
	}
	return New(options)
}

func TestImageIsFoundByEveryKindOfReference(t *testing.T) {
	f := newFakeDocker(t)
	id := f.put("a", fakeImage{tags: []string{"busybox:latest", "reg.example:5000/team/app:v1"}, digests: []string{"busybox@" + someDigest}, size: 7})
	f.put("b", fakeImage{})
	f.put("c", fakeImage{hidden: true})
	s := newStore(t, f, nil)
	for _, ref := range []string{
		id, strings.TrimPrefix(id, "sha256:"), strings.Repeat("a", 12), "busybox", "busybox:latest", "docker.io/library/busybox",
		"docker.io/busybox:latest", "index.docker.io/library/busybox:latest", "reg.example:5000/team/app:v1", "busybox@" + someDigest,
		"busybox:whatever@" + someDigest,
	} {
		img, err := s.Image(t.Context(), ref)
		if err != nil || string(img.ID) != id {
			t.Errorf("%s: %v, %v", ref, img, err)
		}
	}
	if img, err := s.Image(t.Context(), fakeID("c")); err != nil || string(img.ID) != fakeID("c") {
		t.Errorf("an intermediate image: %v, %v", img, err)
	}
	for _, ref := range []string{"absent", "busybox:v2", fakeID("e"), "other@" + someDigest, "aaa", "ab", strings.Repeat("e", 12)} {
		if img, err := s.Image(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v, %v; want NotFound", ref, img, err)
		}
	}
	for _, ref := range []string{"", "../../containers/json", "UPPER", "a b", "busybox?x=1", "busybox#x", "a@sha256:1", strings.Repeat("a", 5000)} {
		if img, err := s.Image(t.Context(), ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.40q: %v, %v; want InvalidArgument", ref, img, err)
		}
	}
}

// Rows: S23 (part)
func TestListedAndFoundImagesAreTheSame(t *testing.T) {
	f := newFakeDocker(t)
	f.put("a", fakeImage{tags: []string{"busybox:latest"}, digests: []string{"busybox@" + someDigest}, size: 7, user: "1000:1"})
	f.put("b", fakeImage{})
	s := newStore(t, f, func(o *Options) { o.Pinned = []string{"busybox"} })
	list, err := s.ListImages(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, listed := range list {
		found, err := s.Image(t.Context(), string(listed.ID))
		if err != nil || fmt.Sprintf("%+v", deref(found)) != fmt.Sprintf("%+v", deref(&listed)) {
			t.Errorf("found %+v, %v; listed %+v", found, err, listed)
		}
	}
	a, b := list[0], list[1]
	if a.UID == nil || *a.UID != 1000 || a.Username != "" || !a.Pinned || a.Size != 7 || a.StopSignal != "SIGINT" || a.Created.IsZero() {
		t.Errorf("%+v", a)
	}
	if b.RepoTags != nil || b.RepoDigests != nil || b.Size == 0 || b.Pinned {
		t.Errorf("an image without name: %+v", b)
	}
	// What a caller does to an answer does not reach the next one (S23).
	list[0].Env[0], list[0].RepoTags[0] = "changed", "changed"
	if again, err := s.Image(t.Context(), "busybox"); err != nil || again.Env[0] != "A=b" || again.RepoTags[0] != "busybox:latest" {
		t.Errorf("%+v, %v", again, err)
	}
	s.SetPinned(nil)
	if again, err := s.Image(t.Context(), "busybox"); err != nil || again.Pinned {
		t.Errorf("still pinned: %+v, %v", again, err)
	}
}

// As Docker 29 lists them: a name with a digest is a tag too, of several repositories one has a digest, and an image of
// another platform has a digest alone.
func TestNamesInAStoreOfContainerdsAreTagsOrDigests(t *testing.T) {
	f := newFakeDocker(t)
	a, b, c := fakeID("a"), fakeID("b"), fakeID("c")
	f.put("a", fakeImage{tags: []string{"reg.example:5000/app@" + a}, digests: []string{"reg.example:5000/app@" + a}})
	f.put("b", fakeImage{tags: []string{"app:v1", "app:v2", "reg.example:5000/app:v1"}, digests: []string{"reg.example:5000/app@" + b}})
	f.put("c", fakeImage{tags: []string{"other:arch"}, digests: []string{c}})
	// A name that another client of that containerd gave may have no tag: Docker passes it on as it is.
	d := fakeID("d")
	f.put("d", fakeImage{tags: []string{"bare", "reg.example:5000/bare", "app:v3"}, digests: []string{"app@" + d}})
	// A repository may be called as digests begin.
	f.put("e", fakeImage{tags: []string{"sha256:v1"}, digests: []string{"sha256@" + fakeID("e")}})
	s := newStore(t, f, nil)
	list, err := s.ListImages(t.Context())
	if err != nil || len(list) != 5 {
		t.Fatalf("%v, %v", list, err)
	}
	if img, err := s.Image(t.Context(), "sha256:v1"); err != nil || string(img.ID) != fakeID("e") {
		t.Errorf("%+v, %v", img, err)
	}
	for i, want := range []struct{ tags, digests []string }{
		{nil, []string{"reg.example:5000/app@" + a}},
		{[]string{"app:v1", "app:v2", "reg.example:5000/app:v1"}, []string{"app@" + b, "reg.example:5000/app@" + b}},
		{[]string{"other:arch"}, nil},
		{[]string{"bare", "reg.example:5000/bare", "app:v3"}, []string{"bare@" + d, "reg.example:5000/bare@" + d, "app@" + d}},
		{[]string{"sha256:v1"}, []string{"sha256@" + fakeID("e")}},
	} {
		if got := list[i]; !slices.Equal(got.RepoTags, want.tags) || !slices.Equal(got.RepoDigests, want.digests) {
			t.Errorf("tags %v, digests %v; want %v, %v", got.RepoTags, got.RepoDigests, want.tags, want.digests)
		}
	}
}

func TestAnImageThatDockerCannotReadHidesNoOther(t *testing.T) {
	f := newFakeDocker(t)
	a := f.put("a", fakeImage{tags: []string{"busybox:latest"}})
	b := f.put("b", fakeImage{tags: []string{"broken:latest"}, size: 9, broken: true})
	s := newStore(t, f, nil)
	list, err := s.ListImages(t.Context())
	if err != nil || len(list) != 2 || string(list[1].ID) != b || list[1].Size != 9 || !slices.Equal(list[1].RepoTags, []string{"broken:latest"}) {
		t.Errorf("listed %+v, %v", list, err)
	}
	if img, err := s.Image(t.Context(), "busybox"); err != nil || string(img.ID) != a {
		t.Errorf("the other: %+v, %v", img, err)
	}
	if img, err := s.Image(t.Context(), "broken"); !errdefs.IsInternal(err) {
		t.Errorf("%+v, %v; want Docker's error, not an image without its user", img, err)
	}
	if err := s.RemoveImage(t.Context(), engine.ImageID(b)); err != nil {
		t.Errorf("removal: %v", err)
	}
	if list, err := s.ListImages(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("then listed %+v, %v", list, err)
	}
}

// panics is a Docker Engine whose answer meets a bug.
type panics struct{ docker }

func (panics) ImageList(context.Context, image.ListOptions) ([]image.Summary, error) {
	return []image.Summary{{ID: fakeID("a"), RepoTags: []string{"a:b"}}}, nil
}

func (panics) ImageInspect(context.Context, string, ...client.ImageInspectOption) (image.InspectResponse, error) {
	panic("boom")
}

// Rows: S53 (part)
func TestAPanicInTheListOfImagesIsItsError(t *testing.T) {
	if _, err := newStore(t, newFakeDocker(t), nil).load(t.Context(), panics{}); !errdefs.IsInternal(err) {
		t.Error(err)
	}
}

// Docker tells nobody that it can read an image again.
func TestAnImageThatDockerCouldNotReadIsLookedAtAgain(t *testing.T) {
	f := newFakeDocker(t)
	f.put("a", fakeImage{tags: []string{"app:1"}, user: "7", broken: true})
	s := newStore(t, f, func(o *Options) { o.SampleInterval = 50 * time.Millisecond })
	users := func() []string {
		list, err := s.ListImages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := []string{}
		for _, img := range list {
			out = append(out, img.User)
		}
		return out
	}
	if got := users(); !slices.Equal(got, []string{""}) {
		t.Fatalf("listed with users %q while it could not be read", got)
	}
	f.put("a", fakeImage{tags: []string{"app:1"}, user: "7"})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	waitFor(t, func() bool { return users()[0] == "7" })

	cancel()
	wg.Wait()
	before := f.count("inspect")
	if users(); f.count("inspect") != before {
		t.Error("it is inspected at each list")
	}
}

// deref makes an image printable by value.
func deref(img *engine.Image) any {
	copied := *img
	uid := int64(-1)
	if img.UID != nil {
		uid = *img.UID
	}
	copied.UID = nil
	return []any{copied, uid}
}

func TestNothingIsAskedTwiceUntilSomethingChanges(t *testing.T) {
	f := newFakeDocker(t)
	f.put("a", fakeImage{tags: []string{"a:1"}})
	f.put("b", fakeImage{tags: []string{"b:1"}})
	s := newStore(t, f, nil)
	look := func() {
		t.Helper()
		if _, err := s.Image(t.Context(), "a:1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ListImages(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look()
	before := f.total()
	look()
	if n := f.total() - before; n != 0 {
		t.Fatalf("%d calls for what is known", n)
	}
	f.put("c", fakeImage{tags: []string{"c:1"}})
	s.Invalidate()
	look()
	if lists, inspects := f.count("list"), f.count("inspect"); lists != 2 || inspects != 3 {
		t.Fatalf("%d lists and %d inspects; want 2 and one for each image", lists, inspects)
	}
	if _, err := s.Image(t.Context(), "c:1"); err != nil {
		t.Fatal(err)
	}
}

// Rows: S14 (part)
func TestS14OnlyAUIDIsAUID(t *testing.T) {
	for user, want := range map[string]any{
		"": nil, ":5": nil, "0": int64(0), "00": int64(0), "1000": int64(1000), "1000:1000": int64(1000), "4294967294": int64(4294967294), "nginx:www": "nginx",
		"4294967296": "4294967296", "4294967295": "4294967295", "-1": "-1", "18446744073709551616": "18446744073709551616",
		"0x0": "0x0", "+0": "+0", " 0": " 0", "１": "１", "4294967296:0": "4294967296",
	} {
		uid, name := engine.ParseImageUser(user)
		var got any
		switch {
		case uid != nil && name != "":
			t.Errorf("%q: both %d and %q", user, *uid, name)
		case uid != nil:
			got = *uid
		case name != "":
			got = name
		}
		if got != want {
			t.Errorf("%q: %v, want %v", user, got, want)
		}
	}
}

func TestWithoutConnectionEverythingIsUnavailable(t *testing.T) {
	f := newFakeDocker(t)
	gone := f.client(t)
	f.Close()
	for name, c := range map[string]*client.Client{"no client": nil, "nobody listens": gone} {
		s := New(Options{Client: func() *client.Client { return c }, StateDir: t.TempDir()})
		_, listErr := s.ListImages(t.Context())
		_, imageErr := s.Image(t.Context(), "a")
		_, pullErr := s.PullImage(t.Context(), &engine.PullSpec{Ref: "a"})
		_, _, fsErr := s.ImageFS(t.Context())
		for what, err := range map[string]error{"list": listErr, "image": imageErr, "pull": pullErr, "remove": s.RemoveImage(t.Context(), "a"), "fs": fsErr} {
			if !errdefs.IsUnavailable(err) {
				t.Errorf("%s, %s: %v; want Unavailable", name, what, err)
			}
		}
	}
}

// stream writes messages of Docker's progress, each at once.
func stream(w http.ResponseWriter, messages ...string) {
	for _, m := range messages {
		_, _ = io.WriteString(w, m+"\n")
		w.(http.Flusher).Flush()
	}
}

func TestPullAnswersTheAskedImage(t *testing.T) {
	f := newFakeDocker(t)
	f.pull = func(w http.ResponseWriter, _ *http.Request, ref string) {
		f.put("a", fakeImage{tags: []string{"other:1", ref}, size: 3})
		stream(w, `{"status":"Pulling from library/app","id":"latest"}`, `{"status":"Status: Downloaded newer image"}`)
	}
	s := newStore(t, f, nil)
	img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app"})
	if err != nil || string(img.ID) != fakeID("a") || !slices.Contains(img.RepoTags, "docker.io/library/app:latest") {
		t.Fatalf("%+v, %v", img, err)
	}
	for _, ref := range []string{"", "UPPER", "a b", fakeID("a"), "127.0.0.1:1/crishim-pull/" + strings.Repeat("a", 32) + ":v1", heldRepository + ":x"} {
		if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("pull %q: %v, want InvalidArgument", ref, err)
		}
	}
}

// An image that somebody removes as soon as it was pulled is pulled again: "not found" would be said of the registry.
func TestAPullOfWhatIsBeingRemoved(t *testing.T) {
	f := newFakeDocker(t)
	pulls, lasts := 0, 2
	f.pull = func(_ http.ResponseWriter, _ *http.Request, ref string) {
		if pulls++; pulls == lasts {
			f.put("a", fakeImage{tags: []string{ref}})
		}
	}
	s := newStore(t, f, nil)
	img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app"})
	if err != nil || string(img.ID) != fakeID("a") || pulls != 2 {
		t.Errorf("%+v, %v after %d pulls", img, err, pulls)
	}
	pulls, lasts = 0, -1
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "gone"}); !errdefs.IsNotFound(err) || pulls != removedTries {
		t.Errorf("what never stays: %v after %d pulls, want %d", err, pulls, removedTries)
	}
}

func TestAuthFormsReachDocker(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	content := `{"auths":{"node.example":{"auth":"bm9kZTpzZWNyZXQ="},"node.example/team":{"username":"team","password":"p"},"https://index.docker.io/v1/":{"username":"hub","password":"p"}},
		"credHelpers":{"helped.example":"test","token.example":"test","nothing.example":"test"}}`
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	helper := "#!/bin/sh\nread host\ncase $host in\nhelped.example) echo '{\"Username\":\"h\",\"Secret\":\"s\"}';;\ntoken.example) echo '{\"Username\":\"<token>\",\"Secret\":\"id\"}';;\n*) echo 'credentials not found'; exit 1;;\nesac\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	f := newFakeDocker(t)
	f.pull = func(w http.ResponseWriter, _ *http.Request, ref string) { f.put("a", fakeImage{tags: []string{ref}}) }
	s := newStore(t, f, func(o *Options) { o.NodeAuth = []string{filepath.Join(dir, "absent"), config} })
	tests := []struct {
		name, ref string
		auth      *engine.Auth
		want      string // username password identity registry address
	}{
		{"user and password", "r.example/a", &engine.Auth{Username: "u", Password: "p"}, "u p - - r.example"},
		{"an identity token", "r.example/a", &engine.Auth{IdentityToken: "i"}, "- - i - r.example"},
		{"a registry token", "r.example/a", &engine.Auth{RegistryToken: "r"}, "- - - r r.example"},
		{"an address that is this registry", "r.example/a", &engine.Auth{Username: "u", Password: "p", ServerAddress: "https://r.example/v1/"}, "u p - - r.example"},
		{"docker.io under its old name", "a", &engine.Auth{Username: "u", Password: "p", ServerAddress: "https://index.docker.io/v1/"}, "u p - - https://index.docker.io/v1/"},
		{"an address of another registry", "r.example/a", &engine.Auth{Username: "u", Password: "p", ServerAddress: "evil.example"}, "- - - - -"},
		{"nothing", "r.example/a", nil, "- - - - -"},
		{"the node's file", "node.example/a", nil, "node secret - - node.example"},
		{"the node's file for a part of a registry", "node.example/team/a", nil, "team p - - node.example"},
		{"the node's file when the caller's are empty", "node.example/a", &engine.Auth{}, "node secret - - node.example"},
		{"the node's file for docker.io", "a", nil, "hub p - - https://index.docker.io/v1/"},
		{"a helper", "helped.example/a", nil, "h s - - helped.example"},
		{"a helper's identity token", "token.example/a", nil, "<token> - id - token.example"},
		{"a helper that has nothing", "nothing.example/a", nil, "- - - - -"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: tt.ref, Auth: tt.auth}); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			a := f.auths[len(f.auths)-1]
			fields := []string{a.Username, a.Password, a.IdentityToken, a.RegistryToken, a.ServerAddress}
			for i := range fields {
				if fields[i] == "" {
					fields[i] = "-"
				}
			}
			if got := strings.Join(fields, " "); got != tt.want {
				t.Fatalf("Docker got %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("a broken file is an error that does not show it", func(t *testing.T) {
		if err := os.WriteFile(config, []byte(`{"auths":{"x":{"password":"canary"`), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "a"})
		if !errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "canary") {
			t.Fatalf("%v", err)
		}
	})
}

// Rows: R31, S40
func TestR31PullsAreJoinedAndEachCallerMayLeave(t *testing.T) {
	f := newFakeDocker(t)
	release, ended := make(chan struct{}), make(chan struct{}, 8)
	f.pull = func(w http.ResponseWriter, r *http.Request, ref string) {
		stream(w, `{"status":"Pulling"}`)
		select {
		case <-release:
			f.put("a", fakeImage{tags: []string{ref}})
		case <-r.Context().Done():
			ended <- struct{}{}
		}
	}
	s := newStore(t, f, nil)
	leaving, leave := context.WithCancel(t.Context())
	var stay, left sync.WaitGroup
	errs := make(chan error, 20)
	for range 20 {
		stay.Go(func() {
			_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app"})
			errs <- err
		})
	}
	for range 5 {
		left.Go(func() {
			if _, err := s.PullImage(leaving, &engine.PullSpec{Ref: "docker.io/library/app:latest"}); !errors.Is(err, context.Canceled) {
				t.Errorf("left with %v", err)
			}
		})
	}
	waitFor(t, func() bool { return s.pulls.Waiting() == 25 })
	leave()
	left.Wait()
	close(release)
	stay.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Errorf("a joined pull: %v", err)
		}
	}
	if n := f.count("pull"); n != 1 {
		t.Fatalf("Docker pulled %d times", n)
	}
	release = make(chan struct{})
	t.Run("the last one to leave ends the pull", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _, _ = s.PullImage(ctx, &engine.PullSpec{Ref: "app"}) })
		}
		waitFor(t, func() bool { return s.pulls.Waiting() == 3 && f.count("pull") == 2 })
		cancel()
		wg.Wait()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("Docker still pulls")
		}
		if n := s.pulls.Waiting(); n != 0 {
			t.Fatalf("%d still wait", n)
		}
	})
	close(release)
	t.Run("other credentials are another pull (S40)", func(t *testing.T) {
		before := f.count("pull")
		for _, auth := range []*engine.Auth{nil, {Username: "a"}, {Username: "b"}} {
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app", Auth: auth}); err != nil {
				t.Fatal(err)
			}
		}
		if n := f.count("pull") - before; n != 3 {
			t.Fatalf("%d pulls, want 3", n)
		}
	})
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

func TestR33NoProgressEndsAPull(t *testing.T) {
	const limit = 600 * time.Millisecond
	download := func(n int) string {
		return fmt.Sprintf(`{"status":"Downloading","progressDetail":{"current":%d,"total":1000},"id":"l1"}`, n)
	}
	tests := []struct {
		name  string
		pull  func(w http.ResponseWriter, r *http.Request)
		limit time.Duration
		stall bool
	}{
		{"no first message", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, limit, true},
		{"the same count again and again", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				stream(w, download(5))
				time.Sleep(20 * time.Millisecond)
			}
		}, limit, true},
		{"retrying for ever", func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil; i++ {
				stream(w, fmt.Sprintf(`{"status":"Retrying in %d seconds","id":"l1"}`, i))
				time.Sleep(20 * time.Millisecond)
			}
		}, limit, true},
		{"bytes that trickle", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 8 {
				stream(w, download(i))
				time.Sleep(limit / 3)
			}
		}, limit, false},
		{"a silent disk while extracting", func(w http.ResponseWriter, _ *http.Request) {
			stream(w, `{"status":"Extracting","progressDetail":{"current":5,"total":5},"id":"l1"}`)
			time.Sleep(3 * limit)
			stream(w, `{"status":"Pull complete","id":"l1"}`)
		}, limit, false},
		{"no limit", func(w http.ResponseWriter, _ *http.Request) { time.Sleep(3 * limit) }, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFakeDocker(t)
			ended := make(chan struct{})
			f.pull = func(w http.ResponseWriter, r *http.Request, ref string) {
				defer close(ended)
				w.(http.Flusher).Flush()
				tt.pull(w, r)
				f.put("a", fakeImage{tags: []string{ref}})
			}
			s := newStore(t, f, nil)
			_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app", NoProgress: tt.limit})
			if tt.stall && (!errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "nothing came for")) {
				t.Fatalf("%v, want a stall", err)
			}
			if !tt.stall && err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Fatal("Docker still pulls")
			}
		})
	}
}

// A long pull is no silence in the log, whose many callers are told of once; of one that is soon over only the end is said.
func TestTheLogSaysHowFarAPullIs(t *testing.T) {
	t.Cleanup(klog.CaptureState().Restore)
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	said := &logText{}
	klog.SetOutput(said)

	f := newFakeDocker(t)
	goOn := make(chan struct{})
	f.pull = func(w http.ResponseWriter, r *http.Request, ref string) {
		stream(w, `{"status":"Pulling from library/app","id":"latest"}`,
			`{"status":"Already exists","progressDetail":{},"id":"l0"}`,
			`{"status":"Pulling fs layer","progressDetail":{},"id":"l1"}`,
			`{"status":"Pulling fs layer","progressDetail":{},"id":"l2"}`,
			`{"status":"Pulling fs layer","progressDetail":{},"id":"l3"}`,
			`{"status":"Downloading","progressDetail":{"current":10,"total":1000},"id":"l1"}`,
			`{"status":"Downloading","progressDetail":{"current":60,"total":100},"id":"l2"}`,
			`{"status":"Verifying Checksum","progressDetail":{},"id":"l1"}`,
			`{"status":"Download complete","progressDetail":{},"id":"l1"}`,
			`{"status":"Extracting","progressDetail":{"current":32,"total":1000},"id":"l1"}`,
			`{"status":"Pull complete","progressDetail":{},"id":"l1"}`,
			`{"status":"Downloading","progressDetail":{"current":70,"total":100},"id":"l2"}`)
		select {
		case <-goOn:
			f.put("a", fakeImage{tags: []string{ref}})
		case <-r.Context().Done():
		}
	}
	s := newStore(t, f, func(o *Options) { o.LogInterval = 5 * time.Millisecond })
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app"}); err != nil {
				t.Error(err)
			}
		})
	}
	line := `"Pulling image" image="app:latest" fetched=1070 of=1100 ready=2 layers=4 `
	waitFor(t, func() bool { return s.pulls.Waiting() == 3 && strings.Contains(said.String(), line) })
	close(goOn)
	callers.Wait()
	if n := f.count("pull"); n != 1 {
		t.Errorf("%d pulls were told of", n)
	}
	end := regexp.MustCompile(`"Pulled image" image="app:latest" id="sha256:a+" digest="[^"]*" fetched=1070 duration=`)
	if n := len(end.FindAllString(said.String(), -1)); n != 1 {
		t.Errorf("its end is told %d times: %s", n, said.String())
	}

	soon := newStore(t, f, func(o *Options) { o.LogInterval = time.Hour })
	before := len(said.String())
	if _, err := soon.PullImage(t.Context(), &engine.PullSpec{Ref: "app"}); err != nil {
		t.Fatal(err)
	}
	if text := said.String()[before:]; strings.Contains(text, `"Pulling image"`) || strings.Count(text, `"Pulled image" image="app:latest" id="`) != 1 {
		t.Errorf("of a pull that was soon over: %s", text)
	}
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

func TestRegistryErrorsHaveAClass(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer broken.Close()
	alive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, word, _ := r.BasicAuth()
		switch {
		case strings.Contains(r.URL.Path, "/absent/"):
			w.WriteHeader(http.StatusNotFound)
		case strings.Contains(r.URL.Path, "/private/") && (user != "user" || word != "right"):
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/forbidden/"):
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer alive.Close()
	right, wrong := &engine.Auth{Username: "user", Password: "right"}, &engine.Auth{Username: "user", Password: "wrong"}
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	tests := []struct {
		name, registry, repository string
		auth                       *engine.Auth
		status                     int // 0: in the stream
		is                         func(error) bool
		down                       bool
	}{
		{"nobody listens", dead.Addr().String(), "app", nil, 500, errdefs.IsUnavailable, true},
		{"nobody listens any more", dead.Addr().String(), "app", nil, 0, errdefs.IsUnavailable, true},
		{"the registry answers 502", host(broken), "app", nil, 500, errdefs.IsUnavailable, true},
		{"something else is wrong", host(alive), "app", nil, 500, errdefs.IsInternal, false},
		{"no such image", dead.Addr().String(), "app", nil, 404, errdefs.IsNotFound, false},
		{"not allowed", dead.Addr().String(), "app", nil, 401, errdefs.IsUnauthorized, false},
		{"no such image, by an engine that says 500", host(alive), "absent/app", nil, 500, errdefs.IsNotFound, false},
		{"no such image, in the stream", host(alive), "absent/app", nil, 0, errdefs.IsNotFound, false},
		{"no credentials, by an engine that says 500", host(alive), "private/app", nil, 500, errdefs.IsUnauthorized, false},
		{"wrong credentials, by an engine that says 500", host(alive), "private/app", wrong, 500, errdefs.IsUnauthorized, false},
		{"good credentials and something else is wrong", host(alive), "private/app", right, 500, errdefs.IsInternal, false},
		{"not for these credentials", host(alive), "forbidden/app", right, 500, errdefs.IsPermissionDenied, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeDocker(t)
			f.pull = func(w http.ResponseWriter, _ *http.Request, _ string) {
				if tt.status == 0 {
					stream(w, `{"status":"Pulling"}`, `{"errorDetail":{"message":"dial tcp: refused"},"error":"dial tcp: refused"}`)
					return
				}
				refuse(w, tt.status, "so it is")
			}
			_, err := newStore(t, f, nil).PullImage(t.Context(), &engine.PullSpec{Ref: tt.registry + "/" + tt.repository + ":v1", Auth: tt.auth})
			if !tt.is(err) || strings.HasPrefix(fmt.Sprint(err), "RegistryUnavailable") != tt.down {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestRemoveTakesEveryNameAndIsIdempotent(t *testing.T) {
	f := newFakeDocker(t)
	id := f.put("a", fakeImage{tags: []string{"a:1", "a:2", "b:1"}})
	s := newStore(t, f, nil)
	if err := s.records.add(engine.ImageID(id), "a@"+someDigest); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.RemoveImage(t.Context(), engine.ImageID(id)); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.ListImages(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v left", list, err)
	}
	if files, err := os.ReadDir(s.options.StateDir); err != nil || len(files) != 0 {
		t.Fatalf("records left: %v, %v", files, err)
	}
	f.put("b", fakeImage{tags: []string{"x:1", "y:1"}})
	s.Invalidate()
	if err := s.RemoveImage(t.Context(), "y:1"); err != nil || f.images[fakeID("b")] != nil {
		t.Fatalf("by tag: %v", err)
	}
}

func TestRemoveOfWhatIsGoneAlreadyForgetsIt(t *testing.T) {
	f := newFakeDocker(t)
	id := f.put("a", fakeImage{tags: []string{"a:1"}})
	s := newStore(t, f, nil)
	if err := s.records.add(engine.ImageID(id), "a@"+someDigest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	delete(f.images, id) // by somebody else, whose event is still to come
	f.mu.Unlock()
	if err := s.RemoveImage(t.Context(), engine.ImageID(id)); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Image(t.Context(), id); !errdefs.IsNotFound(err) || len(s.records.digests(engine.ImageID(id))) != 0 {
		t.Fatalf("%v, %v; want it forgotten", img, err)
	}
}

func TestR30UsedImageIsNotRemoved(t *testing.T) {
	f := newFakeDocker(t)
	id := f.put("a", fakeImage{tags: []string{"a:1"}})
	s := newStore(t, f, nil)
	t.Run("by any container", func(t *testing.T) {
		f.users = []container.Summary{{ID: strings.Repeat("c", 64), ImageID: id, State: "created"}}
		if err := s.RemoveImage(t.Context(), engine.ImageID(id)); !errdefs.IsFailedPrecondition(err) || f.count("remove") != 0 {
			t.Fatalf("%v after %d removals", err, f.count("remove"))
		}
	})
	t.Run("as a volume", func(t *testing.T) { // which Docker's own removal by id does not look for
		f.users = []container.Summary{{
			ID: strings.Repeat("c", 64), ImageID: fakeID("b"), State: "running",
			Mounts: []container.MountPoint{{Type: mount.TypeImage, Name: id, Destination: "/model"}},
		}}
		if err := s.RemoveImage(t.Context(), engine.ImageID(id)); !errdefs.IsFailedPrecondition(err) || f.count("remove") != 0 {
			t.Fatalf("%v after %d removals", err, f.count("remove"))
		}
	})
	t.Run("a container of a child image is no user", func(t *testing.T) {
		f.users = []container.Summary{{ID: strings.Repeat("c", 64), ImageID: fakeID("b"), State: "running"}}
		if err := s.RemoveImage(t.Context(), engine.ImageID(id)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("Docker says so", func(t *testing.T) {
		f.users = nil
		f.put("a", fakeImage{tags: []string{"a:1"}})
		s.Invalidate()
		f.remove = func(w http.ResponseWriter, _ string) bool {
			refuse(w, http.StatusConflict, "image is being used by running container")
			return true
		}
		if err := s.RemoveImage(t.Context(), engine.ImageID(id)); !errdefs.IsFailedPrecondition(err) {
			t.Fatal(err)
		}
	})
	t.Run("a conflict with another removal is done", func(t *testing.T) {
		f.remove = func(w http.ResponseWriter, _ string) bool {
			delete(f.images, id)
			refuse(w, http.StatusConflict, "removal in progress")
			return true
		}
		if err := s.RemoveImage(t.Context(), engine.ImageID(id)); err != nil {
			t.Fatal(err)
		}
	})
}

// hostsDir is a certs.d folder with one hosts.toml.
func hostsDir(t *testing.T, registry, file string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, registry), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, registry, "hosts.toml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPullThroughMirrorLeavesTheAskedNameOnly(t *testing.T) {
	for ref, wantTags := range map[string][]string{"reg.example/team/app:v1": {"reg.example/team/app:v1"}, "reg.example/team/app@" + someDigest: nil} {
		t.Run(ref, func(t *testing.T) {
			f := newFakeDocker(t)
			var helper string
			var s *Store
			f.pull = func(w http.ResponseWriter, _ *http.Request, pulled string) {
				helper = pulled
				name, _, _ := strings.Cut(pulled, "@")
				img := fakeImage{digests: []string{name + "@" + someDigest}, size: 9}
				if name == pulled {
					name = pulled[:strings.LastIndexByte(pulled, ':')]
					img = fakeImage{tags: []string{pulled}, digests: []string{name + "@" + someDigest}, size: 9}
				}
				f.put("a", img)
				s.Invalidate()
				if list, err := s.ListImages(t.Context()); err != nil || len(list) != 0 {
					t.Errorf("in the middle of the pull %v, %v is listed", list, err)
				}
			}
			s = newStore(t, f, func(o *Options) {
				o.RegistryConfigDirs = []string{hostsDir(t, "reg.example", "[host.\"http://127.0.0.1:1\"]")}
			})
			img, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref, Auth: &engine.Auth{Username: "canary", Password: "canary"}})
			if err != nil {
				t.Fatal(err)
			}
			if !pullthrough.IsHelper(helper) || len(f.auths) != 1 || f.auths[0].Username != "" {
				t.Fatalf("Docker pulled %s with %+v", helper, f.auths)
			}
			want := []string{"reg.example/team/app@" + someDigest}
			check := func(s *Store) {
				t.Helper()
				for _, ref := range []string{ref, "reg.example/team/app@" + someDigest, string(img.ID)} {
					got, err := s.Image(t.Context(), ref)
					if err != nil || !slices.Equal(got.RepoTags, wantTags) || !slices.Equal(got.RepoDigests, want) || got.ID != img.ID {
						t.Fatalf("%s: %+v, %v", ref, got, err)
					}
				}
			}
			if !slices.Equal(img.RepoTags, wantTags) || !slices.Equal(img.RepoDigests, want) {
				t.Fatalf("pulled %+v", img)
			}
			check(s)
			again := New(s.options) // a restart
			check(again)
			if got, err := again.Image(t.Context(), helper); !errdefs.IsNotFound(err) {
				t.Fatalf("the helper's name finds %v, %v", got, err)
			}
			for _, tag := range f.images[fakeID("a")].tags {
				if pullthrough.IsHelper(tag) {
					t.Fatalf("tag %s is left", tag)
				}
			}
		})
	}
}

// /etc/docker/certs.d is among the folders that are looked at, and Docker knows it better: also whether a registry is insecure,
// and by which proxy it is reached.
func TestDockerPullsItselfWhereThereAreCertificatesOnly(t *testing.T) {
	f := newFakeDocker(t)
	var pulled string
	f.pull = func(_ http.ResponseWriter, _ *http.Request, ref string) {
		pulled = ref
		f.put("a", fakeImage{tags: []string{ref}, size: 9})
	}
	dir := hostsDir(t, "_default", "[host.\"http://127.0.0.1:1\"]")
	if err := os.Mkdir(filepath.Join(dir, "reg.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, f, func(o *Options) { o.RegistryConfigDirs = []string{dir} })
	if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "reg.example/app:v1"}); err != nil || pulled != "reg.example/app:v1" {
		t.Errorf("Docker pulled %q: %v", pulled, err)
	}
}

// A proxy may fetch a large blob to itself before it sends the first byte, within what the operator allows.
func TestTheFirstByteByWayOfAMirrorMayTakeAsLongAsThePull(t *testing.T) {
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(time.Second) // 10 times as long as an endpoint may be silent otherwise
		http.NotFound(w, nil)
	}))
	defer reg.Close()
	f := newFakeDocker(t)
	f.pull = func(w http.ResponseWriter, r *http.Request, ref string) {
		host, path, _ := strings.Cut(ref, "/")
		name, tag, _ := strings.Cut(path, ":")
		resp, err := http.Get("http://" + host + "/v2/" + name + "/manifests/" + tag)
		if err == nil {
			_ = resp.Body.Close()
		}
		refuse(w, http.StatusInternalServerError, "cannot pull "+ref)
	}
	s := newStore(t, f, func(o *Options) {
		o.RegistryConfigDirs = []string{hostsDir(t, "reg.example", fmt.Sprintf("server = %q\n", reg.URL))}
	})
	s.mirrors.StallTimeout = 100 * time.Millisecond
	for _, limit := range []time.Duration{time.Minute, 0} { // 0 is never
		if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "reg.example/app:v1", NoProgress: limit}); !errdefs.IsNotFound(err) {
			t.Errorf("%v: a slow answer did not count: %v", limit, err)
		}
	}
}

func TestFailedPullThroughSaysWhatTheRegistrySaid(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	empty := httptest.NewServer(testregistry.New(testregistry.Logger(log.New(io.Discard, "", 0))))
	defer empty.Close()
	for server, check := range map[string]func(error) bool{
		"http://" + dead.Addr().String(): func(err error) bool {
			return errdefs.IsUnavailable(err) && strings.HasPrefix(err.Error(), "RegistryUnavailable")
		},
		empty.URL: errdefs.IsNotFound,
	} {
		f := newFakeDocker(t)
		var secret string
		f.pull = func(w http.ResponseWriter, r *http.Request, ref string) {
			host, path, _ := strings.Cut(ref, "/")
			name, tag, _ := strings.Cut(path, ":")
			_, secret, _ = strings.Cut(name, "/")
			resp, err := http.Get("http://" + host + "/v2/" + name + "/manifests/" + tag)
			if err == nil {
				_ = resp.Body.Close()
			}
			refuse(w, http.StatusInternalServerError, "cannot pull "+ref)
		}
		s := newStore(t, f, func(o *Options) {
			o.RegistryConfigDirs = []string{hostsDir(t, "reg.example", fmt.Sprintf("server = %q", server))}
		})
		_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "reg.example/app:v1", Auth: &engine.Auth{Username: "u", Password: "canary"}})
		if !check(err) || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%v", err)
		}
	}
}

func TestRunSweepsWhatACrashLeft(t *testing.T) {
	f := newFakeDocker(t)
	helper := "127.0.0.1:4000/crishim-pull/" + strings.Repeat("a", 32)
	f.put("a", fakeImage{tags: []string{helper + ":v1"}})
	f.put("b", fakeImage{tags: []string{"own:1", helper + ":v2"}})
	dir := t.TempDir()
	for name, content := range map[string]string{
		strings.Repeat("e", 64) + ".json": fmt.Sprintf(`{"version":1,"id":%q,"repoDigests":["gone@%s"]}`, fakeID("e"), someDigest),
		strings.Repeat("b", 64) + ".json": fmt.Sprintf(`{"version":1,"id":%q,"repoDigests":["own@%s"]}`, fakeID("b"), someDigest),
		strings.Repeat("c", 64) + ".json": `{"version":1`,
		strings.Repeat("d", 64) + ".json": fmt.Sprintf(`{"version":1,"id":"../x","repoDigests":["own@%s"]}`, someDigest),
		".tmp-x":                          "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t, f, func(o *Options) { o.StateDir = dir })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	waitFor(t, func() bool { _, _, err := s.ImageFS(t.Context()); return err == nil })
	cancel()
	wg.Wait()
	if f.images[fakeID("a")] != nil || !slices.Equal(f.images[fakeID("b")].tags, []string{"own:1"}) {
		t.Errorf("helper names are left: %v", f.images)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name()[:1]+filepath.Ext(e.Name()))
	}
	if !slices.Equal(names, []string{"b.json", "c.bad", "d.bad"}) {
		t.Errorf("records %v", names)
	}
	if img, err := s.Image(t.Context(), "own@"+someDigest); err != nil || string(img.ID) != fakeID("b") {
		t.Errorf("%v, %v", img, err)
	}
}

func TestPauseImageIsBuiltInWhereItCannotBePulled(t *testing.T) {
	f := newFakeDocker(t)
	f.pull = func(w http.ResponseWriter, _ *http.Request, _ string) { refuse(w, http.StatusNotFound, "no") }
	s := newStore(t, f, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if id, err := s.EnsurePause(t.Context(), pause.DefaultRef); err != nil || string(id) != fakeID("f") {
				t.Errorf("%s, %v", id, err)
			}
		})
	}
	wg.Wait()
	if f.count("pull") != 0 || f.count("load") != 1 {
		t.Errorf("%d pulls and %d loads", f.count("pull"), f.count("load"))
	}
	if img, err := s.Image(t.Context(), fakeID("f")); err != nil || !img.Pinned {
		t.Errorf("%+v, %v; want it pinned", img, err)
	}
	if _, err := s.EnsurePause(t.Context(), "reg.example/pause@"+someDigest); !errdefs.IsNotFound(err) {
		t.Errorf("by digest: %v, want the pull's error", err)
	}
}

// Rows: R34
func TestDiskUsageIsDividedAndNeverMeasuredInTheCall(t *testing.T) {
	root := t.TempDir()
	write := func(size int, path ...string) {
		t.Helper()
		file := filepath.Join(append([]string{root}, path...)...)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(1<<20, "overlay2", "layer", "diff", "file")
	write(2<<20, "overlay2", "rw", "diff", "file")
	write(4096, "overlay2", "rw-init", "diff", "file")
	write(0, "overlay2", "backingFsBlockDev") // dockerd's, where it can set quotas
	write(1<<20, "containers", "c", "c-json.log")
	text := func(value string, path ...string) {
		t.Helper()
		write(0, path...)
		if err := os.WriteFile(filepath.Join(append([]string{root}, path...)...), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text("rw", "image", "overlay2", "layerdb", "mounts", "c", "mount-id")
	text("rw-init", "image", "overlay2", "layerdb", "mounts", "c", "init-id")
	text("layer", "image", "overlay2", "layerdb", "sha256", "x", "cache-id")
	sampler := newSampler()
	images, containers, err := sampler.measure(t.Context(), root, "overlay2")
	if err != nil {
		t.Fatal(err)
	}
	if images.Bytes < 1<<20 || images.Bytes > 1<<20+100<<10 || containers.Bytes < 3<<20 || containers.Bytes > 3<<20+100<<10 || images.Inodes == 0 || containers.Inodes == 0 {
		t.Fatalf("images %+v, containers %+v", images, containers)
	}
	// A committed layer is not walked again, a writable one is.
	write(1<<20, "overlay2", "layer", "diff", "late")
	write(1<<20, "overlay2", "rw", "diff", "late")
	images2, containers2, err := sampler.measure(t.Context(), root, "overlay2")
	if err != nil || images2 != images || containers2.Bytes < containers.Bytes+1<<20 {
		t.Fatalf("then images %+v, containers %+v, %v", images2, containers2, err)
	}
	// No tree that a pod makes is too deep to be measured: neither its own figure nor that of all others would be told.
	const depth = 3000 // of a path longer than the kernel takes
	deep := filepath.Join(root, "overlay2", "rw", "diff")
	t.Cleanup(func() { _ = rmtree.Remove(context.Background(), filepath.Join(deep, "d")) })
	at, err := os.OpenRoot(deep)
	for range depth {
		if err != nil {
			t.Fatal(err)
		}
		if err := at.Mkdir("d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, opened := at.OpenRoot("d")
		at.Close()
		at, err = next, opened
	}
	at.Close()
	if _, containers3, err := sampler.measure(t.Context(), root, "overlay2"); err != nil || containers3.Inodes < containers2.Inodes+depth {
		t.Fatalf("with a deep tree %+v, %v", containers3, err)
	}
}

// A kubelet asks the file system of this folder how full it is: with the packages of Docker 29 that is containerd's, which
// may be another disk than Docker's.
func TestDiskUsageIsOfTheFileSystemThatHasTheLayers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	f := newFakeDocker(t)
	f.driver = "overlayfs"
	own := filepath.Join(f.root, "containerd", "daemon", "io.containerd.snapshotter.v1.overlayfs")
	merged, disk := filepath.Join(f.root, "rootfs", "overlayfs", "c"), t.TempDir()
	mount := func(source, target, fs, data string) {
		t.Helper()
		if err := unix.Mount(source, target, fs, 0, data); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	mount("tmpfs", disk, "tmpfs", "")
	layer := filepath.Join(disk, "io.containerd.snapshotter.v1.overlayfs", "snapshots", "1")
	for _, dir := range []string{own, merged, layer + "/fs", layer + "/work", disk + "/lower"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when, want string) engine.FSUsage {
		t.Helper()
		s := newStore(t, f, nil)
		if err := s.background(t.Context(), newSampler()); err != nil {
			t.Fatal(err)
		}
		images, containers, err := s.ImageFS(t.Context())
		if err != nil || images[0].Mountpoint != want || containers[0].Mountpoint != want || s.Root() != want {
			t.Fatalf("%s: %+v, %+v, %v; want it in %s", when, images, containers, err, want)
		}
		return containers[0]
	}
	check("Docker's own containerd", f.root)
	mount("overlay", merged, "overlay", "lowerdir="+disk+"/lower,upperdir="+layer+"/fs,workdir="+layer+"/work")
	if err := os.WriteFile(filepath.Join(merged, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if used := check("another containerd", disk); used.UsedBytes < 1<<20 {
		t.Errorf("its containers take %+v", used)
	}
}

// Whatever a reference is, what is made of it is safe in a URL's path.
func FuzzParseQuery(f *testing.F) {
	for _, seed := range []string{"busybox", "a@" + someDigest, "../x", strings.Repeat("a", 64), "r:5/x:y@" + someDigest, "[::1]:5000/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		q, err := registry.ParseQuery(ref)
		if err != nil {
			return
		}
		for _, part := range []string{q.ID, q.Prefix, q.Name} {
			if strings.Contains(part, "..") || strings.ContainsAny(part, "?#%\\ \n\x00") || strings.HasPrefix(part, "/") {
				t.Fatalf("%q becomes %q", ref, part)
			}
		}
		if q == (registry.Query{}) {
			t.Fatalf("%q names nothing and is no error", ref)
		}
	})
}

func TestRecordsAreVersioned(t *testing.T) {
	dir := t.TempDir()
	r := loadRecords(dir)
	if err := r.add(engine.ImageID(fakeID("a")), "a@"+someDigest); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, strings.Repeat("a", 64)+".json"))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"version":1,"id":%q,"repoDigests":["a@%s"]}`, fakeID("a"), someDigest)
	if string(data) != want || !json.Valid(data) {
		t.Fatalf("the form on disk changed:\n%s\nwant\n%s", data, want)
	}
	if err := r.add("../../etc/x", "a@"+someDigest); err == nil {
		t.Fatal("an id that is a path was recorded")
	}
}

func TestARecordThatCannotBeOpenedNowIsNeitherSetAsideNorReplaced(t *testing.T) {
	for name, clear := range map[string]uint32{"the folder can be read": unix.O_DIRECTORY, "nothing can": 0} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := loadRecords(dir).add(engine.ImageID(fakeID("a")), "a@"+someDigest); err != nil {
				t.Fatal(err)
			}
			var starved *records
			var err error
			starving.Opening(t, 0, clear, func() {
				starved = loadRecords(dir)
				err = starved.add(engine.ImageID(fakeID("a")), "b@"+someDigest)
			})
			if !errors.Is(err, unix.EMFILE) {
				t.Errorf("recorded beside what cannot be read: %v", err)
			}
			if digests := loadRecords(dir).digests(engine.ImageID(fakeID("a"))); len(digests) != 1 {
				t.Errorf("%v are known at the next start", digests)
			}
			for range 2 { // the second one is told of by memory
				if err := starved.add(engine.ImageID(fakeID("a")), "b@"+someDigest); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range []*records{starved, loadRecords(dir)} {
				if digests := r.digests(engine.ImageID(fakeID("a"))); len(digests) != 2 {
					t.Errorf("%v are known after another was recorded", digests)
				}
			}
		})
	}
}
