//go:build cgo

package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// percentiles reports the median and the 99th percentile of what was measured, in ms.
func percentiles(b *testing.B, took []time.Duration) {
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// parallel runs do b.N times, n at once, and reports how long each took.
func parallel(b *testing.B, n int, do func(worker, round int)) {
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	b.ResetTimer()
	for worker := range n {
		all.Go(func() {
			for round := range (b.N + n - 1) / n {
				start := time.Now()
				do(worker, round)
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	b.StopTimer()
	percentiles(b, took)
}

func limited64(s *specs.Spec) {
	memory, pids, quota := int64(64<<20), int64(100), int64(50_000)
	s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota}
}

func BenchmarkCreateStartExit(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(strconv.Itoa(n)+"-at-once", func(b *testing.B) {
			pods := make([]*pod, n)
			for i := range pods {
				pods[i] = newPod(b)
				pods[i].spec(nil)
			}
			ctx := within(b)
			parallel(b, n, func(worker, round int) {
				p := pods[worker]
				id := "r" + strconv.Itoa(round)
				args := p.args(p.spec(limited64, "/bin/true"), id)
				args.ExitFile = p.config.Dir + "/exit"
				if _, err := p.Create(ctx, id, args); err != nil {
					b.Error(err)
					return
				}
				if _, err := p.Start(ctx, id); err != nil {
					b.Error(err)
					return
				}
				if _, err := p.Wait(ctx, id); err != nil {
					b.Error(err)
					return
				}
				if err := p.Delete(ctx, id); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

func BenchmarkExecTrue(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(strconv.Itoa(n)+"-at-once", func(b *testing.B) {
			p := newPod(b)
			p.run("a", p.args(p.spec(limited64, "/bin/sleep", "1000"), "a"))
			parallel(b, n, func(int, int) {
				if _, exited, err := p.exec(b.Context(), "a", p.process("/bin/true")); err != nil || exited.Code != 0 {
					b.Error(exited, err)
				}
			})
		})
	}
}

func BenchmarkSpawn(b *testing.B) {
	for range b.N {
		newPod(b)
	}
}

// BenchmarkMemory reports the PSS of a monitor, ten of a kind running, after five execs in each container.
func BenchmarkMemory(b *testing.B) {
	for _, containers := range []int{1, 3} {
		b.Run(strconv.Itoa(containers)+"-containers", func(b *testing.B) {
			const pods = 10
			helper := sealed(b)
			b.Cleanup(func() { _ = helper.Close() })
			var all []*pod
			for range pods {
				p := podOf(b, helper)
				all = append(all, p)
				for i := range containers {
					id := "c" + strconv.Itoa(i)
					p.run(id, p.args(p.spec(limited64, "/bin/sleep", "1000"), id))
					for range 5 {
						if _, _, err := p.exec(within(b), id, p.process("/bin/true")); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
			time.Sleep(3 * time.Second) // an idle monitor gives memory back
			total := 0
			for _, p := range all {
				total += pss(b, p.PID())
			}
			b.ReportMetric(float64(total)/pods/1024, "MiB-PSS")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func pss(b *testing.B, pid int) (kib int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			return kib
		}
	}
	b.Fatal("no Pss")
	return 0
}
