package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"crishim/e2e/harness"
)

// With E2E_ENGINE=native crishim is the engine: there is no Docker column, and own is CNI's time alone. The peer is a
// containerd, by containerd.sh, whose shims are what the monitors are here.

// nativeGoals are shares of containerd's time.
func nativeGoals(op string, clients int) []goal {
	if clients > 1 {
		if op == opToRunning {
			return []goal{within(200)}
		}
		return []goal{asPeer(0)}
	}
	share := map[string]float64{
		opRunPod: 0.5, opCreate: 0.45, opStart: 0.45, opToRunning: 0.48, opExec: 0.35, opStop: 0.5, opStopPod: 0.8, opRemovePod: 0.5,
	}[op]
	if share == 0 {
		return []goal{asPeer(0)}
	}
	return []goal{ofPeer(share)}
}

// mostRSS is the daemon's bound in MiB: the native one is the engine too.
func mostRSS() float64 {
	if harness.Native() {
		return 60
	}
	return 52
}

// monitors are the processes that crishim keeps for its pods: their messages go to a file in its run folder.
func (n *bench) monitors() []int {
	dir := filepath.Join(n.node.Shim.RunDir, "native", "monitors") + "/"
	return processes(func(proc string) bool {
		log, err := os.Readlink(filepath.Join(proc, "fd", "2"))
		command, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		return err == nil && strings.HasPrefix(log, dir) && strings.HasPrefix(string(command), "crishim-monitor")
	})
}

// peerEnginePIDs are what the peer has running beside itself: the engine that it shares with crishim, or its shims.
func (n *bench) peerEnginePIDs(engine []int) []int {
	if n.sameEngine {
		return engine
	}
	return processes(func(proc string) bool {
		command, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		program, _, _ := strings.Cut(string(command), "\x00")
		dir, _ := os.Readlink(filepath.Join(proc, "cwd")) // of a shim, in its containerd's state
		return strings.HasPrefix(filepath.Base(program), "containerd-shim") && strings.HasPrefix(dir, n.peerDir+"/")
	})
}

func processes(which func(proc string) bool) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && which(dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// perPod is what crishim, and the peer, keep running for a pod of one container.
func (n *bench) perPod(count int, suffix string) *row {
	r := single("PSS kept running for a pod"+suffix, "MiB", pss(n.monitors())/float64(count), atMost(3))
	if n.peer != nil && n.peerDir != "" && !n.sameEngine {
		r.peer = samples{{pss(n.peerEnginePIDs(nil)) / float64(count)}}
	}
	return r
}

// pss is the share of memory, in MiB, that processes hold together.
func pss(pids []int) (total float64) {
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		_, rest, _ := strings.Cut(string(data), "\nPss:")
		var kib float64
		_, _ = fmt.Sscan(rest, &kib) // of one that has ended: 0
		total += kib / 1024
	}
	return total
}
