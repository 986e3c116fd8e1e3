package bench

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"crishim/e2e/harness"
)

// The sides in the order of their columns.
const (
	ours = iota
	docker
	cni
	peer
	sideCount
)

// settle is how long each side waits for the machine before its turn.
const settle = 2 * time.Second

// lifecycle measures whole lives of pods by all sides in turns: rounds of count pods, clients at a time.
func (n *bench) lifecycle(series string, count, clients, rounds int) {
	n.b.Helper()
	n.b.Logf("%s: %d rounds of %d pods", series, rounds, count)
	all := map[string]*[sideCount]samples{}
	for _, op := range operations {
		all[op] = &[sideCount]samples{}
	}
	for round := range rounds {
		for turn := range sideCount {
			// Each round begins with another side, and every second one goes backwards, so that none always follows the same.
			which := (round + turn) % sideCount
			if round%2 == 1 {
				which = sideCount - 1 - which
			}
			s := n.sides[which]
			if s == nil {
				continue
			}
			resume := n.aside(which)
			time.Sleep(settle) // what the kernel still takes away of the pods before is nobody's cost
			lives, err := live(s, count, clients)
			resume()
			if err != nil {
				n.b.Fatalf("%s, round %d, side %d: %v", series, round, which, err)
			}
			for _, op := range operations {
				var list []float64
				for _, t := range lives {
					if v, ok := t[op]; ok {
						list = append(list, v)
					}
				}
				all[op][which] = append(all[op][which], list)
			}
		}
	}
	for _, op := range operations {
		s := all[op]
		r := &row{name: op + ", " + series, unit: "ms", ours: s[ours], floor: s[docker], peer: s[peer]}
		if len(s[cni].all()) > 0 {
			r.cni = s[cni]
		}
		if clients == 1 {
			r.calls = n.calls[op]
		}
		r.goals = lifecycleGoals(op, clients)
		n.rows = append(n.rows, r)
	}
}

func lifecycleGoals(op string, clients int) []goal {
	if harness.Native() {
		return nativeGoals(op, clients)
	}
	margin := 0.0
	if op == opRemove || op == opRemovePod {
		margin = 2
	}
	if clients > 1 {
		return []goal{asPeer(margin)} // the sum of two sides under load is no bound
	}
	if op == opRunPod || op == opToRunning {
		return []goal{withinRatio(1.05), asPeer(margin)}
	}
	if op == opToGone {
		return []goal{asPeer(0)}
	}
	return []goal{within(3), asPeer(margin)}
}

// live makes count pods, then runs a command in each, then ends them, clients at a time.
func live(s side, count, clients int) ([]times, error) {
	pods, lives := make([]any, count), make([]times, count)
	for i := range lives {
		lives[i] = times{}
	}
	for _, phase := range []func(i int) error{
		func(i int) (err error) { pods[i], err = s.start(lives[i]); return err },
		func(i int) error { return s.exec(pods[i], lives[i]) },
		func(i int) error { return s.end(pods[i], lives[i]) },
	} {
		if err := each(count, clients, phase); err != nil {
			return nil, err
		}
	}
	for _, t := range lives {
		t[opToGone] = t[opStop] + t[opRemove] + t[opStopPod] + t[opRemovePod]
	}
	return lives, nil
}

// each does count things, so many at a time.
func each(count, clients int, do func(i int) error) error {
	errs := make([]error, count)
	next := make(chan int)
	var workers sync.WaitGroup
	for range clients {
		workers.Go(func() {
			for i := range next {
				errs[i] = do(i)
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	workers.Wait()
	return errors.Join(errs...)
}

// countCalls has crishim do each operation through the proxy and notes what it asked of Docker, what follows in the
// background included. It keeps the bodies of the creations.
func (n *bench) countCalls() {
	n.b.Helper()
	p := startProxy(n.b, n.node.Docker.Socket)
	n.node.Shim.Reconfigure(map[string]any{"docker": map[string]any{"endpoint": "unix://" + p.socket}})
	n.node.Shim.Restart()
	crishim := *n.cri(n.node.Shim.Client, n.image)
	life := func() {
		if _, err := live(&crishim, 1, 1); err != nil {
			n.b.Fatalf("counting requests to Docker: %v", err)
		}
	}
	life() // what is looked up once only
	p.take()
	fewest := map[string]int{}
	crishim.after = func(op string) {
		time.Sleep(500 * time.Millisecond)
		// Of several lives the one counts in which nothing came between, such as a measurement of the disk.
		if total, requests := p.take(); fewest[op] == 0 || total < fewest[op] {
			fewest[op] = total
			n.calls[op], n.details[op] = strconv.Itoa(total), strings.Join(requests, ", ")
		}
	}
	for range 3 {
		life()
	}
	n.bodies = p.bodies
	n.node.Shim.Reconfigure(map[string]any{"docker": map[string]any{"endpoint": n.node.Docker.Endpoint()}})
	n.node.Shim.Restart()
}

// aside stops crishim while a peer works: both would look after the same containers. It returns the end of that.
func (n *bench) aside(which int) (resume func()) {
	if which != peer || !n.sameEngine {
		return func() {}
	}
	n.node.Shim.Pause()
	return func() {
		n.node.Shim.Resume()
		n.node.Shim.WaitReady()
		harness.Eventually(n.b, 20*time.Second, "crishim to forget the peer's pods", func() error {
			if pods := n.listed(n.node.Shim.Client); pods > n.pods {
				return fmt.Errorf("it lists %d", pods)
			}
			return nil
		})
	}
}
