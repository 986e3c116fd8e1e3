package bench

import (
	"fmt"
	"math/rand/v2"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
	"crishim/e2e/testimage"
)

// The image that is pulled: layers of files that gzip halves, 200 MB in all.
const pullLayers, pullFiles, pullFileSize = 5, 400, 100_000

// pull measures how long an image takes from a registry on loopback until containers can be made of it, the sides in turns. It
// is removed, and what is unwritten written, before each.
func (n *bench) pull(rounds int) {
	n.b.Helper()
	// The same image in each run.
	random := rand.NewChaCha8([32]byte{1})
	var trees []*testimage.Tree
	for layer := range pullLayers {
		tree := &testimage.Tree{}
		for file := range pullFiles {
			data := make([]byte, pullFileSize)
			_, _ = random.Read(data[:pullFileSize/2]) // never fails; the rest are zeros
			tree.File(fmt.Sprintf("layer-%d/file-%d", layer, file), 0o644, data)
		}
		trees = append(trees, tree)
	}
	n.node.Registry.Push(n.b, "pull:bench", harness.Build(n.b, v1.Config{}, trees...))
	r := &row{name: "PullImage, 200 MB in 5 layers", unit: "ms"}
	if harness.Native() {
		r.goals = []goal{ofPeer(0.75)}
	}
	for round := range rounds {
		for turn := range 2 {
			if (round+turn)%2 == 0 {
				r.ours = append(r.ours, n.pullOnce(n.node.Shim.Client))
			} else if n.peer != nil {
				resume := n.aside(peer)
				r.peer = append(r.peer, n.pullOnce(*n.peer.client))
				resume()
			}
		}
	}
	n.rows = append(n.rows, r)
}

func (n *bench) pullOnce(client harness.Client) []float64 {
	n.b.Helper()
	spec := &runtimeapi.ImageSpec{Image: n.node.Registry.Ref("pull:bench")}
	unix.Sync()
	time.Sleep(settle)
	begin := time.Now()
	if _, err := client.Images.PullImage(n.b.Context(), &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		n.b.Fatalf("pulling: %v", err)
	}
	took := float64(time.Since(begin).Microseconds()) / 1000
	if _, err := client.Images.RemoveImage(n.b.Context(), &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		n.b.Fatalf("removing the image: %v", err)
	}
	return []float64{took}
}
