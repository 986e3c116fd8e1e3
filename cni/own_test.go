package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A plugin outlives the daemon that is killed: what the next one does for the pod waits for its end.
//
// Rows: R01 (part)
func TestPluginsOfAKilledDaemonAreWaitedFor(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{"p1": {"ADD": "wait"}}, "p1"))
	n.reload()
	n.Own(t.Context())
	_, added := n.beginAdd()
	_ = n.exec.inherited.Close() // as the kernel does for one that is killed

	next, err := New(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := lockedWithin(t, next, 100*time.Millisecond); err == nil {
		t.Error("the plugin still runs, and was not waited for")
	}
	owned := make(chan struct{})
	go func() { next.own(t.Context(), time.Minute); close(owned) }()
	if err := os.WriteFile(filepath.Join(n.dir, "go on"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-added; err != nil {
		t.Error(err)
	}
	<-owned
	if next.exec.inherited == nil {
		t.Fatal("plugins of the next daemon will not be known")
	}
	_ = next.exec.inherited.Close()
	if err := lockedWithin(t, next, time.Minute); err != nil {
		t.Errorf("nothing runs any more: %v", err)
	}
}

// beginAdd returns while the first plugin of an ADD runs.
func (n *node) beginAdd() (planned []Attachment, added <-chan error) {
	n.t.Helper()
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, err := n.Add(n.t.Context(), planned)
		ended <- err
	}()
	eventually(n.t, "the plugin runs", 30*time.Second, func() bool { call, _ := os.ReadFile(filepath.Join(n.dir, "calls")); return len(call) > 0 })
	return planned, ended
}

func lockedWithin(t *testing.T, n *Network, limit time.Duration) error {
	t.Helper()
	dir, err := os.Open(n.opts.OwedDir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return lockAlone(ctx, dir)
}

// A plugin that outlived its daemon would go on beside the DEL of the next one, and leave what it makes for good.
func TestAnADDEndsWithTheDaemonThatIsToldToEnd(t *testing.T) {
	n := newNode(t, func(o *Options) { o.AddTimeout = 10 * time.Minute })
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", map[string]map[string]string{"p1": {"ADD": "wait"}}, "p1"))
	n.reload()
	t.Cleanup(func() { _ = os.WriteFile(filepath.Join(n.dir, "go on"), nil, 0o600) })
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { n.Run(ctx); close(ended) }()
	planned, added := n.beginAdd()
	end()
	<-ended
	select {
	case err := <-added:
		if !errdefs.IsUnavailable(err) || !errors.Is(err, errEnding) {
			t.Errorf("the ADD under way: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the ADD goes on")
	}
	if calls := n.calls(); len(calls) != 2 || !strings.HasPrefix(calls[1], "DEL p1 pod1") {
		t.Errorf("calls %q", calls)
	}
	if _, _, err := n.Add(t.Context(), planned); !errdefs.IsUnavailable(err) {
		t.Errorf("an ADD after the end: %v", err)
	}
	if calls := n.calls(); !strings.HasPrefix(calls[0], "DEL") {
		t.Errorf("after the end: %q", calls)
	}
}

// Who is not waited for any longer keeps nobody from his work.
func TestAPluginThatHangsForGoodDelaysOnly(t *testing.T) {
	n := newNode(t)
	n.Own(t.Context())
	next, err := New(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	next.own(t.Context(), time.Millisecond)
	if next.exec.inherited == nil {
		t.Fatal("plugins of the next daemon will not be known")
	}
	_ = n.exec.inherited.Close()
	if err := lockedWithin(t, n.Network, time.Millisecond); err == nil {
		t.Error("the next daemon holds no lock")
	}
	_ = next.exec.inherited.Close()
}
