package reliability

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reliability.md")

func TestThePageIsWhatTheTestsSay(t *testing.T) {
	root := "../.."
	proofs, err := Scan(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range proofs {
		if !slices.ContainsFunc(Rows, func(r Row) bool { return r.ID == p.Row }) {
			t.Errorf("%s: %s names row %s, which is not in rows.go", p.File, p.Test, p.Row)
		}
	}
	page, path := Page(Rows, proofs), filepath.Join(root, "docs", "reliability.md")
	if *update {
		if err := os.WriteFile(path, page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, page) {
		t.Errorf("docs/reliability.md is not what the tests say (%v): go test ./internal/reliability -update", err)
	}
}

func TestRowsAreInOrderAndWhole(t *testing.T) {
	for i, r := range Rows {
		if r.Promise == "" || r.Parts == "" || strings.Contains(r.Promise, "|") || !inLine.MatchString(r.ID) {
			t.Errorf("row %+v", r)
		}
		if i > 0 && r.ID[0] == Rows[i-1].ID[0] && r.ID <= Rows[i-1].ID {
			t.Errorf("%s after %s", r.ID, Rows[i-1].ID)
		}
	}
}

func TestScanReadsNamesAndLines(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("package x\n\n"+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a/a_test.go", "// It keeps S99, as prose.\n// Rows: S14, R21 (part)\nfunc TestX() {}\n\nfunc TestS31Y() {}\n\n// Rows: S10\nfunc FuzzS10Z() {}\n\nfunc TestSomething() {}\n")
	write("a/a.go", "// Rows: S01\nfunc TestNoTest() {}\n")
	write("testdata/b_test.go", "// Rows: S02\nfunc TestNoTest() {}\n")
	got, err := Scan(root)
	want := []Proof{
		{"R21", "TestX", "a/a_test.go", true}, {"S10", "FuzzS10Z", "a/a_test.go", false},
		{"S14", "TestX", "a/a_test.go", false}, {"S31", "TestS31Y", "a/a_test.go", false},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	write("c_test.go", "// Rows: S14 and more\nfunc TestX() {}\n")
	if _, err := Scan(root); err == nil || !strings.Contains(err.Error(), "S14 and more") {
		t.Errorf("a line that cannot be understood: %v", err)
	}
}

func TestThePageTellsWhatIsMissing(t *testing.T) {
	rows := []Row{{"S01", 0, "FS", "one"}, {"S02", 0, "NB", "two"}, {"S03", 2, "FS", "three"}, {"R01", 1, "all", "four"}, {"R02", 1, "NB ST", "five"}}
	page := string(Page(rows, []Proof{{"R01", "TestA", "a/b_test.go", true}, {"R02", "TestB", "c_test.go", false}}))
	for _, want := range []string{
		"Of 3 rows that are due, 1 are proven, 1 in part, and 1 have no test yet.", "| S01 P0 | FS | one | **no test yet** |",
		"| R01 P1 | all | four | TestA (a) *(part)* |", "| R02 P1 | NB ST | five | TestB (.) |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	if strings.Contains(page, "S02") && strings.Contains(page, "| two |") || strings.Contains(page, "| three |") {
		t.Errorf("rows that are not due are listed:\n%s", page)
	}
}
