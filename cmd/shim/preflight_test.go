package main

import (
	"strings"
	"testing"

	"crishim/migrate/preflight"
)

func TestTheNodeOfABugReportHasNoPasswordOfAProxy(t *testing.T) {
	var out strings.Builder
	node := &preflight.Node{DockerError: `HTTPS_PROXY="http://me:p@ss:w0rd@proxy.example:3128" NO_PROXY=10.0.0.0/8 unix:///run/x.sock http://proxy.example:3128/a@b`}
	if err := writeNode(&out, node); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`HTTPS_PROXY=\"http://me:***@proxy.example:3128\"`, "unix:///run/x.sock http://proxy.example:3128/a@b"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it lacks %s: %s", want, out.String())
		}
	}
}
