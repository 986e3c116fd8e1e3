package reliability

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// minSoak is how long a soak has to be for a row to be met.
const minSoak = 15 * time.Minute

// Last is what the last recorded runs said.
type Last struct {
	Results Results
	// Soak is on a Docker Engine; NativeSoak is on the native engine.
	Soak, NativeSoak Soak
}

// Results is the last `make test` that was recorded (`make record`), and `make test-vm` with it. Date is the earliest of theirs.
type Results struct {
	Date string `json:"date"`
	// Tests are "pass", "fail" or "skip" by "folder.Test"; only those that prove a row are kept.
	Tests map[string]string `json:"tests"`
}

// Soak is the last `make soak` of an engine; e2e.TestSoak writes it.
type Soak struct {
	Date    string         `json:"date"`
	Length  string         `json:"length"`
	Passed  bool           `json:"passed"`
	Engine  string         `json:"engine"`
	Kernel  string         `json:"kernel"`
	Race    bool           `json:"race"`
	Ops     int64          `json:"ops"`
	Excused int64          `json:"excused"`
	Faults  map[string]int `json:"faults"`
}

// ReadLast reads results.json, soak.json and soak-native.json of a folder; a file that is not there is a run that never was.
func ReadLast(dir string) (l Last, err error) {
	for name, into := range map[string]any{"results.json": &l.Results, "soak.json": &l.Soak, "soak-native.json": &l.NativeSoak} {
		if rerr := readJSON(filepath.Join(dir, name), into); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return l, err
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Record joins what hack/results and hack/test-vm.sh wrote, as far as it is about tests that prove rows. The date is the
// earliest. A file that is not there is an error.
func Record(files []string, proofs []Proof) (Results, error) {
	all := Results{Tests: map[string]string{}}
	for _, file := range files {
		var r Results
		if err := readJSON(file, &r); err != nil {
			return all, err
		}
		if all.Date == "" || r.Date != "" && r.Date < all.Date {
			all.Date = r.Date
		}
		for name, result := range r.Tests {
			all.Tests[name] = worse(all.Tests[name], result)
		}
	}
	wanted := map[string]bool{}
	for _, p := range proofs {
		wanted[p.result()] = true
	}
	maps.DeleteFunc(all.Tests, func(name, _ string) bool { return !wanted[name] })
	return all, nil
}

// worse is the result of a test that ran more than once, as on each engine: a failure counts, and then that it ran anywhere.
func worse(a, b string) string {
	order := []string{"", "skip", "pass", "fail"}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// result is the name of the proof's test in Results.
func (p Proof) result() string { return filepath.ToSlash(filepath.Dir(p.File)) + "." + p.Test }

// enough says that the last soak counts.
func (s Soak) enough() bool {
	d, err := time.ParseDuration(s.Length)
	return err == nil && s.Passed && d >= minSoak
}

// machine names `make test-vm` where its own tests ran; `make test` skips them.
func (r Results) machine() string {
	for name, result := range r.Tests {
		if strings.HasPrefix(name, "e2e/vm.") && result != "skip" {
			return " and `make test-vm`"
		}
	}
	return ""
}

// nativeParts and dockerParts are one engine's alone; a row that has others is kept on both.
var nativeParts, dockerParts = []string{"NB", "MON", "IMG"}, []string{"DB"}

// soaked says that each engine which the row is about had a soak.
func (l Last) soaked(r Row) bool {
	about := func(others []string) bool {
		return slices.ContainsFunc(strings.Fields(r.Parts), func(part string) bool { return !slices.Contains(others, part) })
	}
	return (l.Soak.enough() || !about(nativeParts)) && (l.NativeSoak.enough() || !about(dockerParts))
}

// of is the last result of a row.
func (l Last) of(r Row, tests []Proof) string {
	var failed, skipped, absent []string
	whole, measured := false, 0
	for _, p := range tests {
		if strings.HasPrefix(p.Test, "Benchmark") {
			measured++ // a figure, which no `make test` takes
			continue
		}
		switch l.Results.Tests[p.result()] {
		case "pass":
			whole = whole || !p.Partial
		case "fail":
			failed = append(failed, p.Test)
		case "skip":
			skipped = append(skipped, p.Test)
		default:
			absent = append(absent, p.Test)
		}
	}
	switch {
	case len(tests) == measured:
		return "–"
	case len(failed) > 0:
		return "**failed**: " + strings.Join(failed, ", ")
	case len(absent) > 0:
		return fmt.Sprintf("%d of %d not run yet", len(absent), len(tests))
	case len(skipped) > 0:
		return "skipped there: " + strings.Join(skipped, ", ")
	case !whole:
		return "passed, in part"
	case !l.soaked(r):
		return "passed; a soak is due"
	}
	return "met"
}

// summary is the paragraph about the runs.
func (l Last) summary() string {
	tests := "No `make test` is recorded."
	if l.Results.Date != "" {
		tests = fmt.Sprintf("The results are of `make test`%s on %s.", l.Results.machine(), l.Results.Date)
	}
	soaks := ""
	for _, s := range []Soak{l.Soak, l.NativeSoak} {
		if s.Date != "" {
			soaks += s.summary()
		}
	}
	return tests + cmp.Or(soaks, " No `make soak` is recorded.") + "\n"
}

func (s Soak) summary() string {
	kinds := slices.Collect(maps.Keys(s.Faults))
	slices.SortFunc(kinds, func(a, b string) int { return cmp.Or(s.Faults[b]-s.Faults[a], strings.Compare(a, b)) })
	total, list := 0, make([]string, 0, len(kinds))
	for _, kind := range kinds {
		total += s.Faults[kind]
		list = append(list, fmt.Sprintf("%d× %s", s.Faults[kind], kind))
	}
	outcome, race, engine := "passed", "", "Docker "+s.Engine
	if s.Engine == "native" {
		engine = "the native engine"
	}
	if !s.Passed {
		outcome = "**failed**"
	}
	if s.Race {
		race = " under the race detector"
	}
	return fmt.Sprintf(" The last `make soak` on %s, on %s, ran for %s%s, Linux %s, and %s: %d calls, %d of them failed by a fault, and %d faults (%s).",
		engine, s.Date, s.Length, race, s.Kernel, outcome, s.Ops, s.Excused, total, strings.Join(list, ", "))
}
