package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Chatty is a container that writes numbered lines without pause, for gate SURV.
type Chatty struct {
	*Container
	pid   int
	start string
	gaps  bool
}

// RunChatty starts one in a pod, at rate lines a second.
func (p *Pod) RunChatty(image string, rate int) *Chatty {
	p.t.Helper()
	c := &Chatty{Container: p.Run("chatty", image, []string{"/bin/testserver", "log", strconv.Itoa(rate)})}
	c.WaitLines(5)
	c.pid, c.start = c.process()
	return c
}

// process is the host's number and start time of the container's first process.
func (c *Chatty) process() (int, string) {
	c.t.Helper()
	pid := c.pod.node.HostPID(c.t, c.ID)
	return pid, StartTime(pid)
}

// CheckSurvived is gate SURV: the same process still runs, and its log has every line once, whole and in order, and grows.
func (c *Chatty) CheckSurvived() {
	c.t.Helper()
	status := c.Status()
	if status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.t.Errorf("the container is %v, exit code %d, reason %q", status.State, status.ExitCode, status.Reason)
		return
	}
	if pid, start := c.process(); pid != c.pid || start != c.start {
		c.t.Errorf("process %d of %s became %d of %s: the container was restarted", c.pid, c.start, pid, start)
	}
	c.WaitLines(len(c.WaitLines(0)) + 5)
	c.CheckLog()
}

// MayLackLines says that from now on lines may lack, as where the disk of logs was full and the engine does not hold the container
// up for it.
func (c *Chatty) MayLackLines() { c.gaps = true }

// CheckLog checks that the log has every line from 0 on, each once, whole and in order.
func (c *Chatty) CheckLog() {
	c.t.Helper()
	lines := c.WaitLines(0) // whole ones: who reads while a record is written may see a part of it
	next := 0
	for i, line := range lines {
		if c.gaps {
			if number, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line.Text, "line "))); err == nil {
				next = max(next, number)
			}
		}
		for last := next - 1; c.lostByDocker(last, next, line.Text); next++ {
			c.t.Logf("Docker's own log has no line %d either: a dockerd ended that had read it and not written it yet", next)
		}
		if want := fmt.Sprintf("line %d ", next); line.Text != want {
			c.t.Errorf("record %d of the log is %q, want %q: a line was lost, doubled or torn", i, line.Text, want)
			return
		}
		next++
	}
	if !slices.IsSortedFunc(lines, func(a, b LogLine) int { return a.Time.Compare(b.Time) }) {
		c.t.Errorf("the times of the log go backwards")
	}
}

// lostByDocker says that Docker's own log, which has the lines last and found, does not have next either: it loses what a dockerd had read
// and not written yet that ends above running containers, killed or, with live-restore, asked to.
func (c *Chatty) lostByDocker(last, next int, found string) bool {
	number, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(found, "line ")))
	d := c.pod.node.Docker
	if err != nil || number <= next || d == nil || !d.leftRunning {
		return false
	}
	var inspect struct{ LogPath string }
	d.Get("/containers/"+c.ID+"/json", &inspect)
	files, _ := filepath.Glob(inspect.LogPath + "*") // those that it has rotated, too
	var own []byte
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			c.t.Fatalf("reading Docker's own log: %v", err)
		}
		own = append(own, data...)
	}
	has := func(n int) bool { return bytes.Contains(own, fmt.Appendf(nil, `"log":"line %d \n"`, n)) }
	return has(last) && has(number) && !has(next)
}

// HostPID is the number on the host of a container's first process, as the engine itself says.
func (n *Node) HostPID(t T, id string) int {
	t.Helper()
	var pid int
	Eventually(t, 30*time.Second, "the engine to know the container", func() (err error) {
		pid, err = n.engine().hostPID(id)
		if err != nil && n.Shim.Both() {
			pid, err = native{n.Shim}.hostPID(id)
		}
		return err
	})
	return pid
}

// StartTime is field 22 of /proc/PID/stat, which tells a process from a later one of the same number; "" when it is gone.
func StartTime(pid int) string {
	stat := readString("/proc/" + strconv.Itoa(pid) + "/stat")
	end := strings.LastIndexByte(stat, ')')
	if fields := strings.Fields(stat[end+1:]); len(fields) > 19 {
		return fields[19]
	}
	return ""
}
