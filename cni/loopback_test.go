package cni

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Rows: S64 (part)
func TestLoopbackIsGuardedOnce(t *testing.T) {
	inOwnNetwork(t)
	for range 3 {
		if err := (kernelNamespaces{}).guardLoopback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rules := func() string {
		t.Helper()
		out, err := exec.Command("iptables-save", "-t", "raw").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := rules(); strings.Count(got, "-A PREROUTING") != 1 || !strings.Contains(got, "-A PREROUTING -d 127.0.0.0/8 ! -i lo") || !strings.Contains(got, "-j DROP") {
		t.Errorf("rules:\n%s", got)
	}
	if out, err := exec.Command("iptables", "-t", "raw", "-F").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := (kernelNamespaces{}).guardLoopback(t.Context()); err != nil || strings.Count(rules(), "-A PREROUTING") != 1 {
		t.Errorf("after a flush: %v, %s", err, rules())
	}
}

// Where others hold the lock of iptables for longer than it is waited for, nothing is known of the rule, and it must not be there once
// more with each pod.
func TestTheGuardIsNotRepeatedWhereItCannotBeLookedFor(t *testing.T) {
	for status, want := range map[string]string{"0": "-C", "1": "-C -A", "4": "-C"} {
		dir := t.TempDir()
		did := filepath.Join(dir, "did")
		script := "#!/bin/sh\necho \"$5\" >>" + did + "\n[ \"$5\" != -C ] || exit " + status + "\n"
		if err := os.WriteFile(filepath.Join(dir, "iptables"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		err := (kernelNamespaces{}).guardLoopback(t.Context())
		got, readErr := os.ReadFile(did)
		if told := strings.Join(strings.Fields(string(got)), " "); told != want || (err != nil) != (status == "4") || readErr != nil {
			t.Errorf("-C ends with %s: %q was done, %v", status, told, errors.Join(err, readErr))
		}
	}
}

// An iptables that hangs in the kernel, where nothing ends it, must hold nobody but its pod.
func TestTheGuardIsNotWaitedForLongerThanThePodHasTime(t *testing.T) {
	unlock, err := guarding.Lock(t.Context(), struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (kernelNamespaces{}).guardLoopback(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("while another pod's is looked for: %v", err)
	}
}

func TestLoopbackIsGuardedWithNftAlone(t *testing.T) {
	inOwnNetwork(t)
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skipf("needs nft: %v", err)
	}
	for range 3 {
		if err := runRule(t.Context(), nft, []byte(loopbackTable), "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(nft, "list", "table", "ip", "crishim").Output()
	if err != nil || strings.Count(string(out), "drop") != 1 {
		t.Errorf("%s, %v", out, err)
	}
}

func TestLoopbackIsGuardedForPodsWithHostPorts(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	mustAdd(t, n, "pod1") // testPod has a host port
	if n.ns.guards.Load() != 1 {
		t.Errorf("guarded %d times for a pod with a host port", n.ns.guards.Load())
	}
	pod := testPod("pod2")
	pod.Ports = []PortMapping{{ContainerPort: 80}}
	planned, err := n.Plan(pod)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Add(t.Context(), planned); err != nil || n.ns.guards.Load() != 1 {
		t.Errorf("a pod without one: %v, guarded %d times", err, n.ns.guards.Load())
	}
}
