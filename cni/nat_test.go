package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// programs makes shell scripts the only programs that are found, each in the place of the one that has its name.
func programs(t *testing.T, scripts map[string]string) {
	t.Helper()
	bin := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
}

// fails is a script that ends as a program does which cannot do its work.
func fails(status int, message string) string {
	return fmt.Sprintf("echo '%s' >&2\nexit %d", strings.ReplaceAll(message, "'", `'\''`), status)
}

// kernel has these files only, of those that say what a kernel has.
func kernel(t *testing.T, files ...string) {
	t.Helper()
	was, dir := hostRoot, t.TempDir()
	for _, file := range files {
		if err := os.MkdirAll(filepath.Join(dir, file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	hostRoot = dir
	t.Cleanup(func() { hostRoot = was })
}

const (
	withIPv6     = "proc/net/if_inet6"
	withNFTables = "sys/module/nf_tables"
)

// Rows: R24 (part), R41 (part)
func TestDelOfADeadPodEndsWhereTheKernelHasNoIPv6(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	n.ns.gone[added[0].NetNSPath] = true
	kernel(t)
	programs(t, map[string]string{
		"iptables-save": "", "iptables-restore": "",
		"ip6tables-save":    fails(1, "ip6tables-save: whatever it says"),
		"ip6tables-restore": "",
	})
	if err := n.Del(t.Context(), added); err != nil {
		t.Error(err)
	}
	if tables, err := NAT(t.Context()); err != nil || tables["ip6tables"] != "" {
		t.Errorf("tables %q, %v", tables, err)
	}
}

// Rows: R41 (part)
func TestWhatTheKernelDoesNotHaveHasNoRules(t *testing.T) {
	none := map[string][]string{
		"iptables-save": {
			fails(1, "iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)"),
			fails(1, "modprobe: FATAL: Module ip_tables not found in directory /lib/modules/6.18.0\niptables-save v1.8.9 (legacy): Cannot initialize: iptables who? (do you need to insmod?)"),
			fails(1, "iptables-save/1.8.9 Failed to initialize nft: Protocol not supported"),
			fails(4, "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument"),
		},
		"ip6tables-save": {
			fails(1, "ip6tables-save v1.8.4 (legacy): Cannot initialize: Address family not supported by protocol"),
			fails(1, "ip6tables-save v1.6.0: Cannot initialize: Table does not exist (do you need to insmod?)"),
		},
		"nft": {
			fails(1, "JSON support not compiled-in"),
			fails(1, "/usr/sbin/nft: invalid option -- 'j'"),
			fails(3, "netlink.c:84: Unable to initialize Netlink socket: Protocol not supported"),
			fails(1, "netlink: Error: cache initialization failed: Invalid argument"),
			fails(1, "netlink: Error: cache initialization failed: Operation not supported"),
			// The table is there, and was made by somebody else or is just going.
			`case "$*" in *"list tables") echo '{"nftables":[{"table":{"family":"inet","name":"` + masqTable + `"}}]}';; *) ` +
				strings.ReplaceAll(fails(1, "Error: No such file or directory"), "\n", "; ") + `;; esac`,
		},
	}
	kernel(t, withIPv6)
	for program, scripts := range none {
		for _, script := range scripts {
			programs(t, map[string]string{program: script, "iptables-restore": fails(1, "asked to change"), "ip6tables-restore": fails(1, "asked to change")})
			if err := removeLeakedRules(t.Context(), &Attachment{PodID: "pod1", Network: "net", IfName: "eth0"}); err != nil {
				t.Errorf("%s: %s\n%v", program, script, err)
			}
			if _, err := NAT(t.Context()); err != nil {
				t.Errorf("%s: %s\n%v", program, script, err)
			}
		}
	}
}

// Rows: R38 (part)
func TestRulesThatCannotBeListedNowAreNotTakenForNone(t *testing.T) {
	unknown := map[string][]string{
		"iptables-save": {
			fails(1, "iptables-save v1.8.9 (legacy): Cannot initialize: Resource temporarily unavailable"),
			fails(1, "iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)"),
			fails(1, "iptables-save v1.8.9 (legacy): Cannot initialize: Memory allocation problem"),
			fails(1, "iptables-save v1.8.9 (legacy): Cannot initialize: Module is wrong version"),
			fails(1, "iptables-save/1.8.9 Failed to initialize nft: Too many open files"),
			fails(4, "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?"),
			fails(4, "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)"),
			fails(4, "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument"),
			fails(127, "iptables-save: error while loading shared libraries: libip4tc.so.2: cannot open shared object file: No such file or directory"),
			fails(1, ""),
			"kill -9 $$",
		},
		"nft": {
			fails(1, "netlink: Error: cache initialization failed: Resource temporarily unavailable"),
			fails(1, "netlink: Error: cache initialization failed: Operation not permitted"),
			fails(1, "netlink: Error: cache initialization failed: Invalid argument"),
			fails(3, "netlink.c:84: Unable to initialize Netlink socket: Too many open files"),
			fails(127, "nft: error while loading shared libraries: libnftables.so.1: cannot open shared object file: Error: No such file or directory"),
			fails(1, ""),
		},
	}
	kernel(t, withIPv6, withNFTables)
	for program, scripts := range unknown {
		for _, script := range scripts {
			programs(t, map[string]string{program: script, "iptables-restore": ""})
			if err := removeLeakedRules(t.Context(), &Attachment{PodID: "pod1", Network: "net", IfName: "eth0"}); err == nil {
				t.Errorf("%s: %s\nwas taken for a table without rules", program, script)
			}
		}
	}
}

// Rows: R38 (part)
func TestRulesThatCannotBeRemovedStayOwed(t *testing.T) {
	kernel(t, withIPv6)
	chain := hashed(28, "CNI-", "net"+"pod1")
	programs(t, map[string]string{
		"iptables-save":    "echo '*nat'\necho ':" + chain + " - [0:0]'\necho COMMIT",
		"iptables-restore": fails(1, "iptables-restore v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)"),
	})
	err := removeLeakedRules(t.Context(), &Attachment{PodID: "pod1", Network: "net", IfName: "eth0"})
	if err == nil || !strings.Contains(err.Error(), "iptables-restore") {
		t.Errorf("error %v", err)
	}
}

// Rows: R38 (part)
func TestRulesAreFoundInATableOfAnySize(t *testing.T) {
	n := newNode(t)
	n.opts.DelTimeout = DefaultDelTimeout // as on a node: there is much to read
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	added := mustAdd(t, n, "pod1")
	n.ns.gone[added[0].NetNSPath] = true
	added[0].KubeHostPorts = kubeHostPortsOfPod1
	mine := hashed(28, "CNI-", "net"+"pod1")
	jump := `POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"net\" id: \"pod1\"" -j ` + mine
	hostPort := kubeHostPortChain("pod1", kubeHostPortsOfPod1[0])
	services := func(prefix string) string {
		return strings.Repeat(prefix+`KUBE-SEP-ABCDEFGHIJKLMNOP -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.123.45:8080`+"\n", maxResult/100)
	}
	table := filepath.Join(t.TempDir(), "table")
	text := "*nat\n:" + mine + " - [0:0]\n:" + hostPort + " - [0:0]\n" + services("-A ") + "-A " + jump + "\n" + services("-A ") + "-A " + mine + " -j ACCEPT\nCOMMIT\n"
	if err := os.WriteFile(table, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	kernel(t)
	programs(t, map[string]string{"iptables-save": "exec /bin/cat " + table, "iptables-restore": "exec /bin/cat >>" + table + ".changes"})
	if err := n.Del(t.Context(), added); err != nil {
		t.Fatal(err)
	}
	want := "*nat\n-D " + jump + "\n-F " + mine + "\n-X " + mine + "\nCOMMIT\n" + "*nat\n-F " + hostPort + "\n-X " + hostPort + "\nCOMMIT\n"
	if changes, err := os.ReadFile(table + ".changes"); err != nil || string(changes) != want {
		t.Errorf("changes, %v:\n%s\nwant\n%s", err, changes, want)
	}
	tables, err := NAT(t.Context())
	if err != nil || strings.Contains(tables["iptables"], "KUBE-SEP-") {
		t.Fatalf("%d bytes are kept, %v", len(tables["iptables"]), err)
	}
	if script := LeakedRules(tables["iptables"], "net", "pod1"); !strings.Contains(script, "-D "+jump+"\n") || !strings.Contains(script, "-X "+mine+"\n") {
		t.Errorf("script\n%s", script)
	}
}

// A DEL that was cut off has taken the interface away: the plugins of the next one do not find their rules, although the namespace lives.
func TestRulesOfAPodWithoutItsInterfaceAreRemoved(t *testing.T) {
	n := newNode(t)
	n.plugins("p1")
	n.write("10.conflist", n.list("net", "1.0.0", nil, "p1"))
	n.reload()
	whole, cut := mustAdd(t, n, "pod1"), mustAdd(t, n, "pod2")
	changes := filepath.Join(t.TempDir(), "changes")
	kernel(t)
	table := "*nat\n:" + hashed(28, "CNI-", "net"+"pod1") + " - [0:0]\n:" + hashed(28, "CNI-", "net"+"pod2") + " - [0:0]\nCOMMIT"
	programs(t, map[string]string{
		"iptables-save":    "echo '" + table + "'",
		"iptables-restore": "test \"$1\" = --noflush || exit 1 # it would empty the node's table\nexec /bin/cat >>" + changes,
	})
	if err := n.Del(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(changes); err == nil {
		t.Errorf("rules that the plugins find themselves were removed: %s", data)
	}
	n.ns.bare = true
	if err := n.Del(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	chain := hashed(28, "CNI-", "net"+"pod2")
	if data, err := os.ReadFile(changes); err != nil || string(data) != "*nat\n-F "+chain+"\n-X "+chain+"\nCOMMIT\n" {
		t.Errorf("changes %q, %v", data, err)
	}
}

func TestALineBeyondTheLimitIsAnErrorThatNamesIt(t *testing.T) {
	line := filepath.Join(t.TempDir(), "line")
	if err := os.WriteFile(line, []byte(strings.Repeat("x", 4*maxLine)), 0o600); err != nil {
		t.Fatal(err)
	}
	kernel(t)
	programs(t, map[string]string{"iptables-save": "exec /bin/cat " + line})
	if _, err := NAT(t.Context()); err == nil || !strings.Contains(err.Error(), fmt.Sprint(maxLine)) {
		t.Errorf("error %v", err)
	}
}
