package cni

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
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
	planned, err := n.Plan(testPod("pod1"))
	if err != nil {
		t.Fatal(err)
	}
	added := make(chan error, 1)
	go func() {
		_, _, err := n.Add(t.Context(), planned)
		added <- err
	}()
	eventually(t, "the plugin runs", 30*time.Second, func() bool { call, _ := os.ReadFile(filepath.Join(n.dir, "calls")); return len(call) > 0 })
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
