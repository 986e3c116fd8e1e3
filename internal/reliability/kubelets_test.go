package reliability

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheTableOfKubeletsIsWhatTheRunsSay(t *testing.T) {
	var runs Kubelets
	if err := readJSON("kubelets.json", &runs); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("../../e2e/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var code []byte
	for _, source := range sources {
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, data...)
	}
	for _, run := range runs {
		test, _, _ := strings.Cut(run.Test, "/")
		if !bytes.Contains(code, []byte("func "+test+"(t *testing.T)")) {
			t.Errorf("a result of %s is recorded, and there is no such test", test)
		}
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
	run := func(kubelet, engine, test, result string, checks, passes int, date string) KubeletRun {
		return KubeletRun{kubelet, engine, test, result, checks, passes, date}
	}
	got, err := KubeletTable([]byte(page), Kubelets{
		"1": run("v1.9.1", "native", "TestA", "pass", 1, 3, "2026-01-01"), "2": run("v1.22.17", "Docker 2", "TestB", "fail", 1, 0, "2026-01-02"),
		"3": run("v1.22.17", "Docker 2", "TestA", "pass", 16, 2, "2026-01-03"), "4": run("v1.9.1", "native", "TestC", "pass", 1, 2, "2026-01-04"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "| v1.22.17 | Docker 2 | TestA (16) | 0 | TestB | 2026-01-02 |\n| v1.9.1 | native | TestA, TestC | 2 | – | 2026-01-01 |\n" + kubeletsEnd + "after\n"
	if !strings.HasPrefix(string(got), "before\n"+kubeletsBegin+"| Kubelet |") || !strings.HasSuffix(string(got), want) {
		t.Errorf("%s", got)
	}
	if _, err := KubeletTable([]byte("no place"), nil); err == nil {
		t.Error("a page without a place for the table is taken")
	}
}
