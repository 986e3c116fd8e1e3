// Package reliability owns the list of what this project promises to withstand (Rows) and finds the tests that prove it.
//
// A test says which rows it proves by its name, TestS14OnlyAUIDIsAUID, or by a line of its doc comment:
//
//	// Rows: S14, R21 (part)
//
// "(part)" says that other tests prove the rest of the row, or that some of it is still unproven. docs/reliability.md is
// Page of both and of Last, what the last recorded runs said (`make record` after `make test`, and `make soak`); the
// package's test fails when the page is stale, and writes it with `go test ./internal/reliability -update`.
package reliability

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Row is one promise.
type Row struct {
	// ID is S and two digits for security, R and two digits for reliability.
	ID string
	// Priority is 0 (comes with the part itself), 1 (before the part is called reliable) or 2.
	Priority int
	// Parts are where it is kept, separated by spaces, as the page lists them. "all" is each of them.
	Parts   string
	Promise string
}

// Due says that the row has to be proven: what has priority 2 goes beyond what others promise.
func (r Row) Due() bool { return r.Priority < 2 }

// Proof is a test that proves a row, or part of it.
type Proof struct {
	Row     string
	Test    string
	File    string // relative to the module
	Partial bool
}

var (
	inName = regexp.MustCompile(`^(?:Test|Fuzz|Benchmark)([SR]\d\d)`)
	inLine = regexp.MustCompile(`^([SR]\d\d)( \(part\))?$`)
)

// Scan reads every test file below root. A line of rows that cannot be understood is an error.
func Scan(root string) ([]Proof, error) {
	var proofs []Proof
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		found, err := scanFile(root, path)
		proofs = append(proofs, found...)
		return err
	})
	slices.SortFunc(proofs, func(a, b Proof) int {
		return cmp.Or(strings.Compare(a.Row, b.Row), strings.Compare(a.File, b.File), strings.Compare(a.Test, b.Test))
	})
	return proofs, err
}

func scanFile(root, path string) ([]Proof, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return nil, err
	}
	var proofs []Proof
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Recv != nil {
			continue
		}
		rows, err := rowsOf(fn)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", rel, fn.Name.Name, err)
		}
		for _, p := range rows {
			p.Test, p.File = fn.Name.Name, filepath.ToSlash(rel)
			proofs = append(proofs, p)
		}
	}
	return proofs, nil
}

// rowsOf reads a function's name and doc comment.
func rowsOf(fn *ast.FuncDecl) ([]Proof, error) {
	var proofs []Proof
	for line := range strings.Lines(fn.Doc.Text()) {
		list, ok := strings.CutPrefix(strings.TrimSpace(line), "Rows:")
		if !ok {
			continue
		}
		for item := range strings.SplitSeq(list, ",") {
			m := inLine.FindStringSubmatch(strings.TrimSpace(item))
			if m == nil {
				return nil, fmt.Errorf("%q is not a row like S14 or R21 (part)", strings.TrimSpace(item))
			}
			proofs = append(proofs, Proof{Row: m[1], Partial: m[2] != ""})
		}
	}
	if m := inName.FindStringSubmatch(fn.Name.Name); m != nil && !slices.ContainsFunc(proofs, func(p Proof) bool { return p.Row == m[1] }) {
		proofs = append(proofs, Proof{Row: m[1]})
	}
	return proofs, nil
}

// Page is docs/reliability.md.
func Page(rows []Row, proofs []Proof, last Last) []byte {
	byRow := map[string][]Proof{}
	for _, p := range proofs {
		byRow[p.Row] = append(byRow[p.Row], p)
	}
	var due, proven, partly, met int
	var b bytes.Buffer
	var table bytes.Buffer
	for _, kind := range []struct{ letter, title string }{{"S", "Security"}, {"R", "Reliability"}} {
		fmt.Fprintf(&table, "\n## %s\n\n| row | parts | promise | last result | tests |\n|---|---|---|---|---|\n", kind.title)
		for _, r := range rows {
			tests := byRow[r.ID]
			if !strings.HasPrefix(r.ID, kind.letter) || !r.Due() && len(tests) == 0 {
				continue
			}
			result := last.of(r, tests)
			if r.Due() {
				due++
				if result == "met" {
					met++
				}
				switch {
				case slices.ContainsFunc(tests, func(p Proof) bool { return !p.Partial }):
					proven++
				case len(tests) > 0:
					partly++
				}
			}
			fmt.Fprintf(&table, "| %s P%d | %s | %s | %s | %s |\n", r.ID, r.Priority, r.Parts, r.Promise, result, cell(tests))
		}
	}
	b.WriteString(`# What is withstood, and the tests that prove it

Written by ` + "`go test ./internal/reliability -update`" + ` from the rows in internal/reliability/rows.go and from the tests, which say
which rows they prove: in their names or in a line ` + "`// Rows: S14, R21 (part)`" + ` above them. They run in ` + "`make test`" + `, at sizes of
seconds (full counts are for ` + "`make counts`" + `, hours for ` + "`make soak`" + `), those of e2e/vm in ` + "`make test-vm`" + `; only benchmarks and what needs a kubelet do not.

P0 to P2 say how important a row is: P0 and P1 have to be proven; P2 goes beyond what other runtimes promise, and is listed where a test
proves it. *(part)*: the test proves a part of the row only. The last result of a row is
* *met*: its tests passed in the last recorded runs, one of them at least proves the whole row, and a soak of at least 15 minutes passed, on each
  engine that the row is about;
* *passed, in part*: its tests passed, but none of them proves the whole row;
* *Docker: …; native: …* where the two differ;
* *skipped there*: these runs left the tests out. Those by kubelets run in ` + "`make test-kubelet` and `make matrix`" + `, and
  [compatibility.md](compatibility.md#kubelets-that-were-run) says how they ended;
* *N of M not run yet*: the run was before N of its M tests were written; **failed** names those that failed; –: it has none.

Parts: FE gRPC front end · DB Docker engine · FS root file systems and mounts · NET pod networks · STR exec, attach and
port-forward · LOG container logs · ST records · IMG image pulls · NB native engine · MON its monitor.

`)
	fmt.Fprintf(&b, "Of %d rows with P0 or P1, %d are proven, %d in part, and %d have no test yet.\n", due, proven, partly, due-proven-partly)
	fmt.Fprintf(&b, "%d of them are met. %s", met, last.summary())
	b.Write(table.Bytes())
	return b.Bytes()
}

func cell(tests []Proof) string {
	if len(tests) == 0 {
		return "**no test yet**"
	}
	var lines []string
	for _, p := range tests {
		line := fmt.Sprintf("%s (%s)", p.Test, filepath.ToSlash(filepath.Dir(p.File)))
		if p.Partial {
			line += " *(part)*"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "<br>")
}
