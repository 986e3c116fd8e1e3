package userns

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNamespacesAreMadeInsideTheUserNamespaceWithItsMappings(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mapping ids needs root")
	}
	maps := []Mapping{{Inside: 0, Outside: 100000, Length: 65536}}
	p, err := Start(maps, maps, unix.CLONE_NEWNET|unix.CLONE_NEWUTS)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(strings.TrimSuffix(p.Path("user"), "ns/user") + "uid_map")
	if err != nil || strings.Join(strings.Fields(string(data)), " ") != "0 100000 65536" {
		t.Errorf("uid_map %q, %v", data, err)
	}
	user, err := p.Open("user")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = user.Close() }()
	net, err := p.Open("net")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = net.Close() }()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// Both are alive behind their descriptors, and the one owns the other.
	owner, err := unix.IoctlRetInt(int(net.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(owner) }()
	var a, b unix.Stat_t
	if unix.Fstat(owner, &a) != nil || unix.Fstat(int(user.Fd()), &b) != nil || a.Ino != b.Ino {
		t.Errorf("the network namespace is owned by %d, not %d", a.Ino, b.Ino)
	}
	if _, err := os.Stat(p.Path("user")); !os.IsNotExist(err) {
		t.Errorf("the process is still there: %v", err)
	}
}
