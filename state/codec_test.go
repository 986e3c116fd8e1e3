package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"crishim/engine"
)

func samplePod(name string) Pod {
	return Pod{
		ID: engine.PodID("pod-" + name), Engine: "docker", CreatedAt: time.Unix(100, 5).UTC(), Phase: PhaseRunning,
		Spec: engine.PodSpec{
			Key:    engine.PodKey{Name: name, Namespace: "default", UID: "uid-" + name},
			Labels: map[string]string{"a": "<b>&\u2028"},
		},
		Network: Network{Attachments: []json.RawMessage{json.RawMessage(`{"net":"a"}`)}, IPs: []string{"10.0.0.2"}, Done: true},
	}
}

func sampleContainer(pod engine.PodID, name string) Container {
	return Container{
		ID: engine.ContainerID("ctr-" + name), PodID: pod, Engine: "docker", CreatedAt: time.Unix(101, 0).UTC(), Phase: PhaseCreated,
		Spec: engine.ContainerSpec{
			Pod: pod, Key: engine.ContainerKey{Name: name}, Env: []engine.EnvVar{{Name: "X", Value: []byte{0xff, 0}}},
		},
	}
}

func TestRecordsSurviveTheRoundTrip(t *testing.T) {
	pod := samplePod("a")
	pod.Seq = 7
	data, err := encode("pod", &pod)
	if err != nil {
		t.Fatal(err)
	}
	var gotPod Pod
	if err := decode("pod", data, &gotPod); err != nil || !reflect.DeepEqual(gotPod, pod) {
		t.Errorf("got %+v, %v; want %+v", gotPod, err, pod)
	}
	ctr := sampleContainer("pod-a", "c")
	ctr.Seq, ctr.User = 8, &engine.User{UID: 5}
	if data, err = encode("container", &ctr); err != nil {
		t.Fatal(err)
	}
	var gotCtr Container
	if err := decode("container", data, &gotCtr); err != nil || !reflect.DeepEqual(gotCtr, ctr) {
		t.Errorf("got %+v, %v; want %+v", gotCtr, err, ctr)
	}
}

