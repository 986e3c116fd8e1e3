package preflight

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Every finding is explained where an operator looks it up, and nothing else is.
func TestEachFindingIsExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := regexpCut(`(?m)^## Findings$`, string(page))
	if !ok {
		t.Fatal("the page has no table of findings")
	}
	explained := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \|`).FindAllStringSubmatch(table, -1) {
		for _, id := range regexp.MustCompile("`([a-z0-9-]+)`").FindAllStringSubmatch(row[1], -1) {
			explained[id[1]] = true
		}
	}
	sources, err := filepath.Glob("*.go")
	if err != nil || len(sources) == 0 {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, path := range sources {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range regexp.MustCompile(`x\.find\(\w+, "([a-z0-9-]+)"`).FindAllStringSubmatch(string(source), -1) {
			found[call[1]] = true
		}
	}
	if len(found) < 20 {
		t.Fatalf("only %d findings were found in the sources", len(found))
	}
	for id := range found {
		if !explained[id] {
			t.Errorf("docs/migration.md does not explain %s", id)
		}
	}
	for id := range explained {
		if !found[id] {
			t.Errorf("docs/migration.md explains %s, which nothing finds", id)
		}
	}
}

func regexpCut(pattern, text string) (before, after string, ok bool) {
	place := regexp.MustCompile(pattern).FindStringIndex(text)
	if place == nil {
		return text, "", false
	}
	return text[:place[0]], text[place[1]:], true
}
