package layout

import (
	"slices"
	"strings"
	"testing"
)

// starters start programs.
var starters = []string{
	"os/exec.Command", "os/exec.CommandContext", "os/exec.Cmd", "os.StartProcess", "syscall.ForkExec", "syscall.StartProcess", "syscall.Exec",
	"golang.org/x/sys/unix.Exec",
}

// programs are the places that start one, each with what it is. None unpacks anything: a layer's decompressor that was found
// on a PATH has run an attacker's program (moby CVE-2026-41567).
var programs = map[string]string{
	"cni/exec.go":                 "CNI plugins, by their full path in the operator's folders",
	"internal/powercut/disk.go":   "mkfs.ext4, for tests",
	"internal/userns/userns.go":   "the built-in pause program, from sealed memory, to hold namespaces while they are opened",
	"migrate/preflight/gather.go": "the kubelet's --version: the program of root's own process, or of its unit",
	"registry/nodeauth.go":        "credential helpers that the operator's Docker configuration names",
}

// placers put files into a container or an image through the engine, which resolves paths inside a running container's
// tree as root (moby CVE-2018-15664, CVE-2026-41568).
var placers = []string{".CopyToContainer", ".ImageBuild", ".ContainerCommit", ".PluginInstall"}

// unpackers read compressed data or write archives' files. Reading a tar's headers (archive/tar) is not among them.
var unpackers = []string{"compress/", "github.com/klauspost/compress", "github.com/containerd/containerd/archive", "github.com/moby/go-archive", "github.com/docker/docker/pkg/archive"}

func TestS38NothingIsUnpackedByAProgramOrPlacedByACopy(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range calls(t) {
		if slices.Contains(starters, c.callee) {
			seen[c.file] = true
			if programs[c.file] == "" {
				t.Errorf("%s:%d starts a program (%s): say in programs which, and that it unpacks nothing", c.file, c.line, c.callee)
			}
		}
		if slices.Contains(placers, c.callee) {
			t.Errorf("%s:%d places files through the engine (%s)", c.file, c.line, c.callee)
		}
		if slices.ContainsFunc(unpackers, func(p string) bool { return strings.HasPrefix(c.callee, p) }) {
			t.Errorf("%s:%d unpacks (%s): that is the engine's", c.file, c.line, c.callee)
		}
	}
	for file := range programs {
		if !seen[file] {
			t.Errorf("%s starts no program any more: its line here is stale", file)
		}
	}
}
