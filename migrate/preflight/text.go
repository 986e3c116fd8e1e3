package preflight

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

var verdicts = map[int]string{
	Ready:  "ready: crishim adopt can switch this node",
	ToDo:   "something has to be done, or accepted, first",
	Cannot: "this node cannot be switched as it is",
}

// WriteText prints the report for people.
func (r *Report) WriteText(out io.Writer) error {
	w := &tables{out: out}
	w.line("node %s: %s", r.Node, verdicts[r.Verdict])
	w.line("")
	if r.Engine.Version != "" {
		w.line("docker   %s, API %s, cgroup driver %s (v%s), storage %s, logs %s, live-restore %s, runtimes %s (default %s)", r.Engine.Version, r.Engine.APIVersion, r.Engine.CgroupDriver,
			r.Engine.CgroupVersion, r.Engine.StorageDriver, r.Engine.LogDriver, onOff(r.Engine.LiveRestore), strings.Join(r.Engine.Runtimes, " "), r.Engine.DefaultRuntime)
	}
	k := r.Kubelet
	w.line("kubelet  %s, cgroup driver %s, endpoint %s, shim %s", or(k.Version, "unknown"), or(k.CgroupDriver, "unknown"), or(k.Endpoint, "none"), or(k.Shim, "unknown"))
	for _, e := range k.Edits {
		verb := "edited"
		if e.New {
			verb = "written"
		}
		w.line("         %s is %s: %s", e.Path, verb, strings.Join(e.Why, "; "))
	}
	w.findings(r.Findings)
	w.pods(r.Pods)
	w.images(r.Images)
	if r.Foreign > 0 {
		w.line("")
		w.line("containers that are not Kubernetes', and are left alone: %d", r.Foreign)
	}
	return w.err
}

// tables remembers the first error, so that printing reads as what is printed.
type tables struct {
	out io.Writer
	err error
}

func (w *tables) line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format+"\n", args...)
	}
}

func (w *tables) table(rows [][]string) {
	t := tabwriter.NewWriter(w.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if w.err == nil {
			_, w.err = fmt.Fprintln(t, strings.Join(row, "\t"))
		}
	}
	if err := t.Flush(); w.err == nil {
		w.err = err
	}
}

// findings have long sentences: one below the other reads better than a table.
func (w *tables) findings(all []Finding) {
	for _, f := range all {
		w.line("")
		subject := ""
		if f.Subject != "" {
			subject = " " + f.Subject
		}
		w.line("%-4s %s%s", f.Severity, f.ID, subject)
		w.line("     %s", f.Message)
		if f.Fix != "" {
			w.line("     → %s", f.Fix)
		}
	}
}

func (w *tables) pods(pods []Pod) {
	if len(pods) == 0 {
		return
	}
	w.line("")
	rows := [][]string{{"POD", "ID", "STATE", "ADDRESS", "HOST PORTS", "ADOPTED", "KUBELET", "CONTAINERS"}}
	for _, p := range pods {
		state, address := "not ready", "-"
		if p.Ready {
			state = "ready"
		}
		if len(p.IPs) > 0 {
			address = strings.Join(p.IPs, ",")
		}
		count := map[string]int{}
		for _, c := range p.Containers {
			count[c.State]++
		}
		var states []string
		for state, n := range count {
			states = append(states, fmt.Sprintf("%d %s", n, state))
		}
		slices.Sort(states)
		rows = append(rows, []string{p.Namespace + "/" + p.Name, fmt.Sprintf("%.12s", p.ID), state, address, fmt.Sprint(p.Ports), yesNo(p.Adoptable), p.Kubelet, strings.Join(states, ", ")})
	}
	w.table(rows)
}

func (w *tables) images(images []ImageRow) {
	if len(images) == 0 {
		return
	}
	w.line("")
	rows, total := [][]string{{"IMAGE", "SIZE", "CONTAINERS"}}, int64(0)
	for _, i := range images {
		total += i.Size
		rows = append(rows, []string{i.Name, Size(i.Size), fmt.Sprint(i.Used)})
	}
	w.table(append(rows, []string{"total, layers that several share counted each time", Size(total), ""}))
}

// Size is bytes as people read them.
func Size(bytes int64) string {
	const unit = 1 << 10
	value, name := float64(bytes), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, name = value/unit, next
	}
	if name == "B" {
		return fmt.Sprintf("%dB", bytes)
	}
	return fmt.Sprintf("%.1f%s", value, name)
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func onOff(v bool) string {
	if v {
		return "on"
	}
	return "off"
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}
