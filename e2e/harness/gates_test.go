package harness

import (
	"testing"
	"time"
)

func TestLatencyBeyondItsLimitsIsNamed(t *testing.T) {
	var l Latency
	for i := range 200 {
		l.add("Fast", time.Duration(i)*time.Millisecond)
		l.add("Slow", time.Duration(2*i)*time.Millisecond)
	}
	l.add("Once", 2*time.Second)
	got := l.beyond(250*time.Millisecond, time.Second)
	want := []string{"1 in 100 calls of Slow took 396ms or more, the limit is 250ms", "one of 1 calls of Once took 2s, more than 1s"}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%q", got)
	}
}
