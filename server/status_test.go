package server

import "testing"

func TestAKubeletCanParseTheVersion(t *testing.T) {
	for version, want := range map[string]string{"20.10.24+dfsg1": "20.10.24+dfsg1", "v1.2.3-4-gabc": "v1.2.3-4-gabc", "570e5ad-dirty": "0.0.0+570e5ad-dirty", "unknown": "0.0.0+unknown"} {
		if got := parsable(version); got != want {
			t.Errorf("%s is told as %s, want %s", version, got, want)
		}
	}
}
