package cni

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os/exec"
	"strconv"
	"strings"
)

// removeLeakedRules removes the masquerading and host-port rules that plugins leave in the host's nat tables when the
// pod's interface was gone before DEL: bridge and ptp (up to 1.9 at least) read the addresses from the interface and,
// where there is none, keep the ipMasq chain and its rules and answer success. Only rules that carry the names of this
// attachment go. A host without iptables or nft has none, nor has one whose kernel has no such tables.
func removeLeakedRules(ctx context.Context, a *Attachment) error {
	errs := []error{removeIptables(ctx, func(saved iter.Seq[string]) string { return leakedRules(saved, a.Network, a.PodID) })}
	if err := removeNft(ctx, a); err != nil {
		errs = append(errs, fmt.Errorf("remove leaked rules of nftables: %w", err))
	}
	return errors.Join(errs...)
}

// removeIptables gives iptables-restore, of each family, what script makes of the rules in the nat table.
func removeIptables(ctx context.Context, script func(saved iter.Seq[string]) string) error {
	var errs []error
	for _, family := range natFamilies() {
		if err := removeOfFamily(ctx, family, script); err != nil {
			errs = append(errs, fmt.Errorf("remove leaked rules of %s: %w", family, err))
		}
	}
	return errors.Join(errs...)
}

func removeOfFamily(ctx context.Context, family string, script func(saved iter.Seq[string]) string) error {
	restore, err := exec.LookPath(family + "-restore")
	if err != nil {
		return nil
	}
	var input string
	if err := readRules(ctx, family, func(saved iter.Seq[string]) { input = script(saved) }); err != nil || input == "" {
		return err
	}
	_, _, err = runPlugin(ctx, restore, []byte(input), nil, "--noflush", "--wait", "5")
	return err
}

// leakedRules makes, from the lines of iptables-save of the nat table, the input of iptables-restore --noflush that takes
// away what belongs to one attachment, in one transaction; "" when there is nothing. Its chains are those whose name the
// plugins derive from network and pod; its rules those within them, those that jump there, and those whose comment says so.
func leakedRules(saved iter.Seq[string], network, podID string) string {
	chains := map[string]bool{
		hashed(28, "CNI-", network+podID):    false, // ipMasq
		hashed(28, "CNI-DN-", network+podID): false, // portmap
		hashed(28, "CNI-SN-", network+podID): false, // portmap before 0.9
	}
	comment := fmt.Sprintf(`name: \"%s\" id: \"%s\"`, network, podID)
	var rules []string
	for line := range saved {
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ = strings.Cut(name, " ")
			if _, ours := chains[name]; ours {
				chains[name] = true
			}
			continue
		}
		rule, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		in, _, _ := strings.Cut(rule, " ")
		if _, ours := chains[in]; ours {
			continue // goes with its chain
		}
		_, jumpsHere := chains[jumpTarget(rule)]
		if jumpsHere || strings.Contains(rule, `--comment "`+comment+`"`) || strings.Contains(rule, `--comment "dnat `+comment+`"`) {
			rules = append(rules, "-D "+rule)
		}
	}
	for name, exists := range chains {
		if exists {
			rules = append(rules, "-F "+name)
		}
	}
	for name, exists := range chains {
		if exists {
			rules = append(rules, "-X "+name)
		}
	}
	if len(rules) == 0 {
		return ""
	}
	return "*nat\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
}

func jumpTarget(rule string) string {
	fields := strings.Fields(rule)
	for i, field := range fields {
		if field == "-j" && i+1 < len(fields) {
			return fields[i+1]
		}
	}
	return ""
}

// hashed is the form of the names that containernetworking/plugins give to chains and rules (pkg/utils).
func hashed(length int, prefix, text string) string {
	return fmt.Sprintf("%s%x", prefix, sha512.Sum512([]byte(text)))[:length]
}

// The table and chain of the plugins' ipMasqBackend "nftables"; a rule's comment begins with hashes of its owner.
const (
	masqTable = "cni_plugins_masquerade"
	masqChain = "masq_checks"
)

func removeNft(ctx context.Context, a *Attachment) error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil
	}
	tables, messages, err := runPlugin(ctx, nft, nil, nil, "-j", "list", "tables")
	if hasNoRules(err, messages) {
		return nil
	}
	if err != nil {
		return err
	}
	if !bytes.Contains(tables, []byte(`"`+masqTable+`"`)) {
		return nil
	}
	listed, messages, err := runPlugin(ctx, nft, nil, nil, "-j", "-a", "list", "chain", "inet", masqTable, masqChain)
	if hasNoRules(err, messages) {
		return nil
	}
	if err != nil {
		return err
	}
	handles, err := leakedHandles(listed, a)
	if err != nil {
		return err
	}
	for _, handle := range handles {
		if _, _, err := runPlugin(ctx, nft, nil, nil, "delete", "rule", "inet", masqTable, masqChain, "handle", strconv.Itoa(handle)); err != nil {
			return err
		}
	}
	return nil
}

func leakedHandles(listed []byte, a *Attachment) ([]int, error) {
	var chain struct {
		Nftables []struct {
			Rule struct {
				Handle  int    `json:"handle"`
				Comment string `json:"comment"`
			} `json:"rule"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(listed, &chain); err != nil {
		return nil, err
	}
	owner := hashed(16, "", a.Network) + "-" + hashed(16, "", a.IfName+":"+a.PodID)
	var handles []int
	for _, entry := range chain.Nftables {
		if strings.HasPrefix(entry.Rule.Comment, owner) {
			handles = append(handles, entry.Rule.Handle)
		}
	}
	return handles, nil
}
