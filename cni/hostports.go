package cni

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"iter"
	"strconv"
	"strings"
)

// kubeHostPorts is the chain into which dockershim, with kubenet, put a rule for each host port of the node; each leads to
// a chain of that port alone.
const (
	kubeHostPorts      = "KUBE-HOSTPORTS"
	kubeHostPortPrefix = "KUBE-HP-"
)

func removeKubeHostPorts(ctx context.Context, a *Attachment) error {
	return removeIptables(ctx, func(saved iter.Seq[string]) string { return kubeHostPortRules(saved, a.PodID, a.KubeHostPorts) })
}

// kubeHostPortRules is leakedRules for what dockershim made. With the last host port goes what leads to kubeHostPorts, since
// nobody else would ever take it away; dockershim makes it again where it needs it.
func kubeHostPortRules(saved iter.Seq[string], podID string, ports []PortMapping) string {
	mine := map[string]bool{}
	for _, p := range ports {
		mine[kubeHostPortChain(podID, p)] = true
	}
	var chains, rules, ways []string
	others := false
	for line := range saved {
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ = strings.Cut(name, " ")
			switch {
			case mine[name]:
				chains = append(chains, name)
			case strings.HasPrefix(name, kubeHostPortPrefix):
				others = true
			}
			continue
		}
		rule, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		switch target := jumpTarget(rule); {
		case target == kubeHostPorts:
			ways = append(ways, "-D "+rule)
		case mine[target]:
			rules = append(rules, "-D "+rule)
		}
	}
	if len(chains) == 0 {
		return ""
	}
	if !others && len(ways) > 0 {
		rules = append(append(rules, ways...), "-F "+kubeHostPorts, "-X "+kubeHostPorts)
	}
	for _, name := range chains {
		rules = append(rules, "-F "+name)
	}
	for _, name := range chains {
		rules = append(rules, "-X "+name)
	}
	return "*nat\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
}

// kubeHostPortChain is getHostportChain of Kubernetes' hostport_manager.go.
func kubeHostPortChain(podID string, p PortMapping) string {
	sum := sha256.Sum256([]byte(podID + strconv.Itoa(int(p.HostPort)) + strings.ToUpper(p.Protocol) + p.HostIP))
	return kubeHostPortPrefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
}
