package layout

import (
	"os"
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
