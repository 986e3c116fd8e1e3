package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDescriptionIsFoundBehindEveryFormOfTheOption(t *testing.T) {
	for _, row := range []struct {
		args      string
		file      string
		inProcess bool
	}{
		{"--root /r --log-format json create --bundle /b --pid-file p id", "/b/config.json", true},
		{"create -b /b id", "/b/config.json", true},
		{"run --bundle=/b id", "/b/config.json", true},
		{"exec --process /tmp/p --detach id", "/tmp/p", false},
		{"exec -p /tmp/p id", "/tmp/p", false},
		{"kill --all id 9", "", false},
		{"state id", "", false},
	} {
		file, inProcess := description(strings.Fields(row.args))
		if file != row.file || inProcess != row.inProcess {
			t.Errorf("%q: %q, %v; want %q, %v", row.args, file, inProcess, row.file, row.inProcess)
		}
	}
}

func TestRewriteClampsTheScoreAndDropsTheCapabilityAndKeepsTheRest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	before := `{"process":{"oomScoreAdj":-2000,"capabilities":{"bounding":["CAP_KILL","CAP_SYS_RESOURCE"]}},"linux":{"limit":9223372036854771712}}`
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(file, true); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var after struct {
		Process struct {
			OOMScoreAdj  int
			Capabilities map[string][]string
		}
		Linux struct{ Limit int64 }
	}
	if err := json.Unmarshal(data, &after); err != nil {
		t.Fatal(err)
	}
	if after.Process.OOMScoreAdj < -1000 {
		t.Errorf("score %d was not clamped", after.Process.OOMScoreAdj)
	}
	if got := after.Process.Capabilities["bounding"]; len(got) != 1 || got[0] != "CAP_KILL" {
		t.Errorf("bounding set %v, want CAP_KILL alone", got)
	}
	if after.Linux.Limit != 9223372036854771712 {
		t.Errorf("a large number came out as %d", after.Linux.Limit)
	}
}
