package cni

import (
	"context"
	"fmt"
	"os/exec"
)

// The families of NAT tables.
var natFamilies = []string{"iptables", "ip6tables"}

// NAT reads the host's nat tables, as iptables-save prints them, by family; one whose program is not installed has none.
func NAT(ctx context.Context) (map[string]string, error) {
	tables := map[string]string{}
	for _, family := range natFamilies {
		save, err := exec.LookPath(family + "-save")
		if err != nil {
			continue
		}
		rules, _, err := runPlugin(ctx, save, nil, nil, "-t", "nat")
		if err != nil {
			return nil, fmt.Errorf("read the nat table of %s: %w", family, err)
		}
		tables[family] = string(rules)
	}
	return tables, nil
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
