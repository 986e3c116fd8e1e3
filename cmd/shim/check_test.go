package main

import (
	"strings"
	"testing"

	"crishim/cni"
)

// A distribution's plugins tell no version.
func TestOldPluginsAreNamedWithWhatIsKnownOfThem(t *testing.T) {
	for want, p := range map[string]cni.PluginVersion{
		"/x/bridge is version 1.6.2; below 1.9":                                               {Path: "/x/bridge", Version: "1.6.2"},
		"/x/bridge tells no version and is below 1.6, as it does not know CNI 1.1; below 1.9": {Path: "/x/bridge"},
	} {
		if got := oldPlugin(p); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
