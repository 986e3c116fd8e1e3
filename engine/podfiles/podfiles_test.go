package podfiles

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

func TestTexts(t *testing.T) {
	got, err := Texts(&engine.PodSpec{Hostname: "my-pod", DNS: &engine.DNS{
		Servers: []string{"10.0.0.1", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}})
	want := Files{Hosts: localHosts, Hostname: "my-pod\n", ResolvConf: "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n"}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}

	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got, err = Texts(&engine.PodSpec{Hostname: "ignored", Namespaces: engine.Namespaces{Network: engine.NamespaceNode}})
	if err != nil || got.Hosts != string(hosts) || got.Hostname != name+"\n" {
		t.Errorf("in the host's network: %+v, %v", got, err)
	}
}

// Rows: S15 (part)
func TestNothingBecomesAnotherLine(t *testing.T) {
	for what, spec := range map[string]*engine.PodSpec{
		"hostname":      {Hostname: "a\nb"},
		"server":        {Hostname: "a", DNS: &engine.DNS{Servers: []string{"1.1.1.1\nnameserver 2.2.2.2"}}},
		"search domain": {Hostname: "a", DNS: &engine.DNS{Searches: []string{"a b"}}},
		"option":        {Hostname: "a", DNS: &engine.DNS{Options: []string{"a\u0085b"}}},
		"empty word":    {Hostname: "a", DNS: &engine.DNS{Options: []string{""}}},
		"long word":     {Hostname: strings.Repeat("a", 1025)},
	} {
		if _, err := Texts(spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
