package cni

import (
	"strings"
	"testing"
)

// The chains are those that Kubernetes' own test of its hostport manager expects for the id "id".
const kubeHostPortsSaved = `*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-HOSTPORTS - [0:0]
:KUBE-HP-IJHALPHTORMHHPPK - [0:0]
:KUBE-HP-63UPIDJXVRSZGSUZ - [0:0]
:KUBE-HP-OTHEROTHEROTHERR - [0:0]
-A PREROUTING -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-A OUTPUT -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-A KUBE-HOSTPORTS -p udp -m comment --comment "pod1_ns1 hostport 8081" -m udp --dport 8081 -j KUBE-HP-63UPIDJXVRSZGSUZ
-A KUBE-HOSTPORTS -p tcp -m comment --comment "pod1_ns1 hostport 8080" -m tcp --dport 8080 -j KUBE-HP-IJHALPHTORMHHPPK
-A KUBE-HOSTPORTS -p tcp -m comment --comment "pod2_ns1 hostport 9090" -m tcp --dport 9090 -j KUBE-HP-OTHEROTHEROTHERR
-A KUBE-HP-IJHALPHTORMHHPPK -s 10.1.1.2/32 -m comment --comment "pod1_ns1 hostport 8080" -j KUBE-MARK-MASQ
-A KUBE-HP-IJHALPHTORMHHPPK -p tcp -m comment --comment "pod1_ns1 hostport 8080" -m tcp -j DNAT --to-destination 10.1.1.2:80
-A KUBE-HP-63UPIDJXVRSZGSUZ -s 10.1.1.2/32 -m comment --comment "pod1_ns1 hostport 8081" -j KUBE-MARK-MASQ
-A KUBE-HP-OTHEROTHEROTHERR -p tcp -m comment --comment "pod2_ns1 hostport 9090" -m tcp -j DNAT --to-destination 10.1.1.3:80
COMMIT
`

var kubeHostPortsOfPod1 = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 8081, ContainerPort: 81, Protocol: "udp"}}

func TestTheHostPortsThatDockershimMadeGoWithTheirPod(t *testing.T) {
	want := `*nat
-D KUBE-HOSTPORTS -p udp -m comment --comment "pod1_ns1 hostport 8081" -m udp --dport 8081 -j KUBE-HP-63UPIDJXVRSZGSUZ
-D KUBE-HOSTPORTS -p tcp -m comment --comment "pod1_ns1 hostport 8080" -m tcp --dport 8080 -j KUBE-HP-IJHALPHTORMHHPPK
-F KUBE-HP-IJHALPHTORMHHPPK
-F KUBE-HP-63UPIDJXVRSZGSUZ
-X KUBE-HP-IJHALPHTORMHHPPK
-X KUBE-HP-63UPIDJXVRSZGSUZ
COMMIT
`
	if got := kubeHostPortRules(strings.SplitSeq(kubeHostPortsSaved, "\n"), "id", kubeHostPortsOfPod1); got != want {
		t.Errorf("with another pod's port beside:\n%s\nwant\n%s", got, want)
	}
	if got := kubeHostPortRules(strings.SplitSeq(kubeHostPortsSaved, "\n"), "another", kubeHostPortsOfPod1); got != "" {
		t.Errorf("for another pod with the same ports: %s", got)
	}
	var alone []string
	for line := range strings.Lines(kubeHostPortsSaved) {
		if !strings.Contains(line, "OTHEROTHEROTHERR") {
			alone = append(alone, line)
		}
	}
	want = `*nat
-D KUBE-HOSTPORTS -p udp -m comment --comment "pod1_ns1 hostport 8081" -m udp --dport 8081 -j KUBE-HP-63UPIDJXVRSZGSUZ
-D KUBE-HOSTPORTS -p tcp -m comment --comment "pod1_ns1 hostport 8080" -m tcp --dport 8080 -j KUBE-HP-IJHALPHTORMHHPPK
-D PREROUTING -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-D OUTPUT -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-F KUBE-HOSTPORTS
-X KUBE-HOSTPORTS
-F KUBE-HP-IJHALPHTORMHHPPK
-F KUBE-HP-63UPIDJXVRSZGSUZ
-X KUBE-HP-IJHALPHTORMHHPPK
-X KUBE-HP-63UPIDJXVRSZGSUZ
COMMIT
`
	if got := kubeHostPortRules(strings.SplitSeq(strings.Join(alone, ""), "\n"), "id", kubeHostPortsOfPod1); got != want {
		t.Errorf("as the last one:\n%s\nwant\n%s", got, want)
	}
}
