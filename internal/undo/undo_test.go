package undo

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRunGoesBackwardsPastErrorsAndCancellation(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var ran []string
	var s Stack
	for _, name := range []string{"a", "b", "c"} {
		s.Push(name, func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Errorf("step %s got the caller's cancellation", name)
			}
			ran = append(ran, name)
			if name == "b" {
				return errors.New("broken")
			}
			return nil
		})
	}
	err := s.Run(ctx)
	if !slices.Equal(ran, []string{"c", "b", "a"}) {
		t.Errorf("ran %v", ran)
	}
	if err == nil || !strings.Contains(err.Error(), "undo b: broken") {
		t.Errorf("error %v", err)
	}
	if err := s.Run(ctx); err != nil || len(ran) != 3 {
		t.Errorf("second Run did something: %v %v", ran, err)
	}
}

func TestReleaseKeepsEverything(t *testing.T) {
	var s Stack
	s.Push("a", func(context.Context) error { t.Error("ran"); return nil })
	s.Release()
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The caller keeps a record of what is left whenever Run says an error: a clean undo must say none, and a step that hangs
// must not hold the caller for ever.
func TestCleanUndoReportsNothingAndIsBounded(t *testing.T) {
	var s Stack
	ran := 0
	for _, name := range []string{"a", "b"} {
		s.Push(name, func(ctx context.Context) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Errorf("step %s has no deadline", name)
			}
			ran++
			return nil
		})
	}
	if err := s.Run(t.Context()); err != nil || ran != 2 {
		t.Errorf("ran %d steps, error %v", ran, err)
	}
}
