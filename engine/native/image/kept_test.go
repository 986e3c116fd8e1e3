package image

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"crishim/engine"
)

// Of each image some of the config is kept in memory, and copied for each list. A config may be as large as the store takes; what is
// kept of it may not, as images of whoever may run pods are many. Containers get all of it.
func TestWhatIsKeptOfAConfigIsBounded(t *testing.T) {
	labels := map[string]string{}
	for i := range 20_000 {
		labels[fmt.Sprint("label-", i)] = "x"
	}
	long := strings.Repeat("x", 1<<20)
	reg := newSite(t, nil)
	s := newStore(t, nil)
	for name, change := range map[string]func(*v1.Config){
		"labels":  func(c *v1.Config) { c.Labels, c.User = labels, "7:8" },
		"env":     func(c *v1.Config) { c.Env = []string{"A=" + long} },
		"command": func(c *v1.Config) { c.Cmd = []string{long} },
		"entry":   func(c *v1.Config) { c.Entrypoint = []string{long} },
		"user":    func(c *v1.Config) { c.User = long },
		"folder":  func(c *v1.Config) { c.WorkingDir = "/" + long },
		"signal":  func(c *v1.Config) { c.StopSignal = long },
	} {
		img := imageWith(t, layerOf(t, file("a", "1")))
		file, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		file = file.DeepCopy()
		change(&file.Config)
		if img, err = mutate.ConfigFile(img, file); err != nil {
			t.Fatal(err)
		}
		got := pull(t, s, reg.push(t, name+":v1", img))
		config, err := s.Config(t.Context(), got.ID)
		if err != nil {
			t.Fatal(err)
		}
		if kept := memoryOf(got); kept > maxKept {
			t.Errorf("%s: %d bytes are kept", name, kept)
		}
		// Another store's image of these layers, of which nothing was cut since there is nothing, is another one.
		if bare := (engine.Image{ID: "sha256:bare", Layers: []string{string(config.RootFS.DiffIDs[0])}, User: got.User, Created: got.Created}); got.SameContent(&bare) {
			t.Errorf("%s: it is taken for an image without a config", name)
		}
		if name == "labels" && (got.User != "7:8" || got.UID == nil || *got.UID != 7) {
			t.Errorf("its user is %q", got.User)
		}
		whole := engine.Image{User: config.Config.User, WorkingDir: config.Config.WorkingDir, StopSignal: config.Config.StopSignal,
			Env: config.Config.Env, Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Labels: config.Config.Labels}
		if memoryOf(&whole) < 1<<20 {
			t.Errorf("%s: its containers do not get all of it", name)
		}
	}
	small := pull(t, s, reg.push(t, "small:v1", imageWith(t, layerOf(t, file("b", "1")))))
	if small.User != "1000:5" || len(small.Env) != 1 || len(small.Entrypoint) != 1 {
		t.Errorf("of a real one %+v is left", small)
	}
}
