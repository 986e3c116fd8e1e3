package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// call is one mention of another package's function (or type) in the product's code: not in tests, not below e2e and hack.
type call struct {
	file     string // relative to the module
	function string // that it is in, "" at the top level
	callee   string // "os.MkdirAll", by import path
	line     int
}

// withItsOwnRows are the rooms of the native engine: what they promise about paths and unpacking are rows of their own
// (parts NB, MON and IMG), with tests of their own.
var withItsOwnRows = []string{"engine/native", "cmd/monitor"}

// calls are all mentions of names of imported packages in the code of the other rooms, and all methods called by name
// (".Method").
func calls(t *testing.T) []call {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var found []call
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if slices.Contains(withItsOwnRows, rel) || rel == "e2e" || rel == "hack" || strings.HasPrefix(name, ".") && path != root || name == "testdata" || name == "bin" || name == "enginetest" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		inFile, err := callsOf(path, filepath.ToSlash(rel))
		found = append(found, inFile...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 1000 {
		t.Fatalf("only %d mentions were found: the test looks in the wrong place", len(found))
	}
	return found
}

func callsOf(path, rel string) ([]call, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	imports := map[string]string{}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		name := imported[strings.LastIndex(imported, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		imports[name] = imported
	}
	var found []call
	for _, decl := range file.Decls {
		function := ""
		if fn, ok := decl.(*ast.FuncDecl); ok {
			function = fn.Name.Name
		}
		ast.Inspect(decl, func(node ast.Node) bool {
			selector, ok := node.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			callee := "." + selector.Sel.Name
			if ident, ok := selector.X.(*ast.Ident); ok && imports[ident.Name] != "" {
				callee = imports[ident.Name] + callee
			}
			found = append(found, call{rel, function, callee, set.Position(selector.Pos()).Line})
			return true
		})
	}
	return found, nil
}
