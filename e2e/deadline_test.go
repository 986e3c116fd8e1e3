package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// R10: the caller's deadline passes at each step of a creation. The call ends then, and the next one gets what was begun.
//
// Rows: R10 (part)
func TestDeadlinePassesAtEachStep(t *testing.T) {
	f := newFaults(t)
	steps := f.steps(t)
	for _, name := range []string{"RunPodSandbox", "CreateContainer"} {
		slow := slices.DeleteFunc(distinct(steps[name]), step.ofItsOwn)
		for _, at := range slow {
			t.Run(fmt.Sprintf("%s at %s", name, at), func(t *testing.T) {
				v := f.victim(t)
				one := v.until(name)
				f.arm(t, at.does("sleep:1s"))
				short, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
				defer cancel()
				err := one.do(short)
				// What follows an event of the pod pins its namespace too, and may be the one that sleeps: the call then finds the pin.
				if err != nil || !strings.HasPrefix(at.name, "netns.pin") {
					wantCode(t, "a call whose deadline passed", err, codes.DeadlineExceeded)
				}
				v.succeed(one)
				usual := names(steps[name])
				if more := slices.IndexFunc(f.traced(t), func(s step) bool { return !s.ofItsOwn() && !slices.Contains(usual, s.String()) }); more >= 0 {
					t.Errorf("more was done than for one call: %v", f.traced(t)[more])
				}
				f.arm(t)
				v.end()
				f.unharmed(t, false)
			})
		}
	}
}

// names are the steps as text.
func names(steps []step) []string {
	var all []string
	for _, s := range steps {
		all = append(all, s.String())
	}
	return all
}
