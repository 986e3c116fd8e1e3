package layout

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// allowed says which rooms of ours a room may import ("internal" is every package below it); sub-folders follow the
// longest matching line. A room that is not listed fails the test, so that it gets a line here and in the document.
var allowed = map[string][]string{
	"cmd/shim":             {"check", "cni", "config", "engine", "engine/docker", "engine/imageset", "engine/native", "engine/native/hook", "engine/native/image", "migrate", "nri", "server", "state", "stats", "streaming", "translator", "internal"},
	"cmd/monitor":          {"engine/native", "crilog", "internal"},
	"check":                {},
	"cni":                  {"internal"},
	"config":               {},
	"crilog":               {},
	"e2e":                  {"e2e"},
	"engine":               {},
	"engine/docker":        {"engine", "engine/docker", "engine/podfiles", "crilog", "registry", "internal"},
	"engine/enginetest":    {"engine", "crilog", "internal"},
	"engine/imageset":      {"engine", "internal"},
	"engine/native":        {"engine", "engine/native/cgroup", "engine/native/checkpoint", "engine/native/hook", "engine/native/host", "engine/native/image", "engine/native/ns", "engine/native/rootfs", "engine/native/spec", "engine/podfiles", "crilog", "internal"},
	"engine/native/cgroup": {"engine", "engine/native/host", "internal"},
	"engine/native/hook":   {"engine"},
	"engine/native/host":   {"engine", "internal"},
	"engine/native/ns":     {"engine", "internal"},
	"engine/native/rootfs": {"engine", "engine/native/host", "engine/native/space", "engine/podfiles", "internal"},
	"engine/native/spec":   {"engine", "engine/native/host", "internal"},
	"engine/native/image":  {"engine", "engine/native/space", "registry", "internal"},
	"engine/podfiles":      {"engine"},
	"hack":                 {},
	"internal":             {"internal"},
	"migrate":              {"engine", "engine/docker/survey", "state", "cni", "crilog", "config", "internal"},
	"nri":                  {"engine", "engine/native/hook"},
	"registry":             {},
	"server":               {"translator", "engine", "engine/imageset", "state", "cni", "streaming", "crilog", "stats", "internal"},
	"state":                {"engine", "internal"},
	"stats":                {"engine", "internal"},
	"streaming":            {"internal"},
	"translator":           {"engine", "crilog", "internal"},

	"engine/native/checkpoint": {"engine/native/image", "engine/native/space", "internal"},
}

// onlyIn keeps a module out of all rooms but these.
var onlyIn = map[string][]string{
	"github.com/docker/docker/":           {"engine/docker"},
	"github.com/containernetworking/cni/": {"cni", "e2e/harness"},
	"github.com/containerd/nri/":          {"nri"},
	"k8s.io/cri-api/":                     {"server", "translator", "streaming", "stats", "check", "migrate/compare", "cmd/shim", "engine/docker/imagestore", "engine/native/image", "e2e"},
}

func TestImportsFollowTheArchitecture(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); strings.HasPrefix(name, ".") && path != root || name == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files++
		checkFile(t, root, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("only %d files were found: the test looks in the wrong place", files)
	}
}

func checkFile(t *testing.T, root, path string) {
	rel, err := filepath.Rel(root, filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	room := roomOf(rel)
	if room == "" {
		t.Errorf("%s: this folder has no line in the architecture", rel)
		return
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		for module, rooms := range onlyIn {
			if strings.HasPrefix(imported, module) && !within(rel, rooms) {
				t.Errorf("%s imports %s, which only %v may", rel, imported, rooms)
			}
		}
		ours, isOurs := strings.CutPrefix(imported, "crishim/")
		if !isOurs || roomOf(ours) == room {
			continue
		}
		if !within(ours, allowed[room]) {
			t.Errorf("%s imports %s; %s may import only %v", rel, ours, room, allowed[room])
		}
	}
}

// roomOf is the longest line of allowed that the folder lies in.
func roomOf(folder string) string {
	best := ""
	for room := range allowed {
		if within(folder, []string{room}) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

// within says whether the folder is one of the rooms or below one; a room that has a line of its own is not below another.
func within(folder string, rooms []string) bool {
	return slices.ContainsFunc(rooms, func(room string) bool {
		if folder == room {
			return true
		}
		if !strings.HasPrefix(folder, room+"/") {
			return false
		}
		for other := range allowed {
			if len(other) > len(room) && strings.HasPrefix(other, room+"/") && (folder == other || strings.HasPrefix(folder, other+"/")) {
				return false
			}
		}
		return true
	})
}
