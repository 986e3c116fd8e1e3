package verify

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"crishim/cni"
)

// The labels of dockershim and cri-dockerd.
const (
	labelType    = "io.kubernetes.docker.type"
	labelSandbox = "io.kubernetes.sandbox.id"
	labelUID     = "io.kubernetes.pod.uid"
)

// podID is a Docker id or one of ours: 64 hexadecimal digits.
var podID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Examine tells what is left over, in a fixed order.
func Examine(n *Node) []Problem {
	problems := []Problem{}
	for _, find := range []func(*Node) []Problem{sandboxes, results, addresses, chains, hostPorts, logLinks} {
		problems = append(problems, find(n)...)
	}
	return problems
}

// gone says that an id is nobody's, and proved where it cannot be another runtime's.
func (n *Node) gone(id string) (gone bool, foreign string) {
	if !podID.MatchString(id) || n.Live[id] {
		return false, ""
	}
	return true, n.Foreign[id]
}

// sandboxes: the kubelet makes a pod's folder before its sandbox, and removes it after.
func sandboxes(n *Node) []Problem {
	if n.PodDirs == nil {
		return nil
	}
	busy, matches := map[string]bool{}, false
	for _, c := range n.Containers {
		if c.Labels[labelType] == "container" && c.State == "running" {
			busy[c.Labels[labelSandbox]] = true
		}
		matches = matches || c.Labels[labelType] == "podsandbox" && n.PodDirs[c.Labels[labelUID]]
	}
	var found []Problem
	for _, c := range n.Containers {
		uid := c.Labels[labelUID]
		if c.Labels[labelType] != "podsandbox" || uid == "" || n.PodDirs[uid] {
			continue
		}
		p := Problem{Kind: Sandbox, Subject: fmt.Sprintf("%s (%.12s)", c.Name, c.ID), Message: "the kubelet has no such pod any more", Mend: "crictl stopp and rmp " + c.ID, Proved: true, fix: fix{id: c.ID}}
		switch {
		case busy[c.ID]:
			p.Proved, p.Message = false, p.Message+", but containers run in it"
		case !matches:
			p.Proved, p.Message = false, "the kubelet has no folder of any pod here: it may keep them elsewhere (--root-dir)"
		}
		found = append(found, p)
	}
	return found
}

func results(n *Node) []Problem {
	var found []Problem
	for _, r := range n.Results {
		gone, foreign := n.gone(r.ID)
		if !gone || !r.Old || r.Pod == "" {
			continue
		}
		p := Problem{Kind: CNIResult, Subject: r.Path, Message: fmt.Sprintf("pod %s is gone, its network %s was not taken down", r.Pod, r.Network), Mend: "CNI DEL with what is written there", Proved: true, fix: fix{id: r.ID, dir: r.Dir}}
		if foreign != "" {
			p.Proved, p.Message = false, "something still has that pod ("+foreign+"): another runtime, or a crishim with another root_dir"
		}
		found = append(found, p)
	}
	return found
}

// addresses: those with a result go by its DEL.
func addresses(n *Node) []Problem {
	known := n.cached()
	var found []Problem
	for _, a := range n.Addresses {
		gone, foreign := n.gone(a.ID)
		if !gone || !a.Old || known[a.ID] {
			continue
		}
		p := Problem{Kind: Address, Subject: a.Path, Message: fmt.Sprintf("address %s of network %s is kept for a container that is gone", a.IP, a.Network), Mend: "remove the file", Proved: true, fix: fix{path: a.Path, id: a.ID}}
		p.prove(n, a.Network, foreign)
		found = append(found, p)
	}
	return found
}

// prove: what says a network's name only is a pod's where that is the pods' network, which no other program uses.
func (p *Problem) prove(n *Node, network, foreign string) {
	switch {
	case foreign != "":
		p.Proved, p.Mend = false, "nothing: something still has that container ("+foreign+"), another runtime, or a crishim with another root_dir"
	case network != n.Network:
		p.Proved, p.Mend = false, fmt.Sprintf("by hand, if nobody else uses network %s (pods use %q)", network, n.Network)
	}
}

func (n *Node) cached() map[string]bool {
	known := map[string]bool{}
	for _, r := range n.Results {
		known[r.ID] = true
	}
	return known
}

// owner is the comment that portmap and the ipMasq of plugins give to their rules.
var owner = regexp.MustCompile(`name: \\"([^"\\]+)\\" id: \\"([0-9a-f]{64})\\"`)

func chains(n *Node) []Problem {
	known := n.cached()
	var found []Problem
	for _, family := range families(n) {
		table := n.NAT[family]
		seen := map[string]bool{}
		for _, match := range owner.FindAllStringSubmatch(table, -1) {
			network, id := match[1], match[2]
			gone, foreign := n.gone(id)
			if !gone || known[id] || seen[network+id] {
				continue
			}
			seen[network+id] = true
			script := cni.LeakedRules(table, network, id)
			if script == "" {
				continue
			}
			p := Problem{Kind: DNAT, Subject: fmt.Sprintf("%s nat, %s %.12s", family, network, id), Message: "rules for a container that is gone: what comes to its ports goes to an address that may be another's", Mend: "remove the rules of that container", Proved: true, fix: fix{family: family, script: script}}
			p.prove(n, network, foreign)
			found = append(found, p)
		}
	}
	return found
}

// hostPort is a rule of dockershim with its own host ports: the comment is POD_NAMESPACE hostport PORT.
var hostPort = regexp.MustCompile(`^-A (KUBE-HOSTPORTS .*--comment "([^"_ ]+)_([^"_ ]+) hostport \d+".* -j (KUBE-HP-[A-Z2-7]+))$`)

func hostPorts(n *Node) []Problem {
	var found []Problem
	for _, family := range families(n) {
		for line := range strings.Lines(n.NAT[family]) {
			match := hostPort.FindStringSubmatch(strings.TrimSpace(line))
			if match == nil || n.Named[match[3]+"/"+match[2]] {
				continue
			}
			rule, chain := match[1], match[4]
			found = append(found, Problem{Kind: HostPort, Subject: family + " nat, " + chain, Message: fmt.Sprintf("a host port of pod %s/%s, which is gone", match[3], match[2]), Mend: "remove the chain and the rule that leads to it", Proved: true,
				fix: fix{family: family, script: "*nat\n-D " + rule + "\n-F " + chain + "\n-X " + chain + "\nCOMMIT\n"}})
		}
	}
	return found
}

func families(n *Node) []string {
	var all []string
	for family := range n.NAT {
		all = append(all, family)
	}
	slices.Sort(all)
	return all
}

func logLinks(n *Node) []Problem {
	var found []Problem
	for _, path := range n.BrokenLogs {
		found = append(found, Problem{Kind: LogLink, Subject: path, Message: "it leads to a log that is gone", Mend: "remove the link", Proved: true, fix: fix{path: path}})
	}
	return found
}
