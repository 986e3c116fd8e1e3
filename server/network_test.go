package server

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/cni"
	"crishim/internal/atomicfile"
	"crishim/state"
)

// A power cut while ADD is at work leaves what DEL needs, whatever it tears.
//
// Rows: R22 (part)
func TestNoPowerCutForgetsWhatCNIIsToDo(t *testing.T) {
	f := newFixture(t)
	f.network.slow = make(chan struct{})
	made := make(chan error, 1)
	go func() {
		_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")})
		made <- err
	}()
	eventually(t, "ADD", func() error {
		if f.network.adds.Load() == 0 {
			return errors.New("not called")
		}
		return nil
	})
	var after string
	eventually(t, "a copy of the records", func() error { // one that is settled meanwhile loses a file
		after = t.TempDir()
		return os.CopyFS(after, os.DirFS(filepath.Join(f.root, "root")))
	})
	close(f.network.slow)
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	records, err := filepath.Glob(filepath.Join(after, "pods", "*.json"))
	if err != nil || len(records) != 1 {
		t.Fatalf("records: %v, %v", records, err)
	}
	// What waits for the disk still is torn; on a slow machine nothing may.
	if _, err := os.Stat(atomicfile.Older(records[0])); err == nil {
		if err := os.Truncate(records[0], 0); err != nil {
			t.Fatal(err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	store, err := state.OpenReadOnly(after)
	if err != nil {
		t.Fatal(err)
	}
	pods := store.Pods()
	if len(pods) != 1 {
		t.Fatalf("%d pods are recorded; not served: %+v", len(pods), store.Quarantined())
	}
	left, err := attachmentsOf(pods[0].Pod)
	if err != nil || len(left) != 1 || left[0].PodID != string(pods[0].ID) || left[0].IfName != cni.IfName || pods[0].Phase != state.PhaseCreated {
		t.Errorf("the record, in phase %s, has the attachments %+v, %v", pods[0].Phase, left, err)
	}
}
