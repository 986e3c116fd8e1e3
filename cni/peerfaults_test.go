package cni

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPeerFaultNN are the faults that were seen in cri-dockerd, by number; see server/peerfaults_test.go.

// 02: DEL ran without the port mappings, and portmap then removes no rule.
// Rows: S63 (part)
func TestPeerFault02DelHasThePortMappingsOfTheAdd(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	mustAdd(t, n, "pod1")
	for name, find := range map[string]func() ([]Attachment, error){
		"of the cache": func() ([]Attachment, error) { return n.Cached("pod1") },
		"of the record": func() ([]Attachment, error) {
			return mustAdd(t, n, "pod2"), nil
		},
	} {
		attachments, err := find()
		if err != nil || len(attachments) != 1 || !slices.Equal(attachments[0].IPs(), []string{"10.9.0.5", "fd00::5"}) {
			t.Fatalf("%s: %+v, %v", name, attachments, err)
		}
		if err := n.Del(t.Context(), attachments); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(n.dir, "p1.DEL"))
		if err != nil || !strings.Contains(string(data), `"hostPort":8080`) || !strings.Contains(string(data), "10.9.0.5") {
			t.Errorf("%s: DEL got %s, %v", name, data, err)
		}
	}
	if none, err := n.Cached("pod1"); err != nil || len(none) != 0 {
		t.Errorf("after DEL the cache has %v, %v", none, err)
	}
}

// 03: DEL used the configuration of the day and no annotations, and failed where there was none.
// Rows: R38
func TestPeerFault03DelNeedsNoConfigurationOfToday(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	if err := os.RemoveAll(n.conf); err != nil {
		t.Fatal(err)
	}
	n.reload()
	if n.Status(t.Context()) == nil {
		t.Fatal("there still is a configuration")
	}
	n.calls()
	if err := n.Del(t.Context(), added); err != nil {
		t.Fatal(err)
	}
	if calls := n.calls(); !slices.Equal(calls, []string{`DEL p1 pod1 netns="/run/netns/pod1"`}) {
		t.Errorf("calls %q", calls)
	}
	data, err := os.ReadFile(filepath.Join(n.dir, "p1.DEL"))
	if err != nil || !strings.Contains(string(data), `"ingressRate":10000000`) {
		t.Errorf("DEL without what the annotations asked for: %s, %v", data, err)
	}
}
