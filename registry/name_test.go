package registry

import (
	"strings"
	"testing"
)

// A name that was taken is taken again as it was written, and is the same.
func FuzzParseName(f *testing.F) {
	for _, seed := range []string{"busybox", "r:5/x:y@sha256:" + strings.Repeat("a", 64), "[::1]:5000/a", "docker.io/library/x:latest", "a@b", "UPPER/x", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		named, err := ParseName(ref)
		if err != nil {
			return
		}
		again, err := ParseName(named.String())
		if err != nil || again.String() != named.String() || FullName(ref) != named.String() {
			t.Fatalf("%q is %q, and that is %v, %v", ref, named, again, err)
		}
	})
}

// A registry may say anything in WWW-Authenticate.
func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="r",scope="repository:x:pull"`)
	f.Add(`Basic realm="\\"`)
	f.Add(`x =,,="`)
	f.Fuzz(func(t *testing.T, line string) {
		scheme, params := parseChallenge(line)
		if strings.Contains(scheme, " ") {
			t.Fatalf("scheme %q", scheme)
		}
		for key := range params {
			if key != strings.ToLower(key) {
				t.Fatalf("parameter %q", key)
			}
		}
	})
}
