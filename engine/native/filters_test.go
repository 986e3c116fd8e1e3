package native

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim/engine"
)

func TestAProfileIsCompiledOnceForAllPods(t *testing.T) {
	b := serving(t)
	var pods []engine.PodID
	for range 2 {
		pod, s := b.runPod(t)
		pods = append(pods, pod)
		spec := b.containerSpec(t, pod, s, "a", "sleep 1000")
		spec.Security.Seccomp = engine.Profile{Type: engine.ProfileRuntimeDefault}
		st, err := b.CreateContainer(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.StartContainer(t.Context(), st.ID, spec); err != nil {
			t.Fatal(err)
		}
		if out := b.sh(t, st.ID, "grep Seccomp: /proc/1/status /proc/self/status"); strings.Count(out, "Seccomp:\t2") != 2 {
			t.Errorf("not filtered: %s", out)
		}
	}
	entries, err := os.ReadDir(b.filters.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	for _, pod := range pods {
		b.removePod(t, pod)
	}
}

func TestCompiledProfilesAreBounded(t *testing.T) {
	b := newBench(t)
	dir := b.filters.dir
	for i := range maxFilters + 5 {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(time.Duration(i-1000) * time.Second)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	path := b.filters.of(t.Context(), []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_KILL"}]}`))
	if path == "" {
		t.Fatal("not compiled")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != maxFilters {
		t.Errorf("%d files, %v", len(entries), err)
	}
	for _, old := range []string{"0", "5"} {
		if _, err := os.Stat(filepath.Join(dir, old)); err == nil {
			t.Errorf("%s is still there", old)
		}
	}
	if again := b.filters.of(t.Context(), []byte(`{"defaultAction":"nonsense"}`)); again != "" {
		t.Errorf("nonsense was compiled to %s", again)
	}
}
