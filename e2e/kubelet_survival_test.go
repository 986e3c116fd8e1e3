package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// survivor is a container that writes numbered lines (testserver log), for gate SURV.
type survivor struct {
	n    *harness.Node
	name string
	// id and log are asked of whoever runs it.
	id, log func(*testing.T) string

	process string
	lines   int
}

// kubeletWitness is a pod that no scenario touches.
const kubeletWitness = `
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: IMAGE, command: [testserver, log, "1"]}`

// watch is a container of a kubelet's pod, as it is now.
func watch(t *testing.T, n *harness.Node, k *harness.Kubelet, pod, container string) *survivor {
	t.Helper()
	s := &survivor{n: n, name: pod,
		id:  func(t *testing.T) string { return k.WaitReady(t, pod).Container(container).ContainerID },
		log: func(t *testing.T) string { return k.Logs(t, pod, container) },
	}
	s.remember(t)
	return s
}

// remember is what the container is to be later.
func (s *survivor) remember(t *testing.T) {
	t.Helper()
	s.process, s.lines = s.first(t), len(s.whole(t))
}

// first is the number and the start time, on the host, of the container's first process.
func (s *survivor) first(t *testing.T) string {
	t.Helper()
	_, id, _ := strings.Cut(s.id(t), "://")
	pid := s.n.HostPID(t, id)
	return fmt.Sprintf("%d of %s", pid, harness.StartTime(pid))
}

// whole is the log's lines but for the one that is being written.
func (s *survivor) whole(t *testing.T) []string {
	t.Helper()
	lines := strings.SplitAfter(s.log(t), "\n")
	return lines[:len(lines)-1]
}

// checkSurvived checks that the same process still runs, and that its log has every line once, whole and in order, and grows.
func (s *survivor) checkSurvived(t *testing.T) {
	t.Helper()
	if now := s.first(t); now != s.process {
		t.Errorf("process %s of pod %s became %s", s.process, s.name, now)
	}
	var log []string
	harness.Eventually(t, 30*time.Second, "the log of pod "+s.name+" to grow", func() error {
		if log = s.whole(t); len(log) <= s.lines {
			return fmt.Errorf("it had %d lines and has %d", s.lines, len(log))
		}
		return nil
	})
	s.lines = len(log)
	for i, line := range log {
		if want := fmt.Sprintf("line %d \n", i); line != want {
			t.Errorf("line %d of the log of pod %s is %q: a line was lost, doubled or torn", i, s.name, line)
			return
		}
	}
}