// The files under testdata were written by the first release: they stay readable and are never rewritten.
//
// Rows: R05 (part)
func TestRecordsOfVersion1StayReadable(t *testing.T) {
	for kind, record := range map[string]interface{ check() error }{"pod": &Pod{}, "container": &Container{}} {
		data, err := os.ReadFile(filepath.Join("testdata", kind+"-v1.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(kind, data, record); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// corruptions are R21's. Each makes of a good file one that must not be served.
var corruptions = map[string]func(good []byte) []byte{
	"empty":             func([]byte) []byte { return nil },
	"truncated":         func(b []byte) []byte { return b[:len(b)/2] },
	"without its end":   func(b []byte) []byte { return b[:len(b)-2] },
	"garbage":           func([]byte) []byte { return bytes.Repeat([]byte{0xa5}, 300) },
	"zeros":             func(b []byte) []byte { return make([]byte, len(b)) },
	"flipped bit":       func(b []byte) []byte { b[len(b)-20] ^= 1; return b },
	"flipped first bit": func(b []byte) []byte { b[0] ^= 1; return b },
	"wrong type":        func([]byte) []byte { return []byte("[1,2]\n") },
	"null":              func([]byte) []byte { return []byte("null\n") },
	"trailing bytes":    func(b []byte) []byte { return append(b, "{}\n"...) },
	"duplicate key": func(b []byte) []byte {
		return bytes.Replace(b, []byte(`{"version":1`), []byte(`{"version":2,"version":1`), 1)
	},
	"flipped version": func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":3`), 1) },
	"old version":     func([]byte) []byte { return sealed("pod", 0, `{}`) },
	"wrong kind":      func([]byte) []byte { return sealed("image", 1, `{}`) },
	"wrong field":     func([]byte) []byte { return sealed("pod", 1, `{"seq":"x"}`) },
	"nothing in it":   func([]byte) []byte { return sealed("pod", 1, `{}`) },
	"too big":         func([]byte) []byte { return make([]byte, maxRecord+1) },
}

// sealed is a file with a right checksum.
func sealed(kind string, version int, record string) []byte {
	e := envelope{Version: version, Kind: kind, Record: json.RawMessage(record)}
	e.Sum = e.sum()
	data, _ := json.Marshal(&e)
	return append(data, '\n')
}

// Rows: R21
func TestABadRecordNeverBlocksTheOthers(t *testing.T) {
	for name, corrupt := range corruptions {
		for _, kind := range []string{"pod", "container"} {
			t.Run(kind+" "+name, func(t *testing.T) {
				root := filledRoot(t)
				bad := recordPath(root, kind, "b")
				good, err := os.ReadFile(bad)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(bad, corrupt(good), 0o600); err != nil {
					t.Fatal(err)
				}
				ro, err := OpenReadOnly(root)
				if err != nil || len(ro.Quarantined()) != 1 || ro.Quarantined()[0].Path != bad {
					t.Fatalf("read-only: %v, %+v", err, ro.Quarantined())
				}
				s := openStore(t, root)
				q := s.Quarantined()
				if len(q) != 1 || q[0].Kind != kind || q[0].Reason == "" || q[0].Newer {
					t.Fatalf("quarantined %+v", q)
				}
				if filepath.Dir(q[0].Path) != filepath.Join(root, "quarantine") {
					t.Errorf("moved to %s", q[0].Path)
				}
				if reason, err := os.ReadFile(q[0].Path + ".reason"); err != nil || !strings.Contains(string(reason), q[0].Reason) {
					t.Errorf("reason file: %q, %v", reason, err)
				}
				if pods, ctrs := len(s.Pods()), len(s.Containers()); pods+ctrs != 5 {
					t.Errorf("%d pods and %d containers are served; want 5 together", pods, ctrs)
				}
				// Its place is free again.
				if kind == "pod" {
					err = s.PutPod(samplePod("b"))
				} else {
					err = s.PutContainer(sampleContainer("pod-b", "b"))
				}
				if err != nil {
					t.Errorf("put in the place of the bad record: %v", err)
				}
			})
		}
	}
}

// Rows: R05 (part)
func TestARecordOfANewerSchemaIsKeptAndNotServed(t *testing.T) {
	root := filledRoot(t)
	path := recordPath(root, "pod", "b")
	future := sealed("pod", version+1, `{"anything":true}`)
	if err := os.WriteFile(path, future, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, root)
	q := s.Quarantined()
	if len(q) != 1 || !q[0].Newer || q[0].Path != path {
		t.Fatalf("quarantined %+v", q)
	}
	if err := s.PutPod(samplePod("b")); !isFailedPrecondition(err) {
		t.Errorf("put over it: %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, future) {
		t.Errorf("the file changed: %q, %v", now, err)
	}
}

// Rows: R21 (part)
func TestAFileInAnotherRecordsPlaceIsQuarantined(t *testing.T) {
	root := filledRoot(t)
	data, err := os.ReadFile(recordPath(root, "pod", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(recordPath(root, "pod", "b"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "pods", "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "pods", "dir.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, root)
	if len(s.Quarantined()) != 3 || len(s.Pods()) != 2 {
		t.Errorf("%+v, %d pods", s.Quarantined(), len(s.Pods()))
	}
}

// Rows: S69
func FuzzDecode(f *testing.F) {
	pod, ctr := samplePod("a"), sampleContainer("pod-a", "c")
	pod.Seq, ctr.Seq = 1, 2
	for _, kind := range []string{"pod", "container"} {
		var good []byte
		var err error
		if kind == "pod" {
			good, err = encode(kind, &pod)
		} else {
			good, err = encode(kind, &ctr)
		}
		if err != nil {
			f.Fatal(err)
		}
		f.Add(good)
		for name, corrupt := range corruptions {
			if name != "too big" {
				f.Add(corrupt(bytes.Clone(good)))
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for kind, record := range map[string]interface{ check() error }{"pod": &Pod{}, "container": &Container{}} {
			if err := decode(kind, data, record); err != nil {
				continue
			}
			var e envelope
			if err := json.Unmarshal(data, &e); err != nil || e.Sum != e.sum() {
				t.Errorf("accepted a wrong checksum: %q", data)
			}
			if err := record.check(); err != nil {
				t.Errorf("accepted a record that is not complete: %v", err)
			}
			// What was read can be written again, and is the same then.
			again, err := encode(kind, record)
			if err != nil {
				t.Fatal(err)
			}
			if err := decode(kind, again, record); err != nil {
				t.Errorf("not readable after a rewrite: %v", err)
			}
		}
	})
}

func isFailedPrecondition(err error) bool { return errors.Is(err, errFailedPrecondition) }
