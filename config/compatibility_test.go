package config

import "testing"

func TestCompatibilityMovesWhatTheOldShimLooksFor(t *testing.T) {
	for _, row := range []struct{ file, root, log, cache string }{
		{``, "", "cri", "/var/lib/crishim/cni"},
		{`compatibility_root = "/elsewhere"`, "", "cri", "/var/lib/crishim/cni"},
		{`compatibility = "dockershim"`, "/var/lib/dockershim", "json-file", "/var/lib/cni/cache"},
		{"compatibility = \"cri-dockerd\"\ncompatibility_root = \"/data/cri-dockerd\"\n[network]\ncache_dir = \"/data/cni\"", "/data/cri-dockerd", "json-file", "/data/cni"},
	} {
		c, err := load(t, row.file)
		if err != nil {
			t.Errorf("%q: %v", row.file, err)
			continue
		}
		if c.ShimRoot() != row.root || c.DockerLog() != row.log || c.CNICacheDir() != row.cache {
			t.Errorf("%q: root %q, log %q, cache %q", row.file, c.ShimRoot(), c.DockerLog(), c.CNICacheDir())
		}
	}
	if _, err := load(t, `compatibility = "containerd"`); err == nil {
		t.Error("an unknown shim was accepted")
	}
}
