package cni

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"crishim/internal/keymutex"
)

// guarding is held, by the one key that there is, while the guard is looked for and made.
var guarding keymutex.Mutex[struct{}]

// loopbackGuard is the rule, as iptables arguments behind the command. It drops what comes to 127.0.0.0/8 from outside
// before any address is translated; the host's own traffic and the replies to it are not met. The kernel does the same by
// itself, except on interfaces with route_localnet, which portmap sets on the pods' bridge so that host ports work on
// 127.0.0.1: then any pod reaches what listens on the node's loopback alone (CVE-2020-8558; docs/reliability.md S64).
var loopbackGuard = []string{"!", "-i", "lo", "-d", "127.0.0.0/8", "-m", "comment", "--comment", "crishim: loopback is the node's own", "-j", "DROP"}

// loopbackTable is the same for hosts that have nft alone; the lines make what is missing and leave one rule.
const loopbackTable = `add table ip crishim
add chain ip crishim loopback { type filter hook prerouting priority raw; }
flush chain ip crishim loopback
add rule ip crishim loopback iifname != "lo" ip daddr 127.0.0.0/8 drop
`

// guardLoopback makes sure of the rule, which stays for good: who flushed it in between gets it back with the next pod that
// has host ports. A kubelet has one like it, where it is not told to leave the node's rules alone; a host without iptables
// and nft has no portmap either.
func (kernelNamespaces) guardLoopback(ctx context.Context) error {
	unlock, err := guarding.Lock(ctx, struct{}{})
	if err != nil {
		return fmt.Errorf("another pod still has the rule looked for: %w", err)
	}
	defer unlock()
	iptables, err := exec.LookPath("iptables")
	if err != nil {
		nft, err := exec.LookPath("nft")
		if err != nil {
			return nil
		}
		return runRule(ctx, nft, []byte(loopbackTable), "-f", "-")
	}
	rule := func(verb string) []string {
		return slices.Concat([]string{"--wait", "5", "-t", "raw", verb, "PREROUTING"}, loopbackGuard)
	}
	err = runRule(ctx, iptables, nil, rule("-C")...)
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == 1 { // all else, such as a lock that others hold, says nothing of the rule
		return runRule(ctx, iptables, nil, rule("-A")...)
	}
	return err
}

func runRule(ctx context.Context, program string, stdin []byte, args ...string) error {
	if _, stderr, err := runPlugin(ctx, program, stdin, nil, args...); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", program, err), errors.New(strings.TrimSpace(string(stderr))))
	}
	return nil
}

func hasHostPort(attachments []Attachment) bool {
	return slices.ContainsFunc(attachments, func(a Attachment) bool { return len(a.CapabilityArgs[capPortMappings]) > 0 })
}
