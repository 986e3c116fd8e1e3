package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// hostRoot is above the kernel's files that say what it has; tests have kernels of other kinds.
var hostRoot = "/"

// natFamilies are the families of NAT tables. A kernel without IPv6 (ipv6.disable=1) has none of it, and ip6tables only fails there.
func natFamilies() []string {
	if _, err := os.Stat(filepath.Join(hostRoot, "proc/net/if_inet6")); errors.Is(err, fs.ErrNotExist) {
		return []string{"iptables"}
	}
	return []string{"iptables", "ip6tables"}
}

// NAT reads what the host's nat tables have of pods, as iptables-save prints it, by family; one whose program is not
// installed, or that the kernel does not have, is empty. The rest, of which services make any amount, is left out.
func NAT(ctx context.Context) (map[string]string, error) {
	tables := map[string]string{}
	for _, family := range natFamilies() {
		var table strings.Builder
		err := readRules(ctx, family, func(saved iter.Seq[string]) {
			for line := range saved {
				if ofPods(line) {
					table.WriteString(line + "\n")
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read the nat table of %s: %w", family, err)
		}
		tables[family] = table.String()
	}
	return tables, nil
}

// ofPods says that a chain or rule may be one that plugins, or dockershim, make for pods.
func ofPods(line string) bool {
	marks := []string{"CNI-", `name: \"`, kubeHostPorts, kubeHostPortPrefix}
	return slices.ContainsFunc(marks, func(mark string) bool { return strings.Contains(line, mark) })
}

// readRules has read go through the nat table of one family, as iptables-save prints it; through nothing where there is no
// such program or table. The table may be of any size: kube-proxy makes some rules for each endpoint of the cluster.
func readRules(ctx context.Context, family string, read func(saved iter.Seq[string])) error {
	save, err := exec.LookPath(family + "-save")
	if err != nil {
		return nil
	}
	messages, err := readLines(ctx, read, save, "-t", "nat")
	if hasNoRules(err, messages) {
		return nil
	}
	return err
}

// absences are how iptables-save and nft end, and what they say, where the kernel or the program itself has not what they were
// to list, so that nobody can have made a rule in it. All else that ends them (no rights, no memory, a table that others
// change, a library that is missing) says nothing of the rules.
var absences = []struct {
	status  int
	message string
	module  string // that must not be loaded: the kernel answers a request that it cannot read in the same words
}{
	// iptables-legacy: no such family, no such table, nothing in the kernel to ask.
	{1, "Cannot initialize: Address family not supported by protocol", ""},
	{1, "Cannot initialize: Table does not exist", ""},
	{1, "Cannot initialize: iptables who?", ""},
	{1, "Cannot initialize: ip6tables who?", ""},
	// iptables-nft.
	{1, "Failed to initialize nft: Protocol not supported", ""},
	{4, "Could not fetch rule set generation id: Invalid argument", "nf_tables"},
	{4, "Could not fetch rule set generation id: Operation not supported", "nf_tables"},
	// nft. Plugins make no rule with one that has no JSON: they list theirs before.
	{1, "JSON support not compiled-in", ""},
	{1, "invalid option -- 'j'", ""},
	{3, "Unable to initialize Netlink socket: Protocol not supported", ""},
	{1, "cache initialization failed: Invalid argument", "nf_tables"},
	{1, "cache initialization failed: Operation not supported", "nf_tables"},
	{1, "Error: No such file or directory", ""},
}

// hasNoRules says that a program which was to list rules has failed because there are none, with certainty.
func hasNoRules(err error, messages []byte) bool {
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		return false
	}
	for _, a := range absences {
		if ended.ExitCode() == a.status && bytes.Contains(messages, []byte(a.message)) {
			return a.module == "" || !loaded(a.module)
		}
	}
	return false
}

func loaded(module string) bool {
	_, err := os.Stat(filepath.Join(hostRoot, "sys/module", module))
	return !errors.Is(err, fs.ErrNotExist)
}

// ChangeNAT applies a script of iptables-restore to one family, in one transaction, and leaves all other rules.
func ChangeNAT(ctx context.Context, family, script string) error {
	restore, err := exec.LookPath(family + "-restore")
	if err != nil {
		return err
	}
	if _, _, err = runPlugin(ctx, restore, []byte(script), nil, "--noflush", "--wait", "5"); err != nil {
		return fmt.Errorf("change the nat table of %s: %w", family, err)
	}
	return nil
}

// LeakedRules is the script that takes away what the plugins made in a nat table for one pod on one network; "" where that is nothing.
func LeakedRules(table, network, podID string) string {
	return leakedRules(strings.SplitSeq(table, "\n"), network, podID)
}
