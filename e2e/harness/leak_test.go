package harness

import "testing"

func TestPooledCountsIdleConnections(t *testing.T) {
	profile := "goroutine profile: total 12\n7 @ 0x1 0x2\n#\t0x1\tnet/http.(*persistConn).writeLoop+0xe5\tx.go:1\n\n" +
		"3 @ 0x1\n#\t0x1\tmain.main\tx.go:1\n\n2 @ 0x1\n#\t0x1\tnet/http.(*persistConn).readLoop+0x1\tx.go:1\n"
	if got := pooled(profile); got != 9 {
		t.Errorf("%d, want 9", got)
	}
}

func TestWhatIsMoreThanBeforeIsNamed(t *testing.T) {
	before := footprint{lists: map[string][]string{"mount": {"/a"}}, numbers: map[string]int{"descriptors": 10, "goroutines": 10}}
	after := footprint{lists: map[string][]string{"mount": {"/a", "/b"}}, numbers: map[string]int{"descriptors": 30, "goroutines": 12}}
	problems := after.beyond(before)
	if len(problems) != 2 || problems[0] != "descriptors of the daemon: 30, before 10" || problems[1] != "mount: /b" {
		t.Errorf("problems %q", problems)
	}
	heavy := footprint{numbers: map[string]int{"resident bytes": 400 << 20}}
	for grown, leaks := range map[int]int{419 << 20: 0, 421 << 20: 1} {
		if problems := (footprint{numbers: map[string]int{"resident bytes": grown}}).beyond(heavy); len(problems) != leaks {
			t.Errorf("%d bytes: %q", grown, problems)
		}
	}
	if problems := before.beyond(after); len(problems) != 0 {
		t.Errorf("less than before is no leak: %q", problems)
	}
}
