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
	// Runs are by name, as of the files that hack/results and hack/test-vm.sh wrote: unit, steps, vm-STEP, e2e-ENGINE, and counts, crash,
	// counts-ENGINE and crash-ENGINE of what takes hours.
	Runs map[string]Run
	// Soak is on a Docker Engine; NativeSoak is on the native engine.
	Soak, NativeSoak Soak
}

// Run is a part of `make test`, `make test-vm`, `make matrix`, `make counts` or `make crash` that was recorded (`make record`).
type Run struct {
	Date    string `json:"date"`
	Passed  int    `json:"passed"`
	Failed  int    `json:"failed"`
	Skipped int    `json:"skipped"`
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
	l.Runs = map[string]Run{}
	for name, into := range map[string]any{"results.json": &l.Runs, "soak.json": &l.Soak, "soak-native.json": &l.NativeSoak} {
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

// Record reads what hack/results and hack/test-vm.sh wrote. A file that is not there is an error.
func Record(files []string, proofs []Proof) (map[string]Run, error) {
	wanted := map[string]bool{}
	for _, p := range proofs {
		wanted[p.result()] = true
	}
	runs := map[string]Run{}
	for _, file := range files {
		var r Run
		if err := readJSON(file, &r); err != nil {
			return nil, err
		}
		for _, result := range r.Tests {
			switch result {
			case "pass":
				r.Passed++
			case "fail":
				r.Failed++
			case "skip":
				r.Skipped++
			}
		}
		maps.DeleteFunc(r.Tests, func(name, _ string) bool { return !wanted[name] })
		runs[strings.TrimSuffix(filepath.Base(file), ".json")] = r
	}
	return runs, nil
}

// worse is the result of a test that ran more than once: a failure counts, and then that it ran anywhere.
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

// nativeParts and dockerParts are one engine's alone; a row that has others is kept on both.
var nativeParts, dockerParts = []string{"NB", "MON", "IMG"}, []string{"DB"}

// engine is one that rows are met on: the native one or, whatever its version, Docker's.
type engine struct {
	name string
	// others are parts that this engine does not have.
	others []string
	// foreign are folders whose tests are of the other engine.
	foreign []string
	// ran says that a run of the end-to-end tests on an engine, was on it.
	ran  func(run string) bool
	soak func(Last) Soak
}

var engines = []engine{
	{"Docker", nativeParts, []string{"engine/native", "cmd/monitor", "e2e/vm"}, func(run string) bool { return strings.Contains(run, "-") && !strings.HasSuffix(run, "-native") }, func(l Last) Soak { return l.Soak }},
	{"native", dockerParts, []string{"engine/docker"}, func(run string) bool { return strings.HasSuffix(run, "-native") }, func(l Last) Soak { return l.NativeSoak }},
}

// has says that the row is about the engine.
func (e engine) has(r Row) bool {
	return slices.ContainsFunc(strings.Fields(r.Parts), func(part string) bool { return !slices.Contains(e.others, part) })
}

// of is the last result of a row, on each engine that it is about.
func (l Last) of(r Row, tests []Proof) string {
	var results, named []string
	for _, e := range engines {
		if e.has(r) {
			result := l.on(e, tests)
			results, named = append(results, result), append(named, e.name+": "+result)
		}
	}
	if len(slices.Compact(results)) == 1 {
		return results[0]
	}
	return strings.Join(named, "; ")
}

// result is how a test ended on an engine: "" where it has not run yet, "other" where it is of the other engine only.
func (l Last) result(e engine, p Proof) string {
	folder := filepath.ToSlash(filepath.Dir(p.File))
	if slices.ContainsFunc(e.foreign, func(f string) bool { return folder == f || strings.HasPrefix(folder, f+"/") }) {
		return "other"
	}
	here, elsewhere := "", ""
	for name, run := range l.Runs {
		if folder != "e2e" || e.ran(name) {
			here = worse(here, run.Tests[p.result()])
		} else {
			elsewhere = worse(elsewhere, run.Tests[p.result()])
		}
	}
	if here == "skip" && elsewhere == "pass" {
		return "other"
	}
	return here
}

// on is the last result of a row on an engine.
func (l Last) on(e engine, tests []Proof) string {
	var failed, skipped []string
	whole, absent, count := false, 0, 0
	for _, p := range tests {
		if strings.HasPrefix(p.Test, "Benchmark") {
			continue // a figure, which no `make test` takes
		}
		result := l.result(e, p)
		if result == "other" {
			continue
		}
		count++
		switch result {
		case "pass":
			whole = whole || !p.Partial
		case "fail":
			failed = append(failed, p.Test)
		case "skip":
			skipped = append(skipped, p.Test)
		default:
			absent++
		}
	}
	switch {
	case count == 0:
		return "–"
	case len(failed) > 0:
		return "**failed**: " + strings.Join(failed, ", ")
	case absent > 0:
		return fmt.Sprintf("%d of %d not run yet", absent, count)
	case len(skipped) > 0 && !whole:
		return "skipped there: " + strings.Join(skipped, ", ")
	case !whole:
		return "passed, in part"
	case !e.soak(l).enough():
		return "passed; a soak is due"
	}
	return "met"
}

// summary is the paragraph and the table about the runs.
func (l Last) summary() string {
	soaks := ""
	for _, s := range []Soak{l.Soak, l.NativeSoak} {
		if s.Date != "" {
			soaks += s.summary()
		}
	}
	if len(l.Runs) == 0 {
		return "No `make test` is recorded." + cmp.Or(soaks, " No `make soak` is recorded.") + "\n"
	}
	var b strings.Builder
	b.WriteString(strings.TrimSpace(cmp.Or(soaks, "No `make soak` is recorded.")) + "\n\n| run | on | passed | failed | skipped |\n|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(l.Runs)) {
		r := l.Runs[name]
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d |\n", name, r.Date, r.Passed, r.Failed, r.Skipped)
	}
	return b.String()
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
