package e2e

import (
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/e2e/testimage"
)

// archives: what docker save wrote runs on the native engine, what crishim images export wrote runs on Docker, and an OCI
// layout in a folder comes back; no registry is asked.
func (b *bothEngines) archives() {
	tree := &testimage.Tree{}
	tree.File("opt/archived", 0o640, []byte("kept in archives"))
	b.n.Registry.Push(b, "archived:v1", harness.Build(b, v1.Config{Cmd: []string{"/bin/testserver", "on-term", "0"}}, tree))
	ref := b.n.Pull(b, "archived:v1")
	id := imageStatus(b.T, b.n, ref).GetId()
	asked := len(b.n.Registry.Requests())
	dir := harness.WorkDir(b, "a")
	saved, exported, layout := filepath.Join(dir, "saved.tar"), filepath.Join(dir, "exported.tar"), filepath.Join(dir, "layout")

	b.n.Docker.CLI(b, "save", "-o", saved, ref)
	removeImage(b.T, b.n, ref)
	b.offline(ref, "import", saved)
	b.archived(ref, id, "native")
	b.offline("", "export", "-o", exported, ref)
	b.offline("", "export", "-o", layout+"/", ref)
	removeImage(b.T, b.n, ref)

	if out := b.n.Docker.CLI(b, "load", "-i", exported); !strings.Contains(out, "Loaded image: "+ref) {
		b.Errorf("docker load says %q", out)
	}
	b.archived(ref, id, "docker")
	removeImage(b.T, b.n, ref)
	b.offline(ref, "import", layout)
	b.archived(ref, id, "native")
	removeImage(b.T, b.n, ref)

	if now := b.n.Registry.Requests(); len(now) > asked {
		b.Errorf("the registry was asked: %v", now[asked:])
	}
}

// offline runs crishim images while the daemon is down.
func (b *bothEngines) offline(want string, args ...string) {
	b.Helper()
	b.n.Shim.Stop()
	out, code := b.n.Shim.Command(append([]string{"images", "--config", b.n.Shim.ConfigFile}, args...)...)
	if code != 0 || !strings.Contains(out, want) {
		b.Errorf("crishim images %v: status %d, no %q in:\n%s", args, code, want, out)
	}
	b.n.Shim.Start()
}

// archived runs a container of the image on the engine that has it.
func (b *bothEngines) archived(ref, id, engine string) {
	b.Helper()
	image := imageStatus(b.T, b.n, ref)
	if image == nil || !b.n.Docker.HasContainerdStore() && image.Id != id {
		b.Errorf("%s is %v, and was %s", ref, image, id)
	}
	before := b.n.Shim.LogSize()
	pod := b.n.RunPodConfig(b, b.n.PodConfig("archived"), engine)
	c := pod.Run("c", ref, nil, func(c *runtimeapi.ContainerConfig) { c.Image.RuntimeHandler = engine })
	if got := c.Output("cat /opt/archived; stat -c ' %a' /opt/archived"); got != "kept in archives 640\n" {
		b.Errorf("on engine %s: %q", engine, got)
	}
	pod.Remove()
	if strings.Contains(b.n.Shim.LogFrom(before), "An image was carried") {
		b.Errorf("the image was not on engine %s, but carried there", engine)
	}
}
