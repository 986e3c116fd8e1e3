package reliability

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestTheTableOfKubeletsIsWhatTheRunsSay(t *testing.T) {
	var runs Kubelets
	if err := readJSON("kubelets.json", &runs); err != nil {
		t.Fatal(err)
	}
	const path = "../../docs/compatibility.md"
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := KubeletTable(have, runs)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(have, want) {
		t.Error("docs/compatibility.md is not what kubelets.json says: go test ./internal/reliability -update")
	}
}

func TestKubeletTable(t *testing.T) {
	page := "before\n" + kubeletsBegin + "old\n" + kubeletsEnd + "after\n"
	run := func(kubelet, engine, test, result string, checks int, date string) KubeletRun {
		return KubeletRun{kubelet, engine, test, result, checks, date}
	}
	got, err := KubeletTable([]byte(page), Kubelets{
		"1": run("v1.9.1", "native", "TestA", "pass", 1, "2026-01-01"), "2": run("v1.22.17", "Docker 2", "TestB", "fail", 1, "2026-01-02"),
		"3": run("v1.22.17", "Docker 2", "TestA", "pass", 16, "2026-01-03"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "| v1.22.17 | Docker 2 | TestA (16) | TestB | 2026-01-03 |\n| v1.9.1 | native | TestA | – | 2026-01-01 |\n" + kubeletsEnd + "after\n"
	if !strings.HasPrefix(string(got), "before\n"+kubeletsBegin+"| Kubelet |") || !strings.HasSuffix(string(got), want) {
		t.Errorf("%s", got)
	}
	if _, err := KubeletTable([]byte("no place"), nil); err == nil {
		t.Error("a page without a place for the table is taken")
	}
}
