package translator

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// api is what api.proto declares: its RPCs, the fields of every message in use, and those of them that the configs of pods
// and containers are made of.
type api struct {
	rpcs    []string
	fields  map[string][]string // message → fields
	configs map[string]bool     // messages within PodSandboxConfig and ContainerConfig
}

func readAPI() api {
	a := api{fields: map[string][]string{}, configs: map[string]bool{}}
	services := (&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			a.rpcs = append(a.rpcs, string(m.Name()))
			a.walk(m.Input(), func(protoreflect.MessageDescriptor) {})
			a.walk(m.Output(), func(protoreflect.MessageDescriptor) {})
		}
	}
	inConfigs := api{fields: map[string][]string{}}
	for _, m := range []protoreflect.MessageDescriptor{
		(&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor(), (&runtimeapi.ContainerConfig{}).ProtoReflect().Descriptor(),
	} {
		inConfigs.walk(m, func(m protoreflect.MessageDescriptor) { a.configs[string(m.Name())] = true })
	}
	return a
}

func (a *api) walk(m protoreflect.MessageDescriptor, visit func(protoreflect.MessageDescriptor)) {
	name := string(m.Name())
	if _, seen := a.fields[name]; seen || m.IsMapEntry() {
		return
	}
	visit(m)
	a.fields[name] = nil
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		a.fields[name] = append(a.fields[name], string(f.Name()))
		if f.Message() != nil {
			a.walk(f.Message(), visit)
		}
	}
}

func isWindows(message string) bool { return strings.HasPrefix(message, "Windows") }

// rows are the table rows of docs/compatibility.md: first cell → the rest. RPCs have their own section; some messages are
// called as one.
func rows(t *testing.T) (rpcs, fields map[string]string) {
	t.Helper()
	data, err := os.ReadFile("../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	rpcs, fields = map[string]string{}, map[string]string{}
	found := fields
	row := regexp.MustCompile("^\\| `([A-Za-z0-9_.]+)` \\|(.*)\\|$")
	for line := range strings.Lines(string(data)) {
		if section, ok := strings.CutPrefix(line, "## "); ok {
			found = fields
			if section == "RPCs\n" {
				found = rpcs
			}
		}
		if m := row.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			if _, twice := found[m[1]]; twice {
				t.Errorf("docs/compatibility.md has two rows for %s", m[1])
			}
			found[m[1]] = m[2]
		}
	}
	return rpcs, fields
}

func TestTheDocumentHasARowForEveryFieldAndRPC(t *testing.T) {
	a := readAPI()
	rpcs, fields := rows(t)
	wantRPCs, wantFields := map[string]bool{}, map[string]bool{}
	for _, rpc := range a.rpcs {
		wantRPCs[rpc] = true
	}
	for message, names := range a.fields {
		switch {
		case len(names) == 0:
		case a.configs[message] && !isWindows(message):
			for _, name := range names {
				wantFields[message+"."+name] = true
			}
		default:
			wantFields[message] = true
			for _, name := range names {
				if !strings.Contains(fields[message], "`"+name+"`") {
					t.Errorf("the row of %s lacks its field %s", message, name)
				}
			}
		}
	}
	wantRows(t, rpcs, wantRPCs)
	wantRows(t, fields, wantFields)
	if len(a.rpcs) != 43 {
		t.Errorf("CRI has %d RPCs now, not 43: adapt the document", len(a.rpcs))
	}
}

func wantRows(t *testing.T, found map[string]string, want map[string]bool) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if strings.Trim(found[name], " |") == "" {
			t.Errorf("docs/compatibility.md has no row for %s: say what happens to it", name)
		}
	}
	for name := range found {
		if !want[name] {
			t.Errorf("docs/compatibility.md has a row for %s, which CRI does not have", name)
		}
	}
}

// Each field of the configs is set by some golden file, so that its translation can be seen.
func TestTheGoldenFilesSetEveryField(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{
		"ImageSpec.image_ref":      true,                                  // of replies
		"PodSandboxConfig.windows": true, "ContainerConfig.windows": true, // refused, see refusals
	}
	for _, file := range files {
		translateGolden(t, file, readGolden(t, file), used)
	}
	a := readAPI()
	for message := range a.configs {
		for _, field := range a.fields[message] {
			if !isWindows(message) && !used[message+"."+field] {
				t.Errorf("no golden file sets %s.%s", message, field)
			}
		}
	}
}
