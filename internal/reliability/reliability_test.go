package reliability

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	update = flag.Bool("update", false, "write docs/reliability.md")
	record = flag.Bool("record", false, "keep the files that follow, of hack/results and hack/test-vm.sh, as results.json")
)

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
	if *record {
		results, err := Record(flag.Args(), proofs)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.MarshalIndent(results, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("results.json", append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	last, err := ReadLast(".")
	if err != nil {
		t.Fatal(err)
	}
	page, path := Page(Rows, proofs, last), filepath.Join(root, "docs", "reliability.md")
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
	rows := []Row{{"S01", 0, "FS", "one"}, {"S02", 2, "NB", "two"}, {"S03", 2, "FS", "three"}, {"R01", 1, "all", "four"}, {"R02", 1, "NB ST", "five"}}
	page := string(Page(rows, []Proof{{"R01", "TestA", "a/b_test.go", true}, {"R02", "TestB", "c_test.go", false}}, Last{}))
	for _, want := range []string{
		"Of 3 rows with P0 or P1, 1 are proven, 1 in part, and 1 have no test yet.", "| S01 P0 | FS | one | – | **no test yet** |",
		"| R01 P1 | all | four | 1 of 1 not run yet | TestA (a) *(part)* |", "| R02 P1 | NB ST | five | 1 of 1 not run yet | TestB (.) |",
		"No `make test` is recorded. No `make soak` is recorded.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	if strings.Contains(page, "S02") && strings.Contains(page, "| two |") || strings.Contains(page, "| three |") {
		t.Errorf("rows that are not due are listed:\n%s", page)
	}
}

func TestLastResults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.json")
	if err := os.WriteFile(file, []byte(`{"date":"2026-01-02","tests":{"a.TestGood":"pass","a.TestBad":"fail","a.TestSkip":"skip","a.TestOther":"pass"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	proof := func(name string, partial bool) Proof { return Proof{"R01", name, "a/a_test.go", partial} }
	good, part, bad, skip, absent := proof("TestGood", false), proof("TestGood", true), proof("TestBad", true), proof("TestSkip", true), proof("TestNew", true)
	results, err := Record([]string{file}, []Proof{good, bad, skip})
	if err != nil || results.Date != "2026-01-02" || len(results.Tests) != 3 {
		t.Fatalf("%+v, %v", results, err)
	}
	if _, err := Record([]string{file, file + ".absent"}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("results that are not there: %v", err)
	}
	last := Last{Results: results, Soak: Soak{Date: "2026-01-03", Length: "20m0s", Passed: true, Engine: "1.2", Faults: map[string]int{"kill": 2, "stop": 3}}}
	last.NativeSoak = last.Soak
	row := Row{"R01", 0, "FS", ""}
	for want, tests := range map[string][]Proof{
		"met": {good}, "passed, in part": {part}, "**failed**: TestBad": {good, bad}, "skipped there: TestSkip": {good, skip}, "1 of 2 not run yet": {good, absent}, "–": nil,
	} {
		if got := last.of(row, tests); got != want {
			t.Errorf("%v: %q, want %q", tests, got, want)
		}
	}
	if got := last.of(row, []Proof{good, proof("BenchmarkOfIt", false)}); got != "met" {
		t.Errorf("with a benchmark: %q", got)
	}
	last.NativeSoak = Soak{Date: "2026-01-04", Length: "16m0s", Engine: "native"}
	if got := last.summary(); !strings.Contains(got, "on Docker 1.2, on 2026-01-03, ran for 20m0s") || !strings.Contains(got, "on the native engine, on 2026-01-04, ran for 16m0s, Linux , and **failed**") || !strings.Contains(got, "5 faults (3× stop, 2× kill)") {
		t.Error(got)
	}
	for result, want := range map[string]string{"skip": "of `make test` on 2026-01-02.", "fail": "of `make test` and `make test-vm` on 2026-01-02."} {
		last.Results.Tests["e2e/vm.TestOfIt"] = result
		if got := last.summary(); !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	for _, s := range []Soak{{}, {Length: "20m", Passed: false}, {Length: "14m", Passed: true}} {
		for parts, want := range map[string][2]string{
			"FS":  {"passed; a soak is due", "passed; a soak is due"},
			"NB":  {"met", "passed; a soak is due"},
			"DB":  {"passed; a soak is due", "met"},
			"all": {"passed; a soak is due", "passed; a soak is due"}, "NB DB": {"passed; a soak is due", "passed; a soak is due"},
		} {
			whole := Soak{Length: "20m", Passed: true}
			for i, soaks := range [][2]Soak{{s, whole}, {whole, s}} {
				last.Soak, last.NativeSoak = soaks[0], soaks[1]
				if got := last.of(Row{"R01", 0, parts, ""}, []Proof{good}); got != want[i] {
					t.Errorf("%s with %+v: %q, want %q", parts, soaks, got, want[i])
				}
			}
		}
	}
}
