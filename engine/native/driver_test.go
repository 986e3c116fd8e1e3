package native

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"

	"crishim/engine"
)

// testDriver is the cgroup driver of the tests' engines, by CRISHIM_TEST_CGROUP_DRIVER; testCgroup is the pods' parent.
var testDriver, testCgroup = func() (engine.CgroupDriver, string) {
	if os.Getenv("CRISHIM_TEST_CGROUP_DRIVER") == string(engine.SystemdDriver) {
		return engine.SystemdDriver, "crishim_native_test.slice"
	}
	return engine.CgroupfsDriver, "/crishim-native-test"
}()

func removeTestCgroup() {
	if testDriver == engine.SystemdDriver {
		_ = exec.Command("systemctl", "stop", testCgroup).Run()
		return
	}
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*" + testCgroup)
	for _, dir := range append(hierarchies, "/sys/fs/cgroup"+testCgroup) {
		_ = os.Remove(dir)
	}
}

// limitsInEffect reads what the kernel has for a container, in the words of cgroup v1. CPU shares of v2 are the power of
// two that makes the weight.
//
// The formula is libcontainer's; those of other runtimes are tried before it.
func limitsInEffect(t *testing.T, v2 bool, path string, formulas ...func(shares uint64) uint64) engine.Resources {
	t.Helper()
	read := func(file string) []string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(data))
	}
	number := func(text string) int64 {
		t.Helper()
		if text == "max" {
			return 0
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var r engine.Resources
	if v2 {
		weight := number(read("cpu.weight")[0])
		for _, formula := range append(formulas, cgroups.ConvertCPUSharesToCgroupV2Value) {
			for r.CPUShares = 2; r.CPUShares < 1<<18 && int64(formula(uint64(r.CPUShares))) != weight; {
				r.CPUShares *= 2
			}
			if r.CPUShares < 1<<18 {
				break
			}
		}
		r.CPUQuota = number(read("cpu.max")[0])
		r.MemoryLimit = number(read("memory.max")[0])
		return r
	}
	r.CPUShares = cgroupValue(t, path, "cpu", "cpu.shares")
	r.CPUQuota = max(0, cgroupValue(t, path, "cpu", "cpu.cfs_quota_us"))
	if limit := cgroupValue(t, path, "memory", "memory.limit_in_bytes"); limit < 1<<60 {
		r.MemoryLimit = limit
	}
	return r
}
