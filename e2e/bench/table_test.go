package bench

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// samples are measurements of one thing by one side, round by round.
type samples [][]float64

// all are the measurements of every round.
func (s samples) all() []float64 { return slices.Concat(s...) }

// medians are the rounds' medians.
func (s samples) medians() []float64 {
	var list []float64
	for _, round := range s {
		list = append(list, quantile(round, 0.5))
	}
	return list
}

// quantile is the smallest measurement that so large a part does not exceed; NaN of none.
func quantile(list []float64, part float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[max(0, int(math.Ceil(part*float64(len(sorted))))-1)]
}

// row is one line of the table. Floor is Docker's own time, or another bound that the engine below sets; CNI is added to it.
type row struct {
	name, unit             string
	ours, floor, cni, peer samples
	// calls are the requests to Docker that one operation of ours makes, "" where they were not counted.
	calls string
	goals []goal
}

// goal is a bound that a row is to keep.
type goal struct {
	text string
	met  func(r *row) bool
}

// bottom is what the sides below need together, per round.
func (r *row) bottom() []float64 {
	bottom := r.floor.medians()
	if len(bottom) == 0 { // CNI alone is below
		return r.cni.medians()
	}
	for i, cni := range r.cni.medians() {
		if i < len(bottom) {
			bottom[i] += cni
		}
	}
	return bottom
}

// compare is the median over rounds of f(ours, other); NaN without both.
func compare(ours, other []float64, f func(a, b float64) float64) float64 {
	var list []float64
	for i := range min(len(ours), len(other)) {
		if v := f(ours[i], other[i]); !math.IsNaN(v) {
			list = append(list, v)
		}
	}
	return quantile(list, 0.5)
}

func ratio(a, b float64) float64      { return a / b }
func difference(a, b float64) float64 { return a - b }

func (r *row) overFloor() float64 { return compare(r.ours.medians(), r.bottom(), ratio) }
func (r *row) overPeer() float64  { return compare(r.ours.medians(), r.peer.medians(), ratio) }

// atMost bounds the median by a constant.
func atMost(limit float64) goal {
	return goal{fmt.Sprintf("≤ %g", limit), func(r *row) bool { return quantile(r.ours.all(), 0.5) <= limit }}
}

// atLeast is atMost for throughputs.
func atLeast(limit float64) goal {
	return goal{fmt.Sprintf("≥ %g", limit), func(r *row) bool { return quantile(r.ours.all(), 0.5) >= limit }}
}

// atLeastRatio wants so much of what the side below reaches.
func atLeastRatio(limit float64) goal {
	return goal{fmt.Sprintf("≥ %g × own", limit), func(r *row) bool { return r.overFloor() >= limit }}
}

// atLeastPeer is asPeer for throughputs.
func atLeastPeer() goal {
	return goal{"≥ peer", func(r *row) bool { d := r.overPeer(); return math.IsNaN(d) || d >= 1 }}
}

// withinRatio bounds the ratio to Docker's and CNI's own time.
func withinRatio(limit float64) goal {
	return goal{fmt.Sprintf("≤ %g × own", limit), func(r *row) bool { return r.overFloor() <= limit }}
}

// within bounds the difference to it.
func within(ms float64) goal {
	return goal{fmt.Sprintf("≤ own + %g", ms), func(r *row) bool {
		return compare(r.ours.medians(), r.bottom(), difference) <= ms
	}}
}

// asPeer wants the peer not to be faster, but for a margin in ms; it always holds without a peer.
func asPeer(margin float64) goal {
	text := "≤ peer"
	if margin > 0 {
		text = fmt.Sprintf("≤ peer + %g", margin)
	}
	return goal{text, func(r *row) bool {
		d := compare(r.ours.medians(), r.peer.medians(), difference)
		return math.IsNaN(d) || d <= margin
	}}
}

// ofPeer bounds the ratio to the peer; it always holds without one.
func ofPeer(limit float64) goal {
	return goal{fmt.Sprintf("≤ %.2g × peer", limit), func(r *row) bool { d := r.overPeer(); return math.IsNaN(d) || d <= limit }}
}

// number is short, and "–" for what was not measured.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func spread(s samples) string {
	all := s.all()
	if len(all) < 2 {
		return number(quantile(all, 0.5))
	}
	return number(quantile(all, 0.5)) + " / " + number(quantile(all, 0.9))
}

// table is the rows as Markdown, with columns aligned for a terminal too.
func table(rows []*row) string {
	lines := [][]string{{"what", "unit", "crishim p50 / p90", "Docker", "CNI", "× own", "peer", "× peer", "Docker calls", "goal", ""}}
	for _, r := range rows {
		var texts []string
		verdict := ""
		for _, g := range r.goals {
			if strings.Contains(g.text, "peer") && len(r.peer.all()) == 0 {
				continue
			}
			texts = append(texts, g.text)
			switch {
			case len(r.ours.all()) == 0 || !g.met(r):
				verdict = "miss"
			case verdict == "":
				verdict = "ok"
			}
		}
		lines = append(lines, []string{
			r.name, r.unit, spread(r.ours), spread(r.floor), spread(r.cni), number(r.overFloor()),
			spread(r.peer), number(r.overPeer()), r.calls, strings.Join(texts, ", "), verdict,
		})
	}
	return align(lines)
}

func align(lines [][]string) string {
	width := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var text strings.Builder
	for n, line := range lines {
		for i, cell := range line {
			text.WriteString("| " + cell + strings.Repeat(" ", width[i]-len([]rune(cell))) + " ")
		}
		text.WriteString("|\n")
		if n == 0 {
			for _, w := range width {
				text.WriteString("|" + strings.Repeat("-", w+2))
			}
			text.WriteString("|\n")
		}
	}
	return text.String()
}

func TestQuantileIsAMeasurementThatWasTaken(t *testing.T) {
	list := []float64{5, 1, 4, 2, 3}
	for part, want := range map[float64]float64{0: 1, 0.5: 3, 0.9: 5, 1: 5} {
		if got := quantile(list, part); got != want {
			t.Errorf("quantile %v of %v is %v, want %v", part, list, got, want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing is %v", got)
	}
}

func TestRatiosAreOfRoundsAndNotOfTotals(t *testing.T) {
	r := &row{
		name: "x", unit: "ms",
		// The machine was three times slower in the second round: the ratio is 1.5 in each.
		ours: samples{{15, 15}, {45, 45}, {30}}, floor: samples{{8, 8}, {25, 25}, {18}}, cni: samples{{2}, {5}, {2}},
		goals: []goal{withinRatio(1.5), within(10), asPeer(0)},
	}
	if got := r.overFloor(); got != 1.5 {
		t.Errorf("ratio %v, want 1.5", got)
	}
	if text := table([]*row{r}); !strings.Contains(text, "| ok") || strings.Contains(text, "≤ peer") {
		t.Errorf("a row that keeps its goals, without a peer:\n%s", text)
	}
	r.peer = samples{{14}, {44}, {29}}
	if text := table([]*row{r}); !strings.Contains(text, "| miss") || !strings.Contains(text, "≤ peer") {
		t.Errorf("a row that the peer beats:\n%s", text)
	}
}
