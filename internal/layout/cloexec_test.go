package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openers return a descriptor that programs which are started inherit, unless a flag says otherwise. Package os has it set.
var openers = map[string]bool{}

func init() {
	for _, name := range strings.Fields("Open Openat Openat2 Creat Socket Socketpair Pipe2 MemfdCreate InotifyInit1 EpollCreate1 Eventfd TimerfdCreate Signalfd OpenTree Fsopen Fsmount FanotifyInit Accept4 Dup3 Recvmsg Dup Dup2 Pipe Accept InotifyInit EpollCreate") {
		openers[name] = true
	}
}

// inherited are the places whose descriptors are meant to be inherited, or have the flag set in another way, each with how.
var inherited = map[string]string{}

// Every descriptor of ours is closed in the programs that we start, from the moment on at which it is there: the plugin of
// another call, a monitor or a container would else have it (runc CVE-2016-9962, CVE-2024-21626).
//
// Rows: S56 (part)
func TestS56DescriptorsAreNotInherited(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	found, used := 0, map[string]bool{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "e2e" || d.Name() == "testdata") {
			if d != nil && d.IsDir() && path != root {
				return fs.SkipDir
			}
			return err
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, decl := range parsed.Decls {
			text := string(source[files.Position(decl.Pos()).Offset:files.Position(decl.End()).Offset])
			ast.Inspect(decl, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				selector, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				in, ok := selector.X.(*ast.Ident)
				if !ok || in.Name != "unix" && in.Name != "syscall" || !openers[selector.Sel.Name] {
					return true
				}
				found++
				// Flags that are put together before the call are in the same function.
				if strings.Contains(text, "CLOEXEC") {
					return true
				}
				used[name] = true
				if inherited[name] == "" {
					t.Errorf("%s:%d: %s.%s makes a descriptor that programs inherit: give it CLOEXEC, or say in inherited why it has none",
						name, files.Position(call.Pos()).Line, in.Name, selector.Sel.Name)
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 30 {
		t.Errorf("only %d calls were looked at", found)
	}
	for name := range inherited {
		if !used[name] {
			t.Errorf("%s is in inherited and has no such call", name)
		}
	}
}
