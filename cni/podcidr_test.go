package cni

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crishim/internal/process"
	"crishim/internal/starving"

	"golang.org/x/sys/unix"
)

// keeping is a node whose daemon keeps what it was told, and has configured ranges.
func keeping(t *testing.T, change ...func(*Options)) *node {
	return newNode(t, append(change, func(o *Options) {
		o.PodCIDRFile = filepath.Join(filepath.Dir(o.OwedDir), "pod-cidrs.json")
		o.PodCIDRs = []string{"10.1.0.0/24"}
	})...)
}

// restart is the daemon's: what is in memory alone is gone.
func (n *node) restart() {
	n.t.Helper()
	network, err := New(n.opts)
	if err != nil {
		n.t.Fatal(err)
	}
	network.ns = n.ns
	n.Network = network
}

func (n *node) hasPodCIDRs(want ...string) {
	n.t.Helper()
	if got := n.PodCIDRs(); !slices.Equal(got, want) {
		n.t.Errorf("pod CIDRs %q, want %q", got, want)
	}
}

func TestPodCIDRsThatTheKubeletToldHoldOverARestart(t *testing.T) {
	template := filepath.Join(t.TempDir(), "template")
	text := `{"cniVersion":"1.0.0","name":"made","plugins":[{"type":"p1","range":"{{.PodCIDR}}","capabilities":{"ipRanges":true}}]}`
	if err := os.WriteFile(template, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	n := keeping(t, func(o *Options) { o.Template = template })
	n.plugins("p1")
	n.hasPodCIDRs("10.1.0.0/24")
	n.restart()
	n.hasPodCIDRs("10.1.0.0/24") // the configured ones are not kept: they may change
	if err := n.SetPodCIDRs([]string{"10.2.0.0/24", "fd02::/64"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.conf, TemplateTarget)); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.hasPodCIDRs("10.2.0.0/24", "fd02::/64")
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(planned[0].CapabilityArgs[capIPRanges]), `[[{"subnet":"10.2.0.0/24"}],[{"subnet":"fd02::/64"}]]`; got != want {
		t.Errorf("plugins get the ranges %s, want %s", got, want)
	}
	if got := string(n.Config()); !strings.Contains(got, `"range":"10.2.0.0/24"`) {
		t.Errorf("made from the template: %s", got)
	}
	if err := os.Remove(template); err != nil {
		t.Fatal(err)
	}
	n.restart() // no template is no reason to forget them, or not to start
	n.hasPodCIDRs("10.2.0.0/24", "fd02::/64")
}

func TestPodCIDRsThatCannotBeReadAreAsIfNoneWereTold(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"a torn file":        func(path string) error { return os.WriteFile(path, []byte(`{"podCIDRs":["10.2.0.0/24"`), 0o600) },
		"an empty file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a file of no CIDRs": func(path string) error { return os.WriteFile(path, []byte(`{"podCIDRs":["10.2.0.0/24","x"]}`), 0o600) },
		"a folder":           func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(what, func(t *testing.T) {
			n := keeping(t)
			if err := n.SetPodCIDRs([]string{"10.2.0.0/24"}); err != nil {
				t.Fatal(err)
			}
			n.restart()
			n.hasPodCIDRs("10.2.0.0/24")
			if err := os.Remove(n.opts.PodCIDRFile); err != nil {
				t.Fatal(err)
			}
			if err := spoil(n.opts.PodCIDRFile); err != nil {
				t.Fatal(err)
			}
			n.restart()
			n.hasPodCIDRs("10.1.0.0/24")
		})
	}
}

func TestPodCIDRsThatCannotBeKeptAreUsedAndToldAgain(t *testing.T) {
	n := keeping(t)
	disk := filepath.Join(t.TempDir(), "disk")
	n.opts.PodCIDRFile = filepath.Join(disk, "pod-cidrs.json")
	if err := n.SetPodCIDRs([]string{"10.2.0.0/24"}); err == nil || !strings.Contains(err.Error(), n.opts.PodCIDRFile) {
		t.Errorf("error %v", err)
	}
	n.hasPodCIDRs("10.2.0.0/24")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.SetPodCIDRs([]string{"10.2.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.hasPodCIDRs("10.2.0.0/24")
}

// Rows: R49 (part)
func TestPodCIDRsThatCannotBeOpenedNowAreNotForgotten(t *testing.T) {
	n := keeping(t)
	if err := n.SetPodCIDRs([]string{"10.2.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	var err error
	starving.Opening(t, 0, unix.O_DIRECTORY, func() { _, err = New(n.opts) })
	if !process.Starved(err) {
		t.Errorf("started with %v", err)
	}
	n.restart()
	n.hasPodCIDRs("10.2.0.0/24")
}
