package reliability

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kubelets are the last results of the tests that run a real kubelet (`make test-kubelet`), by kubelet, engine and test; the
// tests write them.
type Kubelets map[string]KubeletRun

// KubeletRun is how one test ended.
type KubeletRun struct {
	Kubelet string `json:"kubelet"` // version
	Engine  string `json:"engine"`  // "native", or "Docker" and its version
	Test    string `json:"test"`
	Result  string `json:"result"` // "pass" or "fail"
	Checks  int    `json:"checks"` // how many steps it has
	Passes  int    `json:"passes"` // in a row, the last run among them
	Date    string `json:"date"`
}

// The lines of docs/compatibility.md between which the table is.
const (
	kubeletsBegin = "<!-- kubelets: written by go test ./internal/reliability -update -->\n"
	kubeletsEnd   = "<!-- /kubelets -->\n"
)

// KubeletTable is a page with the table of all runs put in place of the one that it has.
func KubeletTable(page []byte, runs Kubelets) ([]byte, error) {
	before, rest, found := bytes.Cut(page, []byte(kubeletsBegin))
	_, after, closed := bytes.Cut(rest, []byte(kubeletsEnd))
	if !found || !closed {
		return nil, fmt.Errorf("the page has no lines %q and %q", strings.TrimSpace(kubeletsBegin), strings.TrimSpace(kubeletsEnd))
	}
	return slices.Concat(before, []byte(kubeletsBegin+table(runs)+kubeletsEnd), after), nil
}

// table has a row for each kubelet and engine.
func table(runs Kubelets) string {
	type pair struct{ kubelet, engine string }
	rows := map[pair][]KubeletRun{}
	for _, run := range runs {
		at := pair{run.Kubelet, run.Engine}
		rows[at] = append(rows[at], run)
	}
	if len(rows) == 0 {
		return "No run is recorded.\n"
	}
	var b strings.Builder
	b.WriteString("| Kubelet | Engine | Tests that passed | Times in a row | Failed | Run since |\n| --- | --- | --- | --- | --- | --- |\n")
	pairs := slices.SortedFunc(maps.Keys(rows), func(a, b pair) int {
		return cmp.Or(compareVersions(b.kubelet, a.kubelet), strings.Compare(a.engine, b.engine))
	})
	for _, at := range pairs {
		var passed, failed []string
		date, passes := rows[at][0].Date, rows[at][0].Passes
		slices.SortFunc(rows[at], func(a, b KubeletRun) int { return strings.Compare(a.Test, b.Test) })
		for _, run := range rows[at] {
			date, passes = min(date, run.Date), min(passes, run.Passes)
			if run.Result != "pass" {
				failed = append(failed, run.Test)
			} else if run.Checks > 1 {
				passed = append(passed, fmt.Sprintf("%s (%d)", run.Test, run.Checks))
			} else {
				passed = append(passed, run.Test)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %s |\n", at.kubelet, at.engine, orDash(passed), passes, orDash(failed), date)
	}
	return b.String()
}

func orDash(names []string) string {
	if len(names) == 0 {
		return "–"
	}
	return strings.Join(names, ", ")
}

// compareVersions orders v1.9.1 before v1.22.17.
func compareVersions(a, b string) int {
	as, bs := strings.Split(strings.TrimPrefix(a, "v"), "."), strings.Split(strings.TrimPrefix(b, "v"), ".")
	return slices.CompareFunc(as, bs, func(x, y string) int { return cmp.Or(len(x)-len(y), strings.Compare(x, y)) })
}
