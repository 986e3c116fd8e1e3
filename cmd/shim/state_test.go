package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"crishim/engine"
	"crishim/state"
)

// Who looks at records at night sees all that can be read, in the table too, and what he gives to jq are lists.
func TestStateShowsTheContainersOfAPodWhoseRecordIsDamaged(t *testing.T) {
	file, dir := testFile(t, "")
	records := filepath.Join(dir, "root", "state")
	store, err := state.Open(records, filepath.Join(dir, "run", "state"))
	if err != nil {
		t.Fatal(err)
	}
	pod := engine.PodKey{Name: "web", Namespace: "default", UID: "u"}
	for _, err := range []error{
		store.PutPod(state.Pod{ID: "pod1", Engine: "docker", Phase: state.PhaseRunning, Spec: engine.PodSpec{Key: pod}}),
		store.PutContainer(state.Container{ID: "container1", PodID: "pod1", Engine: "docker", Phase: state.PhaseRunning, Spec: engine.ContainerSpec{
			Pod: "pod1", PodKey: pod, Key: engine.ContainerKey{Name: "server"},
		}}),
		store.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	show := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{"state", "--config", file}, args...), &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	line := regexp.MustCompile(`(?m)^container +container1 +default +web +server +0 `)
	if out := show(); len(line.FindAllString(out, -1)) != 1 || !strings.Contains(out, "\npod ") {
		t.Errorf("of whole records:\n%s", out)
	}
	var all map[string][]any
	if err := json.Unmarshal([]byte(show("--json")), &all); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"pods", "containers", "quarantined"} {
		if all[kind] == nil {
			t.Errorf("%s are no list", kind)
		}
	}
	pods, err := filepath.Glob(filepath.Join(records, "pods", "*"))
	if err != nil || len(pods) != 1 {
		t.Fatal(pods, err)
	}
	if err := os.WriteFile(pods[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := show(); !line.MatchString(out) || !strings.Contains(out, "unreadable pod") {
		t.Errorf("beside a damaged one:\n%s", out)
	}
}
