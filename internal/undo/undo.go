// Package undo is a stack of named steps that take back what a failing operation had made.
//
// Push a step as soon as its object exists (before, where failing can leak); Release on success. Run on failure runs
// the steps in reverse, in a context that outlives the caller's, and reports those that failed so that the caller can
// keep a record of what is left.
package undo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crishim/internal/failpoint"
)

// Timeout bounds all steps of one Run together.
const Timeout = 90 * time.Second

// Stack is used by one goroutine. The zero value is ready.
type Stack struct {
	steps []step
}

type step struct {
	name string
	run  func(context.Context) error
}

// Push adds a step; name says what it takes back ("pause container").
func (s *Stack) Push(name string, run func(context.Context) error) {
	s.steps = append(s.steps, step{name, run})
}

// Release forgets all steps: the operation succeeded.
func (s *Stack) Release() { s.steps = nil }

// Run takes everything back, newest first, past errors, and returns the errors joined. The caller's cancellation does
// not reach the steps, its values do.
func (s *Stack) Run(ctx context.Context) error {
	if len(s.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		if err := failpoint.Around("undo."+s.steps[i].name, func() error { return s.steps[i].run(ctx) }); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.steps[i].name, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}
