package layout

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors are the versions that have the fix of a known fault of a module that we link.
var floors = map[string]string{
	"github.com/moby/spdystream":         "v0.5.1", // CVE-2026-35469: a SETTINGS frame that asks for gigabytes
	"github.com/containernetworking/cni": "v1.3.0",
	"github.com/docker/docker":           "v28.5.2",
	"github.com/opencontainers/runc":     "v1.5.0",  // CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: a container breaks out by what is masked, or its console
	"google.golang.org/grpc":             "v1.56.3", // CVE-2023-44487: rapid reset
	"golang.org/x/net":                   "v0.23.0", // CVE-2023-45288: endless continuation frames
}

// S70: the modules that are linked are not below those floors.
func TestS70ModulesAreNotBelowTheirFloors(t *testing.T) {
	data, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(words) < 2 || floors[words[0]] == "" {
			continue
		}
		found++
		if have, floor := numbers(t, words[1]), numbers(t, floors[words[0]]); slices.Compare(have, floor) < 0 {
			t.Errorf("%s is %s, below %s", words[0], words[1], floors[words[0]])
		}
	}
	if found != len(floors) {
		t.Errorf("go.mod names %d of %d modules", found, len(floors))
	}
	if slices.Compare(numbers(t, "v0.5.0"), numbers(t, "v0.5.1")) >= 0 || slices.Compare(numbers(t, "v1.10.0"), numbers(t, "v1.9.9")) <= 0 {
		t.Error("versions are compared wrongly")
	}
}

var version = regexp.MustCompile(`^v(\d+)\.(\d+)\.(\d+)`)

func numbers(t *testing.T, text string) []int {
	t.Helper()
	parts := version.FindStringSubmatch(text)
	if parts == nil {
		t.Fatalf("%q is no version", text)
	}
	var all []int
	for _, p := range parts[1:] {
		n, err := strconv.Atoi(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

// S70: of github.com/docker/docker, which gets no further versions, only the client is linked, so that what is wrong in its daemon
// is not in ours; docs/operations.md says so to those who see it in a scanner's report.
func TestS70OfDockersModuleOnlyTheClientIsLinked(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../../cmd/shim", "../../cmd/monitor").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for pkg := range strings.Lines(string(out)) {
		of, ok := strings.CutPrefix(strings.TrimSpace(pkg), "github.com/docker/docker/")
		if !ok {
			continue
		}
		found++
		if of != "client" && of != "api" && of != "pkg/stdcopy" && !strings.HasPrefix(of, "api/types") {
			t.Errorf("github.com/docker/docker/%s is linked", of)
		}
	}
	if found == 0 {
		t.Error("the client of Docker is not linked")
	}
}
