package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// inPod runs f in the network namespace of a pod, with the rights that a pod with CAP_NET_RAW has there.
func inPod(t *testing.T, n *harness.Node, pod *harness.Pod, f func() error) {
	t.Helper()
	ns, err := os.Open(n.NetNS(t, pod.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("in the pod's network: %v", err)
	}
}

// Rows: S63
func TestHostPortsTakeOnlyTheirOwnTraffic(t *testing.T) {
	n := node(t)
	n.HostUnchanged(t)
	const port, only = 18091, 18092
	owner := n.RunPod(t, "owner", hostPort(port, 80), hostPort(only, 80), func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[1].HostIp = n.CNI.Gateway })
	owner.Run("web", n.Registry.Ref(harness.Web), nil)
	other := n.RunPod(t, "other")
	for _, p := range []int{port, only} {
		other.Run(fmt.Sprintf("web%d", p), n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "http", fmt.Sprintf(":%d", p)})
	}
	client := n.RunPod(t, "client").Run("c", n.Registry.Ref(harness.Busybox), forever)
	get := func(address string) (string, error) {
		reply := client.Exec("wget", "-qO-", "http://"+address+"/")
		if reply.ExitCode != 0 {
			return "", fmt.Errorf("exit code %d: %s", reply.ExitCode, reply.Stderr)
		}
		return string(reply.Stdout), nil
	}
	const ofOwner, ofOther = "host=owner path=/\n", "host=other path=/\n"
	httpGet(t, fmt.Sprintf("%s:%d", other.IP(), only)) // both listen
	for address, want := range map[string]string{
		fmt.Sprintf("%s:%d", n.CNI.Gateway, port): ofOwner,
		fmt.Sprintf("%s:%d", n.CNI.Gateway, only): ofOwner,
		// Not the node's address: the pod that has it answers, whatever host port has the number.
		fmt.Sprintf("%s:%d", other.IP(), port): ofOther,
		fmt.Sprintf("%s:%d", other.IP(), only): ofOther,
	} {
		if body := httpGet(t, address); body != want {
			t.Errorf("from the node %s is %q, want %q", address, body, want)
		}
		if body, err := get(address); err != nil || body != want {
			t.Errorf("from a pod %s is %q, %v, want %q", address, body, err, want)
		}
	}
	if body := httpGet(t, fmt.Sprintf("127.0.0.1:%d", port)); body != ofOwner {
		t.Errorf("the node's loopback says %q", body)
	}
	if !refused(fmt.Sprintf("127.0.0.1:%d", only)) {
		t.Error("a port of one address is open on another")
	}
	// A pod that comes to the address of a removed one gets none of its traffic: the rules are gone (NoLeaks sees them too).
	owner.Remove()
	for _, p := range []int{port, only} {
		if !refused(fmt.Sprintf("%s:%d", n.CNI.Gateway, p)) {
			t.Errorf("port %d is still open", p)
		}
	}
}

// Rows: S64
func TestAPodIsNoRouterAndReachesNoLoopback(t *testing.T) {
	harness.Require(t)
	n := harness.NewNodeOn(t, harness.CNIOptions{DualStack: true}, harness.DockerOptions{}, harness.ShimOptions{})
	n.HostUnchanged(t)
	pod := n.RunPod(t, "router", hostPort(18093, 80)) // portmap opens the bridge to 127.0.0.1
	pod.Run("web", n.Pull(t, harness.Web), nil)
	bridge, err := net.InterfaceByName(n.CNI.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("routes", func(t *testing.T) {
		if routes := advertise(t, n, pod); len(routes) != 0 {
			t.Errorf("the host took routes of a pod: %v", routes)
		}
		// The advertisement is one that would be taken.
		ra := filepath.Join("/proc/sys/net/ipv6/conf", bridge.Name, "accept_ra")
		before, err := os.ReadFile(ra)
		if err != nil {
			t.Skipf("no IPv6 here: %v", err)
		}
		if err := os.WriteFile(ra, []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 20*time.Second, "the host to take a route of a pod when it is told to", func() error {
			if len(advertise(t, n, pod)) == 0 {
				return errors.New("it does not")
			}
			return nil
		})
		if err := os.WriteFile(ra, before, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	if body := httpGet(t, "127.0.0.1:18093"); body != "host=router path=/\n" {
		t.Errorf("the host port on the node's own loopback says %q", body)
	}
	t.Run("loopback", func(t *testing.T) {
		local, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		open, err := net.ListenPacket("udp4", n.CNI.Gateway+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		for range 3 {
			// The second is what shows that such a packet arrives where it may.
			sendUDP(t, n, pod, bridge.HardwareAddr, local.LocalAddr().(*net.UDPAddr))
			sendUDP(t, n, pod, bridge.HardwareAddr, open.LocalAddr().(*net.UDPAddr))
		}
		if err := received(open, 5*time.Second); err != nil {
			t.Fatalf("the node's address was not reached: %v", err)
		}
		if received(local, time.Second) == nil {
			t.Error("a pod reached a service on the node's loopback")
		}
	})
}

func received(conn net.PacketConn, limit time.Duration) error {
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, _, err := conn.ReadFrom(make([]byte, 64))
	return err
}

// advertise sends a router advertisement out of a pod and returns the default routes that the host has of it.
func advertise(t *testing.T, n *harness.Node, pod *harness.Pod) (routes []string) {
	t.Helper()
	inPod(t, n, pod, func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			return err
		}
		// Type 134, hop limit 64, a lifetime of 1800 s, no options: "I am a default router".
		message := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
		return unix.Sendto(fd, message, 0, &unix.SockaddrInet6{ZoneId: uint32(link.Index), Addr: [16]byte{0xff, 0x02, 15: 1}})
	})
	time.Sleep(time.Second) // what should not come has no event
	all, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range all {
		if route.Protocol == unix.RTPROT_RA {
			routes = append(routes, route.String())
		}
	}
	return routes
}

// sendUDP sends one packet out of a pod to an address of the node as no socket would: to the node's link address, whatever
// the pod's own routes say (CVE-2020-8558).
func sendUDP(t *testing.T, n *harness.Node, pod *harness.Pod, to net.HardwareAddr, address *net.UDPAddr) {
	t.Helper()
	source := net.ParseIP(pod.IP()).To4()
	inPod(t, n, pod, func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		payload := []byte("hello")
		packet := make([]byte, 28, 28+len(payload))
		packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(packet[2:], uint16(28+len(payload)))
		copy(packet[12:], source)
		copy(packet[16:], address.IP.To4())
		binary.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
		binary.BigEndian.PutUint16(packet[20:], 4000)
		binary.BigEndian.PutUint16(packet[22:], uint16(address.Port))
		binary.BigEndian.PutUint16(packet[24:], uint16(8+len(payload)))
		where := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: link.Index, Halen: 6} // ETH_P_IP in network order
		copy(where.Addr[:], to)
		return unix.Sendto(fd, append(packet, payload...), 0, where)
	})
}

func checksum(header []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
