package oom

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func write(t *testing.T, dir string, maxed, kills int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), fmt.Appendf(nil, "low 0\nhigh 0\nmax %d\noom 3\noom_kill %d\noom_group_kill 0\n", maxed, kills), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEachKillIsToldAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	paths := map[string]string{"": dir}
	write(t, dir, 0, 2)
	told := make(chan uint64, 100)
	stop, err := Notify(paths, func(kills uint64) { told <- kills })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for kills := 3; kills < 6; kills++ {
		// Memory runs short long before something is killed for it.
		for maxed := range 20 {
			write(t, dir, maxed, kills-1)
		}
		write(t, dir, 20, kills)
		select {
		case n := <-told:
			if n != uint64(kills) {
				t.Errorf("kill %d is told as %d", kills, n)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("kill %d is not told", kills)
		}
		if len(told) > 0 {
			t.Errorf("kill %d is told twice", kills)
		}
	}
}

func TestKillsAreReadOfBothVersions(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 9, 4)
	if err := os.WriteFile(filepath.Join(dir, "memory.oom_control"), []byte("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		paths map[string]string
		kills uint64
		fails bool
	}{
		{"version 2", map[string]string{"": dir}, 4, false},
		{"version 1", map[string]string{"memory": dir}, 5, false},
		{"hybrid", map[string]string{"": dir + "/none", "memory": dir}, 5, false},
		{"no memory controller", map[string]string{"pids": dir}, 0, false},
		{"gone", map[string]string{"": dir + "/none"}, 0, true},
	} {
		if kills, err := Kills(tt.paths); kills != tt.kills || (err != nil) != tt.fails {
			t.Errorf("%s: %d, %v", tt.name, kills, err)
		}
	}
}
