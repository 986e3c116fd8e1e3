// Command results runs `go test -json`, prints what `go test` would and which tests took longest, and writes how each test ended to a file, for
// `make record`. Its exit status is 1 where a test or package failed, and where the command did in any other way: sh knows
// only the last status of a pipe, and a go test that was killed or found no package tells of no failed test.
//
//	results FILE go test -json ./...
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds, at the end of a test
}

// results is the file: how each top-level test ended ("pass", "fail", "skip"), by "folder.Test", and when.
type results struct {
	Date  string            `json:"date"`
	Tests map[string]string `json:"tests"`

	took map[string]time.Duration
}

func newResults() results {
	return results{Date: time.Now().UTC().Format(time.DateOnly), Tests: map[string]string{}, took: map[string]time.Duration{}}
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: results FILE go test -json ./...")
		os.Exit(2)
	}
	r := newResults()
	failed, err := r.run(os.Args[2:], os.Stdout)
	r.printSlowest(os.Stdout)
	err = errors.Join(err, r.write(os.Args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "results:", err)
	}
	if err != nil || failed {
		os.Exit(1)
	}
}

// run runs the command and takes in what it says. An error is one that no failed test explains.
func (r *results) run(command []string, out io.Writer) (failed bool, err error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	failed, err = r.read(in, out)
	if werr := cmd.Wait(); werr != nil && !failed {
		err = errors.Join(err, fmt.Errorf("%s: %w", strings.Join(command[:min(2, len(command))], " "), werr))
	}
	return failed, err
}

// read takes in all events. What a test printed is shown only if it failed, or never ended.
func (r *results) read(in io.Reader, out io.Writer) (failed bool, err error) {
	printed := map[event]*strings.Builder{}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			failed = r.take(line, printed, out) || failed
		}
		if err == io.EOF {
			return failed, nil
		}
		if err != nil {
			return true, err
		}
	}
}

func (r *results) take(line []byte, printed map[event]*strings.Builder, out io.Writer) (failed bool) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		_, _ = out.Write(line)
		return false
	}
	of := event{Package: e.Package, Test: e.Test}
	switch e.Action {
	case "build-output":
		_, _ = io.WriteString(out, e.Output)
	case "output":
		if e.Test == "" {
			if e.Output != "PASS\n" {
				_, _ = io.WriteString(out, e.Output)
			}
			break
		}
		if printed[of] == nil {
			printed[of] = &strings.Builder{}
		}
		printed[of].WriteString(e.Output)
	case "pass", "skip", "fail":
		failed = e.Action == "fail"
		for other, text := range printed {
			if other == of || e.Test == "" && other.Package == e.Package {
				if failed {
					_, _ = io.WriteString(out, text.String())
					r.ended(other, e.Action) // it did not end where its package did: a panic, or the time was over
				}
				delete(printed, other)
			}
		}
		if name := r.ended(of, e.Action); name != "" {
			r.took[name] = time.Duration(e.Elapsed * float64(time.Second))
		}
	}
	return failed
}

// ended notes how a test did; subtests and packages are not counted and have no name.
func (r *results) ended(of event, how string) (name string) {
	if of.Test == "" || strings.Contains(of.Test, "/") {
		return ""
	}
	_, folder, _ := strings.Cut(of.Package, "/")
	name = folder + "." + of.Test
	r.Tests[name] = how
	return name
}

// printSlowest tells where the time went, for whoever has to keep `make test` short: up to 20 tests of at least 10 seconds.
func (r *results) printSlowest(out io.Writer) {
	names := slices.SortedFunc(maps.Keys(r.took), func(a, b string) int { return cmp.Or(cmp.Compare(r.took[b], r.took[a]), cmp.Compare(a, b)) })
	for _, name := range names[:min(len(names), 20)] {
		if r.took[name] >= 10*time.Second {
			fmt.Fprintf(out, "%6.0f s %s\n", r.took[name].Seconds(), name)
		}
	}
}

func (r *results) write(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
