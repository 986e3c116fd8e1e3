package translator

import (
	"fmt"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// dns is nil where the host's resolv.conf is wanted: without a config, and with an empty one, as in containerd.
func dns(p *problems, in *runtimeapi.DNSConfig) *engine.DNS {
	if len(in.GetServers())+len(in.GetSearches())+len(in.GetOptions()) == 0 {
		return nil
	}
	for _, s := range in.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil || !isResolvWord(s) {
			p.add("dns_config.servers", "%.80q is no IP address", s)
		}
	}
	for _, s := range in.GetSearches() {
		if len(s) > maxName+2 || !isResolvWord(s) {
			p.add("dns_config.searches", "%.80q is no domain", s)
		}
	}
	for _, s := range in.GetOptions() {
		if len(s) > maxName || !isResolvWord(s) {
			p.add("dns_config.options", "%.80q is no option of resolv.conf", s)
		}
	}
	return &engine.DNS{Servers: in.GetServers(), Searches: in.GetSearches(), Options: in.GetOptions()}
}

// isResolvWord says whether s stays one word of one line of resolv.conf.
func isResolvWord(s string) bool {
	return s != "" && onlyRunes(s, func(r rune) bool { return r > ' ' && r < 0x7f && r != '#' && r != ';' })
}

var protocols = map[runtimeapi.Protocol]string{
	runtimeapi.Protocol_TCP: "tcp", runtimeapi.Protocol_UDP: "udp", runtimeapi.Protocol_SCTP: "sctp",
}

// ports translates the port mappings; those without a host port map nothing but stay visible.
func ports(p *problems, in []*runtimeapi.PortMapping) []engine.PortMapping {
	const maxPort = 65535
	taken := map[engine.PortMapping]bool{}
	var out []engine.PortMapping
	for i, m := range in {
		field := fmt.Sprintf("port_mappings[%d]", i)
		port := engine.PortMapping{
			Protocol: protocols[m.GetProtocol()], ContainerPort: m.GetContainerPort(), HostPort: m.GetHostPort(), HostIP: m.GetHostIp(),
		}
		if port.Protocol == "" {
			p.add(field+".protocol", "%s is unknown", m.GetProtocol())
		}
		if port.HostPort < 0 || port.HostPort > maxPort {
			p.add(field+".host_port", "%d is not within 0 to %d", port.HostPort, maxPort)
		}
		if port.ContainerPort < 0 || port.ContainerPort > maxPort || (port.ContainerPort == 0 && port.HostPort != 0) {
			p.add(field+".container_port", "%d is not within 1 to %d", port.ContainerPort, maxPort)
		}
		if port.HostIP != "" {
			if _, err := netip.ParseAddr(port.HostIP); err != nil || strings.Contains(port.HostIP, "%") {
				p.add(field+".host_ip", "%.80q is no IP address", port.HostIP)
			}
		}
		if port.HostPort != 0 {
			key := engine.PortMapping{Protocol: port.Protocol, HostPort: port.HostPort, HostIP: port.HostIP}
			if taken[key] {
				p.add(field+".host_port", "%d is mapped twice", port.HostPort)
			}
			taken[key] = true
		}
		out = append(out, port)
	}
	return out
}
