package cni

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Rows: S24 (part)
func TestSysctlsOfInterfacesAreSetInThePod(t *testing.T) {
	inOwnNetwork(t)
	pod, _ := podNamespace(t)
	err := within(pod, func(handle *netlink.Handle) error {
		return handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"})
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &Network{ns: kernelNamespaces{}}
	if err := n.SetSysctls(pod, map[string]string{"net.ipv4.conf.eth0.arp_ignore": "2", "net.ipv4.conf.eth0.arp_announce": "1"}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	err = within(pod, func(*netlink.Handle) (err error) {
		got, err = os.ReadFile("/proc/sys/net/ipv4/conf/eth0/arp_ignore")
		return err
	})
	if err != nil || strings.TrimSpace(string(got)) != "2" {
		t.Errorf("%q, %v", got, err)
	}
	for name, value := range map[string]string{"net.ipv4.conf.eth1.arp_ignore": "1", "net.ipv4.conf.eth0.arp_ignore": "much", "net.ipv4.conf.eth0.nothing": "1"} {
		if err := n.SetSysctls(pod, map[string]string{name: value}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
	if err := n.SetSysctls("/proc/self/ns/net", map[string]string{"net.ipv4.conf.lo.arp_ignore": "0"}); err == nil {
		t.Error("set on the host")
	}
}
