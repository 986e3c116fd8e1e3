package harness

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Latency is how long calls took.
type Latency struct {
	mu    sync.Mutex
	calls map[string][]time.Duration
}

// Limits of gate LIVE; liveBusy is that of both where others have the machine too, see patience.
const (
	liveP99  = 250 * time.Millisecond
	liveMax  = time.Second
	liveBusy = 20 * time.Second
)

// slowdown is what the race detector costs on a small machine.
func slowdown() time.Duration {
	if os.Getenv("E2E_RACE") != "" {
		return 4
	}
	return 1
}

// Live is gate LIVE: while during breaks something, Version, Status and the lists are answered, or refused as Unavailable, with
// p99 ≤ 250 ms and never later than 1 s, in `make soak`.
func (n *Node) Live(t T, during func()) {
	t.Helper()
	l := &Latency{}
	stop := n.probe(t, l)
	during()
	stop()
	p99, most := liveP99*slowdown(), liveMax*slowdown()
	if patience() > 1 {
		p99, most = liveBusy, liveBusy
	}
	for _, problem := range l.beyond(p99, most) {
		t.Errorf("while something was broken, %s", problem)
	}
}

// probe does the calls of LIVE again and again until stopped.
func (n *Node) probe(t T, l *Latency) (stop func()) {
	done := make(chan struct{})
	var all sync.WaitGroup
	for name, call := range n.liveCalls() {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(50 * time.Millisecond):
				}
				began := time.Now()
				c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				err := call(c)
				cancel()
				l.add(name, time.Since(began))
				if code := Code(err); code != codes.OK && code != codes.Unavailable {
					t.Errorf("%s while something was broken: %v", name, err)
				}
			}
		})
	}
	return func() { close(done); all.Wait() }
}

func (n *Node) liveCalls() map[string]func(context.Context) error {
	r := n.Shim.Runtime
	return map[string]func(context.Context) error{
		"Version": func(c context.Context) error { _, err := r.Version(c, &runtimeapi.VersionRequest{}); return err },
		"Status":  func(c context.Context) error { _, err := r.Status(c, &runtimeapi.StatusRequest{}); return err },
		"ListPodSandbox": func(c context.Context) error {
			_, err := r.ListPodSandbox(c, &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ListContainers": func(c context.Context) error {
			_, err := r.ListContainers(c, &runtimeapi.ListContainersRequest{})
			return err
		},
	}
}

func (l *Latency) add(name string, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		l.calls = map[string][]time.Duration{}
	}
	l.calls[name] = append(l.calls[name], took)
}

// beyond names the calls that took longer. Of fewer than 100 the slowest one is no percentile, and counts as max alone.
func (l *Latency) beyond(p99, most time.Duration) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var problems []string
	for name, took := range l.calls {
		slices.Sort(took)
		if slowest := took[len(took)-1]; slowest > most {
			problems = append(problems, fmt.Sprintf("one of %d calls of %s took %v, more than %v", len(took), name, slowest, most))
		}
		if at := took[len(took)*99/100]; len(took) >= 100 && at > p99 {
			problems = append(problems, fmt.Sprintf("1 in 100 calls of %s took %v or more, the limit is %v", name, at, p99))
		}
	}
	slices.Sort(problems)
	return problems
}

// Converge is gate CONV: now that the fault is gone, right holds within 5 s with no step of an operator, and the pods can be
// stopped and removed in three tries. That nothing is left is NoLeaks's.
func (n *Node) Converge(t T, right func() error, pods ...*Pod) {
	t.Helper()
	Eventually(t, 5*time.Second*slowdown(), "the right state after the fault", right)
	for _, pod := range pods {
		if err := n.End(pod.ID, 3); err != nil {
			t.Errorf("pod %s after the fault: %v", pod.Config.Metadata.Name, err)
		}
	}
}

// End stops and removes a pod in so many tries, with a second between them as the kubelet has.
func (n *Node) End(pod string, tries int) error {
	var err error
	for try := range tries {
		if try > 0 {
			time.Sleep(time.Second)
		}
		c, cancel := context.WithTimeout(context.Background(), time.Minute)
		_, err = n.Shim.Runtime.StopPodSandbox(c, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
		if err == nil {
			_, err = n.Shim.Runtime.RemovePodSandbox(c, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
		}
		cancel()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("stopping and removing in %d tries: %w", tries, err)
}
