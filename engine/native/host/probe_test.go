package host

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// tree is a recorded host: file name to content; names that end in "/" are folders.
type tree map[string]string

func (r tree) with(changes tree) tree {
	all := tree{}
	for _, from := range []tree{r, changes} {
		for name, text := range from {
			all[name] = text
		}
	}
	return all
}

func (r tree) write(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range r {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != path && text != "-" {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// v2 is a node with systemd and everything.
var v2 = tree{
	"proc/self/mountinfo":                          "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n30 23 0:31 / /dev/mqueue rw - mqueue mqueue rw\n",
	"proc/self/cgroup":                             "0::/system.slice/crishim.service\n",
	"proc/self/status":                             "Name:\tcrishim\nCapInh:\t0000000000000000\nCapBnd:\t000001ffffffffff\n",
	"proc/self/attr/current":                       "crishim (unconfined)\n",
	"proc/self/oom_score_adj":                      "-999\n",
	"proc/sys/kernel/seccomp/actions_avail":        "kill_process allow\n",
	"sys/fs/cgroup/cgroup.controllers":             "cpuset cpu io memory hugetlb pids rdma misc\n",
	"sys/fs/cgroup/system.slice/memory.swap.max":   "max\n",
	"sys/kernel/mm/hugepages/hugepages-2048kB/":    "",
	"sys/kernel/mm/hugepages/hugepages-1048576kB/": "",
	"sys/module/apparmor/parameters/enabled":       "Y\n",
	"sys/kernel/security/apparmor/profiles":        "docker-default (enforce)\n",
	"run/systemd/system/":                          "",
}

// v1 is a container host with joined controllers and without CAP_SYS_RESOURCE.
var v1 = tree{
	"proc/self/mountinfo": "30 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"32 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n33 23 0:30 / /sys/fs/selinux rw - selinuxfs selinuxfs rw\n",
	"proc/self/cgroup":        "9:name=systemd:/\n8:pids:/\n4:memory:/a\n1:cpu,cpuacct:/\n0::/\n",
	"proc/self/status":        "Name:\tcrishim\nCapBnd:\t000001fffeffffff\n",
	"proc/self/attr/current":  "kernel\x00",
	"proc/self/oom_score_adj": "-5\n",
	"proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max cpu time              unlimited            unlimited            seconds   \n" +
		"Max open files            1024                 20000                files     \n",
	"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "1\n",
}

func TestAHostIsReadAsItIs(t *testing.T) {
	h, err := Probe(Options{Root: v2.write(t)})
	if err != nil {
		t.Fatal(err)
	}
	if !h.CgroupV2 || h.CgroupDriver != engine.SystemdDriver || !h.Swap || !h.AppArmor || h.SELinux || !h.Seccomp || !h.Mqueue {
		t.Errorf("%+v", h)
	}
	if want := []string{"1GB", "2MB"}; !reflect.DeepEqual(h.HugePageSizes, want) {
		t.Errorf("huge pages %v, want %v", h.HugePageSizes, want)
	}
	if len(h.Capabilities) != 41 || h.OOMScoreAdjMin != -1000 || h.HardLimits != nil || len(h.Warnings) != 0 {
		t.Errorf("%d capabilities, oom_score_adj %d, limits %v, warnings %q", len(h.Capabilities), h.OOMScoreAdjMin, h.HardLimits, h.Warnings)
	}
	if f := h.Features(); !f.Unified || !f.Hugepages || !f.Swap || f.UserNamespaces || f.RecursiveReadonlyMounts {
		t.Errorf("features %+v of a kernel that was not tried", f)
	}
}

func TestARestrictedHostSaysWhatItCannot(t *testing.T) {
	h, err := Probe(Options{Root: v1.write(t)})
	if err != nil {
		t.Fatal(err)
	}
	if h.CgroupV2 || h.CgroupDriver != engine.CgroupfsDriver || !h.Swap || h.AppArmor || h.SELinux || h.Seccomp || h.Mqueue {
		t.Errorf("%+v", h)
	}
	if want := []string{"cpu", "cpuacct", "memory", "pids"}; !reflect.DeepEqual(h.Controllers, want) {
		t.Errorf("controllers %v, want %v", h.Controllers, want)
	}
	if h.OOMScoreAdjMin != -5 || !reflect.DeepEqual(h.HardLimits, map[string]uint64{"RLIMIT_NOFILE": 20000}) || h.Can("CAP_SYS_RESOURCE") || !h.Can("CAP_SYS_ADMIN") {
		t.Errorf("%+v", h)
	}
	if !slices.ContainsFunc(h.Warnings, func(w string) bool { return strings.Contains(w, "CAP_SYS_RESOURCE") }) {
		t.Errorf("warnings %q", h.Warnings)
	}
	if f := h.Features(); f.Unified || f.Hugepages {
		t.Errorf("features %+v", f)
	}
}

func TestTheDriverIsTheOperatorsChoice(t *testing.T) {
	h, err := Probe(Options{Root: v2.write(t), CgroupDriver: engine.CgroupfsDriver})
	if err != nil || h.CgroupDriver != engine.CgroupfsDriver {
		t.Errorf("%+v, %v", h, err)
	}
	for _, driver := range []engine.CgroupDriver{engine.SystemdDriver, "other"} {
		if _, err := Probe(Options{Root: v1.write(t), CgroupDriver: driver}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s without systemd: %v", driver, err)
		}
	}
}

func TestAHostThatCannotRunContainersIsRefusedWithTheReason(t *testing.T) {
	for reason, changes := range map[string]tree{
		"CAP_SYS_ADMIN":          {"proc/self/status": "CapBnd:\t00000000a80425fb\n"},
		`controller "memory"`:    {"sys/fs/cgroup/cgroup.controllers": "cpu pids\n"},
		"the own capabilities":   {"proc/self/status": "Name:\tx\n"},
		"read the mounts":        {"proc/self/mountinfo": "-"},
		"read the own cgroup":    {"proc/self/cgroup": "-"},
		"the cgroup controllers": {"sys/fs/cgroup/cgroup.controllers": "-"},
	} {
		if _, err := Probe(Options{Root: v2.with(changes).write(t)}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v", reason, err)
		}
	}
}

func TestThisHostCanBeProbed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("asks for root's rights")
	}
	h, err := Probe(Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if h.Kernel.Release == "" || !h.Can("CAP_SYS_ADMIN") || !h.Has("memory") {
		t.Errorf("%+v", h)
	}
	t.Logf("%+v", h)
}

func TestOverlayTakesIDMappedLayersSince519(t *testing.T) {
	for release, want := range map[string]bool{"5.18.3": false, "5.19.0-1-amd64": true, "6.1.0": true, "4.19": false, "x": false} {
		if got := overlayTakesIDMapped(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
