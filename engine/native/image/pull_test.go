package image

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

func TestPulledImageIsUnpackedAndFound(t *testing.T) {
	reg := newSite(t, nil)
	img := imageWith(t, layerOf(t, dir("etc/"), file("etc/a", "lower")), layerOf(t, file("etc/a", "upper")))
	ref := reg.push(t, "team/app:v1", img)
	s := newStore(t, nil)

	got := pull(t, s, ref)
	if want := hexOf(img.ConfigName()); string(got.ID) != want {
		t.Fatalf("id %s, want the config's digest %s", got.ID, want)
	}
	digestRef := reg.host() + "/team/app@" + hexOf(img.Digest())
	if !slices.Equal(got.RepoTags, []string{ref}) || !slices.Equal(got.RepoDigests, []string{digestRef}) {
		t.Fatalf("names %v %v", got.RepoTags, got.RepoDigests)
	}
	if got.Size == 0 || got.UID == nil || *got.UID != 1000 || !slices.Equal(got.Env, []string{"A=b"}) {
		t.Fatalf("%+v", got)
	}
	if a, b := read(t, s, got.ID, 0, "etc/a"), read(t, s, got.ID, 1, "etc/a"); a != "lower" || b != "upper" {
		t.Fatalf("layers hold %q and %q", a, b)
	}
	for _, name := range []string{ref, digestRef, string(got.ID), strings.TrimPrefix(string(got.ID), "sha256:"), string(got.ID)[7:19]} {
		if found, err := s.Image(t.Context(), name); err != nil || found.ID != got.ID {
			t.Errorf("by %s: %v", name, err)
		}
	}
	for _, name := range []string{"other", string(got.ID)[7:18], reg.host() + "/team/app:v2"} {
		if _, err := s.Image(t.Context(), name); !errdefs.IsNotFound(err) {
			t.Errorf("by %s: %v", name, err)
		}
	}
	config, err := s.Config(t.Context(), got.ID)
	if err != nil || !slices.Equal(config.Config.Entrypoint, []string{"/app"}) {
		t.Fatalf("%v %v", config, err)
	}
	// A second pull fetches the manifest alone, and the store is the same after a restart.
	blobs := reg.count("GET", "/blobs/")
	pull(t, s, ref)
	if n := reg.count("GET", "/blobs/"); n != blobs {
		t.Errorf("a second pull fetched %d blobs", n-blobs)
	}
	if c := s.Counts(); c.Done != 2 || c.Running+int64(c.Failed) != 0 || c.Seconds <= 0 || c.UnpackSeconds <= 0 || c.FlushSeconds <= 0 || c.UnpackedBytes == 0 || c.FetchedBytes == 0 {
		t.Errorf("counted %+v", c)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	list, err := reopen(t, s.root, nil).ListImages(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != got.ID || list[0].Size != got.Size || !slices.Equal(list[0].RepoTags, got.RepoTags) {
		t.Fatalf("after a restart: %+v %v", list, err)
	}
}

func TestPullOfWhatIsNotThere(t *testing.T) {
	reg := newSite(t, nil)
	s := newStore(t, nil)
	for ref, is := range map[string]func(error) bool{
		reg.host() + "/no/such:v1":          errdefs.IsNotFound,
		"127.0.0.1:1/app:v1":                errdefs.IsUnavailable,
		"UPPER":                             errdefs.IsInvalidArgument,
		"sha256:" + strings.Repeat("a", 64): errdefs.IsInvalidArgument,
	} {
		if _, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: ref}); !is(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if c := s.Counts(); c.Failed != 2 || c.Done != 0 || c.Running != 0 {
		t.Errorf("counted %+v", c)
	}
}
