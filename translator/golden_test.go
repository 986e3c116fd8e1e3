package translator

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

var update = flag.Bool("update", false, "write the specs of the golden files anew")

// golden is one file of testdata: a CRI request and the spec that is decided from it. Byte fields are in base64.
type golden struct {
	About          string          `json:"about"`
	RuntimeHandler string          `json:"runtimeHandler,omitempty"`
	CgroupDriver   string          `json:"cgroupDriver,omitempty"`
	Sandbox        json.RawMessage `json:"sandbox,omitempty"` // the container's pod; absent for one with no wishes
	Config         json.RawMessage `json:"config"`
	Spec           json.RawMessage `json:"spec"`
}

func testDefaults() Defaults {
	return Defaults{PauseImage: "registry.k8s.io/pause:3.10", SeccompRoot: "/var/lib/kubelet/seccomp"}
}

// Rows: S20 (part)
func TestGoldenFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			g := readGolden(t, file)
			got, err := json.Marshal(translateGolden(t, file, g, nil))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				g.Spec = got
				writeGolden(t, file, g)
				return
			}
			var want bytes.Buffer
			if err := json.Compact(&want, g.Spec); err != nil {
				t.Fatal(err)
			}
			if want.String() != string(got) {
				t.Errorf("the spec is\n%s\nwant (go test ./translator -update writes it anew)\n%s", got, want.String())
			}
		})
	}
}

// translateGolden translates the file's request; used collects the CRI fields that the request sets.
func translateGolden(t *testing.T, file string, g *golden, used map[string]bool) any {
	t.Helper()
	d := testDefaults()
	d.CgroupDriver = engine.CgroupDriver(g.CgroupDriver)
	if strings.HasPrefix(filepath.Base(file), "pod-") {
		cfg := &runtimeapi.PodSandboxConfig{}
		decode(t, g.Config, cfg)
		markUsed(used, cfg.ProtoReflect())
		spec, err := Pod(cfg, g.RuntimeHandler, d)
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	sandbox := podConfig()
	if g.Sandbox != nil {
		decode(t, g.Sandbox, sandbox)
	}
	pod, err := Pod(sandbox, g.RuntimeHandler, d)
	if err != nil {
		t.Fatal("the container's pod: ", err)
	}
	cfg := &runtimeapi.ContainerConfig{}
	decode(t, g.Config, cfg)
	markUsed(used, cfg.ProtoReflect())
	spec, err := Container(pod, "0123456789abcdef", cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func decode(t *testing.T, data []byte, m proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal(data, m); err != nil {
		t.Fatal(err)
	}
}

// markUsed collects "Message.field" of everything that m sets to other than its zero.
func markUsed(used map[string]bool, m protoreflect.Message) {
	if used == nil {
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		used[string(m.Descriptor().Name())+"."+string(f.Name())] = true
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				markUsed(used, v.List().Get(i).Message())
			}
		default:
			markUsed(used, v.Message())
		}
		return true
	})
}

func readGolden(t *testing.T, file string) *golden {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	g := &golden{}
	if err := json.Unmarshal(data, g); err != nil {
		t.Fatal(file, err)
	}
	return g
}

func writeGolden(t *testing.T, file string, g *golden) {
	t.Helper()
	data, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// podConfig and containerConfig are the smallest that are accepted.
func podConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "8d2f-11"},
	}
}

func containerConfig() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "app"},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:aaaa"},
	}
}
