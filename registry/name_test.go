package registry

import (
	"strings"
	"testing"
)

// Docker and containerd take the start of an id with and without what it begins with.
func TestAnIdMayBeCut(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for ref, want := range map[string]Query{
		hex: {ID: "sha256:" + hex}, "sha256:" + hex: {ID: "sha256:" + hex},
		hex[:12]:               {Prefix: hex[:12], Name: "docker.io/library/" + hex[:12] + ":latest"},
		"sha256:" + hex[:12]:   {Prefix: hex[:12], Name: "docker.io/library/sha256:" + hex[:12]},
		"sha256:" + hex[:63]:   {Prefix: hex[:63], Name: "docker.io/library/sha256:" + hex[:63]},
		"sha256:" + hex[:11]:   {Name: "docker.io/library/sha256:" + hex[:11]},
		"sha256:latest":        {Name: "docker.io/library/sha256:latest"},
		"a/sha256:" + hex[:12]: {Name: "docker.io/a/sha256:" + hex[:12]},
	} {
		if got, err := ParseQuery(ref); err != nil || got != want {
			t.Errorf("%s is %+v, %v", ref, got, err)
		}
	}
}

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
		for _, c := range parseChallenges(line) {
			if c.scheme == "" || strings.ContainsAny(c.scheme, " ,=") {
				t.Fatalf("scheme %q", c.scheme)
			}
			for key := range c.params {
				if key != strings.ToLower(key) {
					t.Fatalf("parameter %q", key)
				}
			}
		}
	})
}
