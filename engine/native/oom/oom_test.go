package oom

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	write(t, dir, 0, 2)
	var told []uint64
	counted := counter(map[string]string{"": dir}, func(kills uint64) { told = append(told, kills) })
	for kills := 3; kills < 6; kills++ {
		// Memory runs short long before something is killed for it.
		for maxed := range 20 {
			write(t, dir, maxed, kills-1)
			if counted() {
				t.Errorf("told before kill %d", kills)
			}
		}
		write(t, dir, 20, kills)
		if !counted() || counted() {
			t.Errorf("kill %d is not told once", kills)
		}
	}
	if want := []uint64{3, 4, 5}; !slices.Equal(told, want) {
		t.Errorf("%v", told)
	}
}

// The file is one that changes as memory.events does, and is there without a memory controller.
func TestChangesOfAFileOfVersion2AreSeen(t *testing.T) {
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		root += "/unified"
	}
	group, err := os.MkdirTemp(root, "crishim-oom-")
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = os.Remove(group) }()
	seen := make(chan string, 100)
	stop, err := onChange(filepath.Join(group, "cgroup.events"), func() {
		data, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if err != nil {
			data = []byte(err.Error())
		}
		seen <- string(data)
	})
	if err != nil {
		t.Fatal(err)
	}
	sees := func(what string) {
		t.Helper()
		for {
			select {
			case got := <-seen:
				if strings.Contains(got, what) {
					return
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("%q is not seen", what)
			}
		}
	}
	for range 20 {
		sleeper := exec.Command("sleep", "1000")
		if err := sleeper.Start(); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0)
		if err == nil {
			sees("populated 1")
		}
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
		if err != nil {
			t.Fatal(err)
		}
		sees("populated 0")
	}
	stop()
	for len(seen) > 0 {
		<-seen
	}
	if _, err := onChange(filepath.Join(t.TempDir(), "none"), func() {}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
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
