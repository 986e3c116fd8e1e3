package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// checkPreflight runs crishim preflight and returns the addresses that it tells of pods. want is what the kubelet will do.
func checkPreflight(t *testing.T, n *harness.Node, old *harness.OldShim, want map[string]string) map[string]string {
	t.Helper()
	out, code := n.Shim.Command("preflight", "--config="+n.Shim.ConfigFile, "--shim-root="+old.Root, "--cni-cache-dir="+old.Cache, "--output=json")
	var report struct {
		Verdict  int
		Findings []struct{ ID, Severity, Subject string }
		Pods     []struct {
			ID, Kubelet string
			IPs, Why    []string
			Adoptable   bool
			HostPorts   int
		}
		ForeignContainers int
	}
	if err := json.Unmarshal([]byte(out[max(0, strings.IndexByte(out, '{')):]), &report); err != nil || code != report.Verdict {
		t.Fatalf("preflight: %v, status %d:\n%s", err, code, out)
	}
	addresses := map[string]string{}
	for _, p := range report.Pods {
		if p.Kubelet != want[p.ID] || !p.Adoptable {
			t.Errorf("preflight says %+v, want %q", p, want[p.ID])
		}
		addresses[p.ID] = strings.Join(p.IPs, ",")
	}
	if len(report.Pods) != len(want) || report.ForeignContainers == 0 {
		t.Errorf("preflight tells of %d pods and %d containers of others", len(report.Pods), report.ForeignContainers)
	}
	return addresses
}

// checkObserver asks a daemon that only observes. want are addresses of pods; "" is some address.
func checkObserver(t *testing.T, n *harness.Node, want map[string]string, log string) {
	t.Helper()
	link, err := os.Readlink(log)
	if err != nil {
		t.Fatal(err)
	}
	observer, end := n.Shim.Observe(t)
	for id, ip := range want {
		r, err := observer.Runtime.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Status.GetNetwork().GetIp(); got == "" || ip != "" && got != ip {
			t.Errorf("the observer says that pod %s has the address %q, want %q", id, got, ip)
		}
		if _, err := observer.Runtime.StopPodSandbox(ctx(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); harness.Code(err) != codes.FailedPrecondition {
			t.Errorf("the observer was told to stop a pod: %v", err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), filepath.Join(n.Shim.RunDir, "observe")) {
		t.Errorf("the observer has mounted something, %v", err)
	}
	end()
	if now, err := os.Readlink(log); err != nil || now != link {
		t.Errorf("the log was a link to %q and is one to %q, %v", link, now, err)
	}
	if _, err := os.Stat(filepath.Join(n.Shim.RunDir, "observe")); !os.IsNotExist(err) {
		t.Errorf("the observer's folder is left: %v", err)
	}
}

// checkVerify plants what a pod that never was could have left, beside a living one, and has crishim verify find and mend it.
func checkVerify(t *testing.T, n *harness.Node, old *harness.OldShim, living *harness.Pod) {
	t.Helper()
	dead := strings.Repeat("d", 64)
	entries, err := filepath.Glob(filepath.Join(old.Cache, "results", n.CNI.Network+"-"+living.ID+"-*"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("results of the living pod: %v, %v", entries, err)
	}
	content, err := os.ReadFile(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	result := strings.ReplaceAll(entries[0], living.ID, dead)
	if err := os.WriteFile(result, []byte(strings.ReplaceAll(string(content), living.ID, dead)), 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(result, long, long); err != nil {
		t.Fatal(err)
	}
	stale := strings.Repeat("e", 64)
	rule := fmt.Sprintf(`*nat
:CNI-DN-e2e0verify0000000000 - [0:0]
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"%s\" id: \"%s\"" -m multiport --dports 18099 -j CNI-DN-e2e0verify0000000000
COMMIT
`, n.CNI.Network, stale)
	restore := exec.Command("iptables-restore", "--noflush")
	restore.Stdin = strings.NewReader(rule)
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		_ = exec.Command("iptables", "-t", "nat", "-F", "CNI-DN-e2e0verify0000000000").Run()
		_ = exec.Command("iptables", "-t", "nat", "-X", "CNI-DN-e2e0verify0000000000").Run()
	})
	type problem struct {
		Kind, Subject, Failed string
		Proved, Mended        bool
	}
	// Others on this machine may have left things of their own.
	ours := func(args ...string) (found []problem) {
		out, _ := n.Shim.Command(append([]string{"verify", "--config=" + n.Shim.ConfigFile, "--output=json"}, args...)...)
		var all []problem
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("verify: %v:\n%s", err, out)
		}
		for _, p := range all {
			if strings.Contains(p.Subject, n.CNI.Network) || strings.Contains(p.Subject, old.Cache) {
				found = append(found, p)
			}
		}
		return found
	}
	found := ours()
	kinds := []string{}
	for _, p := range found {
		kinds = append(kinds, p.Kind)
		if !p.Proved || p.Mended {
			t.Errorf("verify says %+v", p)
		}
	}
	if want := []string{"cni-result", "dnat"}; !slices.Equal(kinds, want) {
		t.Errorf("verify finds %+v, want %q", found, want)
	}
	for _, p := range ours("--fix") {
		if !p.Mended {
			t.Errorf("verify --fix says %+v", p)
		}
	}
	if left := ours(); len(left) > 0 {
		t.Errorf("after verify --fix there is %+v", left)
	}
	if _, err := os.Stat(result); !os.IsNotExist(err) {
		t.Errorf("the result is left: %v", err)
	}
	if now, err := os.ReadFile(entries[0]); err != nil || string(now) != string(content) {
		t.Errorf("the living pod's result was changed: %v", err)
	}
	rules, err := exec.Command("iptables-save", "-t", "nat").Output()
	if err != nil || !strings.Contains(string(rules), living.ID) || strings.Contains(string(rules), stale) {
		t.Errorf("%v, the rules are\n%s", err, rules)
	}
}
