package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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

// NAT reads the host's nat tables, as iptables-save prints them, by family; one whose program is not installed, or that the
// kernel does not have, is empty.
func NAT(ctx context.Context) (map[string]string, error) {
	tables := map[string]string{}
	for _, family := range natFamilies() {
		saved, err := savedRules(ctx, family)
		if err != nil {
			return nil, fmt.Errorf("read the nat table of %s: %w", family, err)
		}
		tables[family] = saved
	}
	return tables, nil
}

// savedRules is the nat table of one family, as iptables-save prints it; "" where there is no such program or table.
func savedRules(ctx context.Context, family string) (string, error) {
	save, err := exec.LookPath(family + "-save")
	if err != nil {
		return "", nil
	}
	saved, messages, err := runPlugin(ctx, save, nil, nil, "-t", "nat")
	if hasNoRules(err, messages) {
		return "", nil
	}
	return string(saved), err
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
func LeakedRules(table, network, podID string) string { return leakedRules(table, network, podID) }
