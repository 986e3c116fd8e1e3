package e2e

import (
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"crishim/e2e/harness"
)

// A soakFault breaks something for a while and mends it again. It runs in the test's own goroutine: the harness ends the test
// where it cannot mend.
type soakFault struct {
	name string
	do   func(s *soak, r *rand.Rand)
}

// soakFaults are those of every engine, and those of the one that the tests run on.
func soakFaults() []soakFault {
	common := []soakFault{
		{"kill -9 of the daemon", func(s *soak, _ *rand.Rand) { s.n.Shim.KillAndRestart() }},
		{"failing CNI plugin", func(s *soak, r *rand.Rand) {
			list := s.n.CNI.List(false)
			list["plugins"] = append(slices.Clone(list["plugins"].([]any)), map[string]any{"type": "soak-failing"})
			s.n.Live(s.t, func() {
				s.n.CNI.Write(s.n.CNI.ConfFile, list)
				pauseFor(r, 3*time.Second)
				s.n.CNI.Write(s.n.CNI.ConfFile, s.n.CNI.List(false))
			})
			s.n.Shim.WaitReady()
		}},
		{"full disk of the daemon", func(s *soak, r *rand.Rand) {
			s.n.Live(s.t, func() {
				s.root.Fill()
				pauseFor(r, 5*time.Second)
				s.root.Empty()
			})
		}},
		{"kill -9 of the daemon on a full disk", func(s *soak, r *rand.Rand) {
			s.root.Fill()
			s.n.Shim.KillAndRestart()
			pauseFor(r, 3*time.Second)
			s.root.Empty()
		}},
	}
	if harness.Native() {
		return append(common, nativeSoakFaults...)
	}
	return append(common, dockerSoakFaults...)
}

var dockerSoakFaults = []soakFault{
	{"kill -9 of dockerd", func(s *soak, r *rand.Rand) {
		s.n.Live(s.t, func() {
			s.n.Docker.Kill()
			pauseFor(r, 3*time.Second)
			s.n.Docker.Start()
		})
		s.n.Shim.WaitReady()
	}},
	{"SIGSTOP of dockerd", func(s *soak, r *rand.Rand) {
		s.n.Live(s.t, func() {
			most := 6 * time.Second
			if r.IntN(2) == 0 {
				most = 20 * time.Second // it is away after 12 s
			}
			s.n.Docker.Pause()
			pauseFor(r, most)
			s.n.Docker.Resume()
		})
		s.n.Shim.WaitReady()
	}},
	{"restart of dockerd", func(s *soak, _ *rand.Rand) {
		s.n.Live(s.t, s.n.Docker.Restart)
		s.n.Shim.WaitReady()
	}},
	{"containers removed behind our back", func(s *soak, r *rand.Rand) { s.behindOurBack(r, "DELETE", "?force=1") }},
	{"containers killed behind our back", func(s *soak, r *rand.Rand) { s.behindOurBack(r, "POST", "/kill") }},
}

var nativeSoakFaults = []soakFault{
	{"restart of the daemon", func(s *soak, _ *rand.Rand) { s.n.Shim.Restart() }},
	{"kill -9 of monitors", func(s *soak, r *rand.Rand) { s.n.Live(s.t, func() { s.signalMonitors(r, syscall.SIGKILL) }) }},
	{"kill -9 of monitors and the daemon", func(s *soak, r *rand.Rand) {
		s.n.Shim.Kill()
		s.signalMonitors(r, syscall.SIGKILL)
		s.n.Shim.Start()
	}},
	{"SIGSTOP of monitors", func(s *soak, r *rand.Rand) {
		s.n.Live(s.t, func() {
			stopped := s.signalMonitors(r, syscall.SIGSTOP)
			pauseFor(r, 6*time.Second)
			for _, m := range stopped {
				m.Signal(syscall.SIGCONT)
			}
		})
	}},
	{"containers killed behind our back", func(s *soak, r *rand.Rand) {
		left := 1 + r.IntN(3)
		s.containers.Range(func(id, _ any) bool {
			if pid := s.n.HostPID(s.t, id.(string)); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
				left--
			}
			return left > 0
		})
	}},
}

// signalMonitors signals up to three monitors, but the one of the pod that nobody touches.
func (s *soak) signalMonitors(r *rand.Rand, signal syscall.Signal) (signalled []harness.Monitor) {
	s.t.Helper()
	monitors := s.n.Monitors()
	r.Shuffle(len(monitors), func(i, j int) { monitors[i], monitors[j] = monitors[j], monitors[i] })
	for _, m := range monitors {
		if len(signalled) < 3 && !strings.HasSuffix(m.Pod, "/"+untouched) && m.Signal(signal) {
			signalled = append(signalled, m)
		}
	}
	return signalled
}

// untouched is the pod that is there from the first to the last fault.
const untouched = "alive"

// behindOurBack does something to up to three containers by the engine itself.
func (s *soak) behindOurBack(r *rand.Rand, method, what string) {
	left := 1 + r.IntN(3)
	s.containers.Range(func(id, _ any) bool {
		_ = s.n.Docker.Try(method, "/containers/"+id.(string)+what) // it may be gone, or not run
		left--
		return left > 0
	})
}

// breakThings goes through the faults in random order, again and again, until the end.
func (s *soak) breakThings(r *rand.Rand) {
	s.n.CNI.AddPlugin(s.t, "soak-failing", `case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","code":100,"msg":"no luck today"}'; exit 1;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`)
	between := time.Second
	if s.report.asked >= time.Minute {
		between = 10 * time.Second
	}
	all := soakFaults()
	for {
		for _, i := range r.Perm(len(all)) {
			time.Sleep(between)
			if s.t.Failed() || !time.Now().Before(s.end) && len(s.faults) > 0 { // however slow the machine is, one
				return
			}
			f := all[i]
			s.broken.Add(1)
			began := time.Now()
			f.do(s, r)
			s.whole.Store(time.Now().UnixNano())
			s.broken.Add(-1)
			s.mu.Lock()
			s.faults[f.name]++
			s.mu.Unlock()
			if s.report.asked >= time.Minute {
				s.t.Logf("%s: %s, mended after %v", time.Now().UTC().Format(time.TimeOnly), f.name, time.Since(began).Round(time.Millisecond))
			}
		}
	}
}

func pauseFor(r *rand.Rand, most time.Duration) { time.Sleep(time.Duration(r.Int64N(int64(most)))) }
