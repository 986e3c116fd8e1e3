package native

import (
	"os"
	"path/filepath"
	"testing"

	"crishim/engine"
	"crishim/internal/seal"
)

// addRecord gives a fuzz test a record of version 1, with a checksum and without.
func addRecord(f *testing.F, name string, record any) {
	f.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "v1", name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	if data, err = seal.Marshal(record); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"boot":"b","id":"a"}`))
}

// Rows: S69 (part)
func FuzzDecodePod(f *testing.F) {
	addRecord(f, "pod.json", podRecord{header: header{Version: 1, Boot: "b"}, ID: "0123"})
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := decode(data)
		if err != nil {
			return
		}
		r, err := decodePod("0123", found.data)
		if err != nil {
			return
		}
		if r.header != found.header || r.ID != "0123" || r.Cgroup.Path == "" {
			t.Errorf("believed: %+v", r)
		}
		p := pod{podRecord: r}
		_ = p.status()
		again, err := seal.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodePod("0123", again); err != nil || seal.Check(again) != nil {
			t.Errorf("not readable after a rewrite: %v", err)
		}
	})
}

// Rows: S69 (part)
func FuzzDecodeContainer(f *testing.F) {
	addRecord(f, "container.json", containerRecord{header: header{Version: 1, Boot: "b"}, ID: "4567", Spec: engine.ContainerSpec{Pod: "0123"}})
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := decode(data)
		if err != nil {
			return
		}
		r, err := decodeContainer("4567", found.data)
		if err != nil {
			return
		}
		if r.header != found.header || r.ID != "4567" || r.Spec.Pod == "" || r.Cgroup.Path == "" {
			t.Errorf("believed: %+v", r)
		}
		c := newContainer(r)
		_, _ = c.status(), c.uses("an image")
		again, err := seal.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeContainer("4567", again); err != nil || seal.Check(again) != nil {
			t.Errorf("not readable after a rewrite: %v", err)
		}
	})
}

// Rows: S69 (part)
func FuzzDecodeBundle(f *testing.F) {
	f.Add([]byte(`{"ociVersion":"1.3.0","process":{"args":["sh"],"cwd":"/"},"root":{"path":"/r"},"linux":{"resources":{"devices":[{"allow":false}]},"cgroupsPath":"/a"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if seal.Check(data) != nil {
			return
		}
		oci, err := decodeBundle(data)
		if err != nil {
			return
		}
		again, err := seal.Marshal(oci)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeBundle(again); err != nil || seal.Check(again) != nil {
			t.Errorf("not readable after a rewrite: %v", err)
		}
	})
}
