package stats

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

func TestDiskMeasuresAtOnceAndForgets(t *testing.T) {
	d := NewDisk()
	dir, late := t.TempDir(), t.TempDir()
	d.Watch("early", dir)
	d.Watch("gone", filepath.Join(dir, "absent"))
	if _, _, _, ok := d.Usage("early"); ok {
		t.Error("a measurement before Run")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx) }()
	defer func() { cancel(); <-done }()
	began := time.Now()
	waitFor(t, func() bool { _, inodes, _, ok := d.Usage("early"); return ok && inodes == 1 })
	if _, inodes := d.Sum(""); inodes == 0 {
		t.Error("the sum of all directories has no inode")
	}
	d.Watch("late", late)
	waitFor(t, func() bool { _, _, at, ok := d.Usage("late"); return ok && !at.Before(began) })
	if _, _, _, ok := d.Usage("gone"); ok {
		t.Error("an absent folder was measured")
	}
	// The same folder again is no reason to measure again; another one is.
	_, _, before, _ := d.Usage("late")
	d.Watch("late", late)
	if _, _, at, ok := d.Usage("late"); !ok || !at.Equal(before) {
		t.Error("watching the same folder again lost the measurement")
	}
	d.Forget("late")
	if _, _, _, ok := d.Usage("late"); ok {
		t.Error("not forgotten")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
