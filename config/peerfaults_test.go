package config

import (
	"net"
	"strings"
	"testing"
)

// The faults 9 and 14 that were seen in cri-dockerd, as far as an operator's settings decide; see server/peerfaults_test.go.

// 14: streams were open to other hosts, and the group docker could use the socket, by default.
// Rows: S48, S65
func TestPeerFault14NothingIsOpenToOthersByDefault(t *testing.T) {
	c := Default()
	for what, address := range map[string]string{"streaming": c.Streaming.Address, "metrics": c.Metrics.Listen} {
		host, _, err := net.SplitHostPort(address)
		if err != nil || !net.ParseIP(host).IsLoopback() {
			t.Errorf("%s listens on %q", what, address)
		}
	}
	if c.SocketGroup != "" || c.Metrics.Pprof != "" || c.Streaming.AllowRemote {
		t.Errorf("opened by default: %+v", c)
	}
	for _, listen := range c.Listen {
		if !strings.HasPrefix(listen, "unix:///") {
			t.Errorf("CRI on %q", listen)
		}
	}
}

// 09: an option moved the daemon by the cgroup v1 manager, and broke on v2; Docker's pid file was misread. There is
// nothing to misread: systemd places the daemon, and no setting names a cgroup or a pid file. (The driver is by what pods'
// cgroups are made.)
func TestPeerFault09NoSettingNamesACgroupOrAPidFile(t *testing.T) {
	for _, s := range settings(Default()) {
		if s.key != "cgroup_driver" && strings.Contains(s.key, "cgroup") || strings.Contains(s.key, "pid") {
			t.Errorf("setting %s", s.key)
		}
	}
}
