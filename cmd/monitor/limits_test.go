//go:build cgo

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine/native/monitor"
)

// knob reads a limit, by its names in both versions of cgroups.
func knob(t *testing.T, state monitor.State, controller, v1, v2 string) string {
	t.Helper()
	path := state.CgroupPaths[""] + "/" + v2
	if dir := state.CgroupPaths[controller]; dir != "" {
		path = dir + "/" + v1
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestUpdateReplacesTheLimits(t *testing.T) {
	p := newPod(t)
	state := p.run("a", p.args(p.spec(limited64, "/bin/sleep", "1000"), "a"))
	memory := func() string { return knob(t, state, "memory", "memory.limit_in_bytes", "memory.max") }
	pids := func() string { return knob(t, state, "pids", "pids.max", "pids.max") }
	if memory() != "67108864" || pids() != "100" {
		t.Fatalf("created with memory %s, pids %s", memory(), pids())
	}
	update := func(r specs.LinuxResources) error {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return p.Update(within(t), "a", data)
	}
	limit := int64(32 << 20)
	if err := update(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if memory() != "33554432" || pids() != "max" {
		t.Fatalf("updated to memory %s, pids %s", memory(), pids())
	}
	// A quota below 1 ms is refused by the kernel, and the limit of before stays.
	more, quota := int64(48<<20), int64(10)
	if err := update(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &more}, CPU: &specs.LinuxCPU{Quota: &quota}}); err == nil {
		t.Fatal("a quota of 10 µs was accepted")
	}
	if memory() != "33554432" {
		t.Fatalf("a refused update left memory %s", memory())
	}
	if err := update(specs.LinuxResources{}); err != nil {
		t.Fatal(err)
	}
	if got := memory(); got != "max" && got != "9223372036854771712" {
		t.Fatalf("lifted to memory %s", got)
	}
	// The devices are as before.
	if _, exited, err := p.exec(within(t), "a", p.process("/bin/sh", "-c", "echo x >/dev/null")); err != nil || exited.Code != 0 {
		t.Fatalf("%+v, %v", exited, err)
	}
}

func TestSeccompProfileCounts(t *testing.T) {
	p := newPod(t)
	exit := p.sh("a", "mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status; true", func(s *specs.Spec) {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}
		s.Process.Args = []string{"/bin/busybox", "sh", "-c", "busybox mkdir /tmp/x 2>&1; busybox grep Seccomp: /proc/self/status"}
	})
	if out := p.output("a"); exit.Code != 0 || !strings.Contains(out, "Operation not permitted") || !strings.Contains(out, "Seccomp:\t2") {
		t.Fatalf("exit %+v: %s", exit, out)
	}
}

// Rows: S55 (part)
func TestProgramThatRunsTheRuntimeCannotOverwriteIt(t *testing.T) {
	p := newPod(t)
	before := must(os.ReadFile(program))
	p.run("a", p.args(p.spec(nil, "/bin/sleep", "1000"), "a"))
	// The classic: /proc/self/exe as the command makes libcontainer's own program run inside.
	_, _, err := p.exec(within(t), "a", p.process("/proc/self/exe"))
	_ = err // however it ends
	for _, script := range []string{"echo x >/proc/self/exe", "for p in /proc/[0-9]*; do echo x >$p/exe; done"} {
		if _, _, err := p.exec(within(t), "a", p.process("/bin/sh", "-c", script)); err != nil {
			t.Fatal(err)
		}
	}
	now := make([]byte, len(before))
	if _, err := p.helper.ReadAt(now, 0); err != nil || string(now) != string(before) {
		t.Fatalf("the helper changed: %v", err)
	}
	if exit := p.sh("b", "exit 3", nil); exit.Code != 3 {
		t.Fatalf("exit %+v", exit)
	}
}

// The daemon carries the helper and links nothing of it: no cgo, no forks of a large process.
func TestDaemonDoesNotLinkTheRuntime(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("where a test's program was built elsewhere there is no source to ask: ", err)
	}
	out, err := exec.Command("go", "list", "-deps", "crishim/cmd/shim").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "github.com/opencontainers/runc") || strings.HasPrefix(line, "crishim/engine/native/run") ||
			strings.HasPrefix(line, "crishim/engine/native/monitor/serve") || strings.HasPrefix(line, "github.com/seccomp") {
			t.Errorf("the daemon imports %s", line)
		}
	}
	out, err = exec.Command("go", "list", "-deps", "-tags", "netgo osusergo seccomp", ".").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		for _, heavy := range []string{"net/http\n", "crypto/tls\n", "google.golang.org/grpc", "k8s.io/", "github.com/prometheus", "crishim/engine\n", "crishim/cni"} {
			if strings.HasPrefix(line, heavy) {
				t.Errorf("the helper imports %s: each start of a container pays for it", strings.TrimSpace(line))
			}
		}
	}
}
