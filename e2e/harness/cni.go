package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// CNIOptions say how the pod network is to be. The zero value is the plugins of e2e/tools/cni and IPv4.
type CNIOptions struct {
	// Debian takes the plugins of Debian's package (1.1.1) instead of building newer ones.
	Debian bool
	// Version is the configuration's cniVersion, "1.0.0" where it is empty.
	Version string
	// DualStack gives pods an IPv6 address too.
	DualStack bool
}

// CNI is a pod network on a bridge of its own: a folder with plugins, a folder with one configuration.
type CNI struct {
	BinDir, ConfDir, ConfFile string
	// PluginDir is a further plugin folder, empty at first, for plugins of a test (see AddPlugin).
	PluginDir string
	// Network is its name, Subnet the first three numbers of its addresses, Gateway the bridge's address.
	Network, Bridge, Subnet, Gateway string
	// DataDir is where host-local keeps the addresses that it gave.
	DataDir string

	t T
}

// NewCNI makes a pod network. The cleanup removes its bridge and reports addresses that were not given back.
func NewCNI(t T, options CNIOptions) *CNI {
	t.Helper()
	dir := WorkDir(t, "n")
	id := dir[len(dir)-8:]
	subnet := freeSubnet(t)
	c := &CNI{
		t: t, ConfDir: filepath.Join(dir, "net.d"), DataDir: filepath.Join(dir, "ipam"), Network: "e2e-" + id,
		Bridge: "pn" + id, Subnet: subnet, Gateway: subnet + ".1",
	}
	c.ConfFile = filepath.Join(c.ConfDir, "10-e2e.conflist")
	if c.BinDir = "/usr/lib/cni"; !options.Debian {
		c.BinDir = cniPlugins(t)
	}
	c.PluginDir = filepath.Join(dir, "plugins")
	for _, folder := range []string{c.ConfDir, c.PluginDir} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatalf("making a CNI folder: %v", err)
		}
	}
	list := c.List(options.DualStack)
	if options.Version != "" {
		list["cniVersion"] = options.Version
	}
	c.Write(c.ConfFile, list)
	t.Cleanup(func() { removeBridge(t, c.Bridge) })
	return c
}

// List is the network's configuration: bridge with masquerading, host-local, portmap, bandwidth.
func (c *CNI) List(dualStack bool) map[string]any {
	ranges := []any{[]any{map[string]any{"subnet": c.Subnet + ".0/24"}}}
	routes := []any{map[string]any{"dst": "0.0.0.0/0"}}
	if dualStack {
		third := strings.Split(c.Subnet, ".")[2]
		ranges = append(ranges, []any{map[string]any{"subnet": "fd00:c0de:" + third + "::/64"}})
		routes = append(routes, map[string]any{"dst": "::/0"})
	}
	return map[string]any{
		"cniVersion": "1.0.0", "name": c.Network,
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": c.Bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{"type": "host-local", "dataDir": c.DataDir, "ranges": ranges, "routes": routes},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}, "snat": true},
			map[string]any{"type": "bandwidth", "capabilities": map[string]any{"bandwidth": true}},
		},
	}
}

// Write replaces a configuration file at once, as a network add-on does.
func (c *CNI) Write(file string, list map[string]any) {
	c.t.Helper()
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		c.t.Fatalf("describing the pod network: %v", err)
	}
	if err := os.WriteFile(file+".new", data, 0o644); err != nil {
		c.t.Fatalf("writing %s: %v", file, err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		c.t.Fatalf("writing %s: %v", file, err)
	}
}

// AddPlugin makes a plugin of a shell script, which finds the verb in $CNI_COMMAND, and removes it in the cleanup of t.
func (c *CNI) AddPlugin(t T, name, script string) {
	t.Helper()
	file := filepath.Join(c.PluginDir, name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatalf("making plugin %s: %v", name, err)
	}
	t.Cleanup(func() { _ = os.Remove(file) })
}

// Addresses are the pod addresses that host-local has given out.
func (c *CNI) Addresses() []string {
	files, err := os.ReadDir(filepath.Join(c.DataDir, c.Network))
	if err != nil && !os.IsNotExist(err) {
		return []string{err.Error()}
	}
	addresses := []string{}
	for _, file := range files {
		if name := file.Name(); !strings.HasPrefix(name, "last_reserved_ip") && name != "lock" {
			addresses = append(addresses, name)
		}
	}
	slices.Sort(addresses)
	return addresses
}

// String is for messages.
// Links are the names of the links on the bridge: the host's ends of pods.
func (c *CNI) Links() ([]string, error) {
	bridge, err := netlink.LinkByName(c.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil // no pod ever was
	}
	if err != nil {
		return nil, err
	}
	all, err := netlink.LinkList()
	var names []string
	for _, link := range all {
		if link.Attrs().MasterIndex == bridge.Attrs().Index {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, err
}

func (c *CNI) String() string { return fmt.Sprintf("network %s on %s", c.Network, c.Bridge) }
