package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func TestGatherKeepsTheOrderAndLeavesOutWhatIsGone(t *testing.T) {
	items := make([]int, 100)
	for i := range items {
		items[i] = i
	}
	var mu sync.Mutex
	seen := 0
	got, err := gather(items, func(i *int) (int, error) {
		mu.Lock()
		seen++
		mu.Unlock()
		if *i%3 == 0 {
			return 0, fmt.Errorf("item %d: %w", *i, errdefs.ErrNotFound)
		}
		return 10 * *i, nil
	})
	if err != nil || seen != len(items) {
		t.Fatalf("error %v after %d items", err, seen)
	}
	if len(got) != 66 || !slices.IsSorted(got) || got[0] != 10 || got[65] != 980 {
		t.Errorf("got %v", got)
	}
	if none, err := gather(nil, func(*int) (int, error) { return 0, nil }); len(none) != 0 || err != nil {
		t.Errorf("of nothing: %v, %v", none, err)
	}
}

func TestGatherReportsFailuresAndPanicsToItsCaller(t *testing.T) {
	_, err := gather([]int{1, 2, 3}, func(i *int) (int, error) {
		if *i == 2 {
			return 0, fmt.Errorf("broken: %w", errdefs.ErrInternal)
		}
		return *i, nil
	})
	if !errdefs.IsInternal(err) {
		t.Errorf("error %v", err)
	}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "bad file") {
			t.Errorf("recovered %v", p)
		}
	}()
	_, _ = gather([]int{1, 2, 3}, func(i *int) (int, error) { panic("bad file") })
	t.Error("the panic was swallowed")
}
