package kubeletfiles

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestApplyAndRestoreAreInverse(t *testing.T) {
	root := tree(t, map[string]string{
		unitPath: kubeadmUnit, kubeadmPath: kubeadmConf + "Environment=MORE=--network-plugin=cni\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBEADM_ARGS $MORE\n",
		"real/flags.env": "KUBELET_KUBEADM_ARGS=\"--cni-bin-dir=/opt/cni/bin\"\n",
	})
	// An administrator may keep the file elsewhere.
	flags := filepath.Join(root, KubeadmFlags)
	if err := os.MkdirAll(filepath.Dir(flags), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "real/flags.env"), flags); err != nil {
		t.Fatal(err)
	}
	before := contents(t, root)
	edits, err := read(t, root).Plan(Target{Endpoint: socket, Minor: 23})
	if err != nil || len(edits) != 2 {
		t.Fatalf("%d edits, %v", len(edits), err)
	}
	backup := filepath.Join(root, "keep", "adopt.json")
	if err := (&Backup{Edits: edits, Endpoint: socket}).Save(backup); err != nil {
		t.Fatal(err)
	}
	if err := Apply(root, edits); err != nil {
		t.Fatal(err)
	}
	if got, _ := read(t, root).Endpoint(); got != socket {
		t.Fatalf("the endpoint is %q", got)
	}
	if again, err := read(t, root).Plan(Target{Endpoint: socket, Minor: 23}); err != nil || len(again) > 0 {
		t.Fatalf("a second plan has %d edits, %v", len(again), err)
	}
	if info, err := os.Lstat(flags); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Fatalf("the link was replaced: %v, %v", info, err)
	}
	if err := Apply(root, edits); err != nil {
		t.Fatalf("what is there already was refused: %v", err)
	}
	if err := (&Backup{}).Save(backup); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("a second backup: %v", err)
	}
	b, err := LoadBackup(backup)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a rollback that was cut off is done again
		if err := Restore(root, b.Edits, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Dir(backup)); err != nil {
		t.Fatal(err)
	}
	after := contents(t, root)
	for path, text := range before {
		if after[path] != text {
			t.Errorf("%s was\n%s\nand is\n%s", path, text, after[path])
		}
		delete(after, path)
	}
	if len(after) > 0 {
		t.Errorf("left over: %v", after)
	}
}

func TestForeignChangesAreNotOverwritten(t *testing.T) {
	const path = "/etc/x.conf"
	root := tree(t, map[string]string{path: "somebody's\n"})
	edits := []Edit{{Path: path, Before: "old\n", After: "new\n", Mode: 0o644}}
	if err := Apply(root, edits); !errdefs.IsConflict(err) {
		t.Fatalf("apply: %v", err)
	}
	if err := Restore(root, edits, false); !errdefs.IsConflict(err) {
		t.Fatalf("restore: %v", err)
	}
	if got := contents(t, root)[path]; got != "somebody's\n" {
		t.Fatalf("it is %q now", got)
	}
	if err := Restore(root, edits, true); err != nil || contents(t, root)[path] != "old\n" {
		t.Fatalf("by force: %v, %q", err, contents(t, root)[path])
	}
	added := []Edit{{Path: path, After: "new\n", Mode: 0o644, New: true}}
	if err := Restore(root, added, false); !errdefs.IsConflict(err) {
		t.Fatalf("removal: %v", err)
	}
}

func TestLoadBackupSaysWhatIsWrong(t *testing.T) {
	root := tree(t, map[string]string{"new.json": `{"version":99}`, "bad.json": "{"})
	if _, err := LoadBackup(filepath.Join(root, "none.json")); !errdefs.IsNotFound(err) {
		t.Errorf("none: %v", err)
	}
	if _, err := LoadBackup(filepath.Join(root, "new.json")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a newer one: %v", err)
	}
	if _, err := LoadBackup(filepath.Join(root, "bad.json")); err == nil {
		t.Error("a broken one was read")
	}
}

func contents(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		all[path[len(root):]] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The comparison before a switch runs a daemon in the same process, with its umask: others could not read the kubelet's unit afterwards.
func TestTheFolderOfADropInIsOpenToBeRead(t *testing.T) {
	root := t.TempDir()
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	edits := []Edit{{Path: DropIn, After: "[Service]\n", Mode: 0o644, New: true}}
	if err := Apply(root, edits); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{DropIn: 0o644, filepath.Dir(DropIn): 0o755} {
		if info, err := os.Stat(filepath.Join(root, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s is %v, %v", path, info.Mode(), err)
		}
	}
}
