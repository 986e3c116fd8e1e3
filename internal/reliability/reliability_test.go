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
	last, err := ReadLast(".")
	if err != nil {
		t.Fatal(err)
	}
	if *record {
		runs, err := Record(flag.Args(), proofs)
		if err != nil {
			t.Fatal(err)
		}
		// A part that was not run this time keeps its last result.
		for name, run := range runs {
			last.Runs[name] = run
		}
		data, err := json.MarshalIndent(last.Runs, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("results.json", append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
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

func TestRunsAreRecorded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e2e-native.json")
	if err := os.WriteFile(file, []byte(`{"date":"2026-01-02","tests":{"a.TestGood":"pass","a.TestBad":"fail","a.TestSkip":"skip","a.TestOther":"pass"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var proofs []Proof
	for _, name := range []string{"TestGood", "TestBad", "TestSkip"} {
		proofs = append(proofs, Proof{"R01", name, "a/a_test.go", false})
	}
	runs, err := Record([]string{file}, proofs)
	if r := runs["e2e-native"]; err != nil || len(runs) != 1 || r.Date != "2026-01-02" || r.Passed != 2 || r.Failed != 1 || r.Skipped != 1 || len(r.Tests) != 3 {
		t.Fatalf("%+v, %v", runs, err)
	}
	if _, err := Record([]string{file, file + ".absent"}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("results that are not there: %v", err)
	}
	summary := Last{Runs: runs}.summary()
	if !strings.Contains(summary, "| e2e-native | 2026-01-02 | 2 | 1 | 1 |\n") {
		t.Error(summary)
	}
}

func TestTheResultOfARowIsThatOfEachEngine(t *testing.T) {
	whole := Soak{Date: "2026-01-03", Length: "20m0s", Passed: true}
	last := Last{Soak: whole, NativeSoak: whole, Runs: map[string]Run{
		"unit": {Tests: map[string]string{
			"a.TestGood": "pass", "a.TestBad": "fail", "a.TestSkip": "skip", "engine/docker/x.TestGood": "pass", "engine/native.TestGood": "pass",
		}},
		"vm-one":     {Tests: map[string]string{"a.TestSkip": "skip", "e2e/vm.TestGood": "pass"}},
		"e2e-20.10":  {Tests: map[string]string{"e2e.TestBoth": "pass", "e2e.TestDocker": "pass", "e2e.TestNative": "skip", "e2e.TestKubelet": "skip", "e2e.TestBadThere": "pass"}},
		"e2e-28":     {Tests: map[string]string{"e2e.TestBoth": "skip", "e2e.TestBadThere": "fail"}},
		"e2e-native": {Tests: map[string]string{"e2e.TestBoth": "pass", "e2e.TestDocker": "skip", "e2e.TestNative": "pass", "e2e.TestKubelet": "skip", "e2e.TestBadThere": "pass"}},
	}}
	proof := func(name string) Proof {
		folder, test, _ := strings.Cut(name, ":")
		test, part := strings.CutSuffix(test, "?")
		return Proof{"R01", test, folder + "/x_test.go", part}
	}
	for _, c := range []struct{ parts, tests, want string }{
		{"FS", "a:TestGood", "met"},
		{"FS", "a:TestGood?", "passed, in part"},
		{"FS", "a:TestGood a:TestBad?", "**failed**: TestBad"},
		{"FS", "a:TestSkip a:TestGood?", "skipped there: TestSkip"},
		{"FS", "a:TestSkip? a:TestGood", "met"},
		{"FS", "a:TestNew? a:TestGood", "1 of 2 not run yet"},
		{"FS", "a:TestGood a:BenchmarkOfIt", "met"},
		{"FS", "", "–"},
		{"FS", "e2e:TestBoth", "met"},
		{"FS", "e2e:TestDocker", "Docker: met; native: –"},
		{"FS", "e2e:TestDocker a:TestGood?", "Docker: met; native: passed, in part"},
		{"FS", "e2e:TestDocker e2e:TestNative", "met"},
		{"FS", "e2e:TestNative e2e:TestBoth?", "Docker: passed, in part; native: met"},
		{"FS", "e2e:TestKubelet", "skipped there: TestKubelet"},
		{"FS", "e2e:TestBadThere", "Docker: **failed**: TestBadThere; native: met"},
		{"DB", "e2e:TestDocker", "met"},
		{"NB MON", "e2e:TestDocker", "–"},
		{"NB", "e2e/vm:TestGood", "met"},
		{"NB FS", "e2e/vm:TestGood", "Docker: –; native: met"},
		{"FS", "engine/docker/x:TestGood", "Docker: met; native: –"},
		{"FS", "engine/docker/x:TestGood engine/native:TestGood", "met"},
	} {
		var tests []Proof
		for _, name := range strings.Fields(c.tests) {
			tests = append(tests, proof(name))
		}
		if got := last.of(Row{"R01", 0, c.parts, ""}, tests); got != c.want {
			t.Errorf("%s, %s: %q, want %q", c.parts, c.tests, got, c.want)
		}
	}
	for _, s := range []Soak{{}, {Length: "20m", Passed: false}, {Length: "14m", Passed: true}} {
		for parts, want := range map[string][2]string{
			"FS": {"Docker: passed; a soak is due; native: met", "Docker: met; native: passed; a soak is due"},
			"NB": {"met", "passed; a soak is due"},
			"DB": {"passed; a soak is due", "met"},
		} {
			for i, soaks := range [][2]Soak{{s, whole}, {whole, s}} {
				last.Soak, last.NativeSoak = soaks[0], soaks[1]
				if got := last.of(Row{"R01", 0, parts, ""}, []Proof{proof("a:TestGood")}); got != want[i] {
					t.Errorf("%s with %+v: %q, want %q", parts, soaks, got, want[i])
				}
			}
		}
	}
}

func TestSoaksAreToldOf(t *testing.T) {
	last := Last{Soak: Soak{Date: "2026-01-03", Length: "20m0s", Passed: true, Engine: "1.2", Faults: map[string]int{"kill": 2, "stop": 3}}}
	last.NativeSoak = Soak{Date: "2026-01-04", Length: "16m0s", Engine: "native"}
	if got := last.summary(); !strings.Contains(got, "on Docker 1.2, on 2026-01-03, ran for 20m0s") || !strings.Contains(got, "on the native engine, on 2026-01-04, ran for 16m0s, Linux , and **failed**") || !strings.Contains(got, "5 faults (3× stop, 2× kill)") {
		t.Error(got)
	}
}
