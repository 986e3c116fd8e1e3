package harness

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The suites of two engines start beside each other on an empty cache: one fetches, and both have the package whole.
func TestDebianPackageIsFetchedByOneAtATime(t *testing.T) {
	programs, fetched := t.TempDir(), filepath.Join(t.TempDir(), "fetched")
	for name, script := range map[string]string{
		"apt-get":  "#!/bin/sh\necho $2 >> " + fetched + "\nsleep 0.05\n: > $2_1.0_all.deb\n",
		"dpkg-deb": "#!/bin/sh\nmkdir -p usr/bin\nsleep 0.05\n: > usr/bin/program\n",
	} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	dir := filepath.Join(t.TempDir(), "package")
	// Of runs that were killed.
	for _, stale := range []string{dir, dir + ".new/usr"} {
		if err := os.MkdirAll(stale, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := debianPackage("package", dir); err != nil {
				t.Error(err)
			}
			if !isFile(filepath.Join(dir, "usr", "bin", "program")) {
				t.Error("the folder has its name before the package is unpacked")
			}
		})
	}
	all.Wait()
	if names, _ := os.ReadFile(fetched); strings.TrimSpace(string(names)) != "package" {
		t.Errorf("fetched %q, want the package once", names)
	}
}
