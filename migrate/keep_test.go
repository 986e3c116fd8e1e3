package migrate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

func TestTheOldShimFindsACheckpointOfAPodItDidNotMake(t *testing.T) {
	root := filepath.Join(t.TempDir(), "dockershim")
	k, err := NewKeeper(Dockershim, root)
	if err != nil {
		t.Fatal(err)
	}
	id := engine.PodID(strings.Repeat("ab", 32))
	spec := &engine.PodSpec{
		Key:        engine.PodKey{Name: "web-kubelet-test", Namespace: "default", UID: "u"},
		Namespaces: engine.Namespaces{Network: engine.NamespacePod},
		Ports:      []engine.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 18080}},
	}
	for range 2 { // also again, over what a crash left
		if err := k.Keep(id, spec); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/dockershim-1.22.17-sandbox-checkpoint.json")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "sandbox", string(id))
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
		t.Errorf("%s, %v; the kubelet itself wrote\n%s", got, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := errors.Join(k.Forget(id), k.Forget(id)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "sandbox")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestACheckpointThatCannotBeWrittenSaysWhereAndHowToGoOn(t *testing.T) {
	root := t.TempDir()
	k, err := NewKeeper(CRIDockerd, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "sandbox")); err != nil {
		t.Fatal(err)
	}
	err = k.Keep("0123", &engine.PodSpec{Namespaces: engine.Namespaces{Network: engine.NamespaceNode}})
	if err == nil || !strings.Contains(err.Error(), "mend "+root) || !strings.Contains(err.Error(), "compatibility") {
		t.Errorf("got %v", err)
	}
	if _, err := NewKeeper("rkt", root); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an unknown shim: %v", err)
	}
}
