package cgroup

import (
	"os"
	"testing"
	"time"

	"crishim/engine"
	"crishim/engine/native/host"
)

func TestWhatIsExpectedMovesNothing(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	d := driver(engine.CgroupfsDriver)
	if own := d.own("pids"); own != "" {
		if _, err := os.Stat(own + "/cgroup.procs"); err != nil {
			t.Skipf("this process's cgroup is not seen: %v", err)
		}
	}
	for range 3 {
		d.ExpectJoin()
		for deadline := time.Now().Add(time.Minute); d.expecting.Load(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not end")
			}
		}
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("this process was moved: %v\n%s%s", err, before, after)
	}
	v2 := New(&host.Host{CgroupDriver: engine.CgroupfsDriver, CgroupV2: true})
	if v2.ExpectJoin(); v2.expecting.Load() {
		t.Error("a kernel that waits for nothing is made to wait")
	}
}
