package native

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Where the kernel lets no memfd be executed, pods and execs work by a helper that is a file.
func TestContainersWithoutExecutableMemfds(t *testing.T) {
	const setting = "/proc/sys/vm/memfd_noexec"
	if _, err := os.Stat(setting); err != nil {
		t.Skipf("a kernel before 6.3 executes every memfd: %v", err)
	}
	newBench(t) // skips where there can be no containers
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The setting is of a PID namespace, and this one ends with the test.
	cmd := exec.CommandContext(t.Context(), "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", "echo 2 >"+setting+` && exec "$0" "$@"`, self, "-test.v",
		"-test.run", "^TestNativeContract$/^(containers|execs)$/^(a_container_is_made|the_exit_code_is|a_context_that_ends_kills)")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 1+2+3 || !strings.Contains(string(out), "runs from a file") {
		t.Errorf("%v:\n%s", err, out)
	}
}
