package main

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"strings"
	"testing"

	"crishim/internal/rowsize"
)

// overwriting is what a container does whose pid 1 waits for a runtime to come in: it tries to write to the program of each
// process, keeps those open that it can for when they end, and tells of every program that is not its own.
const overwriting = `
while :; do
	for p in /proc/[0-9]*; do
		exe=$(readlink $p/exe) && case "$exe" in */busybox) ;; "") ;; *) echo "saw $exe";; esac
		( exec 9<$p/exe && echo x >/proc/self/fd/9 ) 2>/dev/null && echo "wrote to $exe"
	done 2>/dev/null
done`

// rounds are those of the classic overwriting of a runtime; 200 in `make counts`.
func rounds() int { return rowsize.Of(12, 200) }

// The classic of CVE-2019-5736, raced: while a container writes to every program that it can open, processes are started in it
// and containers made beside it, some of which are to be the runtime's own program. Nothing of the helper changes, and no
// process of it that is not the container's yet can be looked into from there.
//
// Rows: S55, S56 (part)
func TestS55ARuntimeThatComesInIsNeitherWrittenToNorSeen(t *testing.T) {
	p := newPod(t)
	hash := func(r io.Reader) [sha256.Size]byte {
		data := must(io.ReadAll(r))
		if len(data) == 0 {
			t.Fatal("the helper is empty")
		}
		return sha256.Sum256(data)
	}
	helper := func() [sha256.Size]byte { return hash(io.NewSectionReader(p.helper, 0, 1<<30)) }
	before, file := helper(), sha256.Sum256(must(os.ReadFile(program)))
	p.run("a", p.args(p.spec(nil, "/bin/sh", "-c", overwriting), "a"))
	// An entrypoint that is the program that runs it, and a script whose interpreter that is.
	ends := func(ctx context.Context, name string, args ...string) {
		t.Helper()
		if _, err := p.Create(ctx, name, p.args(p.spec(nil, args...), name)); err != nil {
			return // refused: as good
		}
		if _, err := p.Start(ctx, name); err == nil {
			must(p.Wait(ctx, name)) // however it ends
		}
		if err := p.Delete(ctx, name); err != nil {
			t.Errorf("delete container %s: %v", name, err)
		}
	}
	wrote := func() {
		t.Helper()
		if helper() != before || sha256.Sum256(must(os.ReadFile(program))) != file {
			t.Fatal("the helper was changed")
		}
		for line := range strings.Lines(p.output("a")) {
			if strings.HasPrefix(line, "wrote ") {
				t.Errorf("the container %s", strings.TrimSpace(line))
			}
		}
	}
	for i := range rounds() {
		if _, exited, err := p.exec(within(t), "a", p.process("/bin/true")); err != nil || exited.Code != 0 {
			t.Fatalf("round %d: %+v, %v", i, exited, err)
		}
	}
	// Until it is the container's, a process cannot be looked into: neither its program nor its descriptors.
	for line := range strings.Lines(p.output("a")) {
		if strings.HasPrefix(line, "saw ") {
			t.Errorf("the container %s", strings.TrimSpace(line))
		}
	}
	wrote()
	for i := range rounds() {
		_, _, _ = p.exec(within(t), "a", p.process("/proc/self/exe", "init")) // however it ends
		_, _, _ = p.exec(within(t), "a", p.process("/bin/sh", "-c", "printf '#!/proc/self/exe\n' >/tmp/x; chmod +x /tmp/x; exec /tmp/x"))
		ends(within(t), "e"+itoa(i), "/proc/self/exe", "init")
	}
	wrote()
}
