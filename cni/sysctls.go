package cni

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// SetSysctls sets sysctls of interfaces in the network namespace at path, after ADD: net.ipv4.conf.eth0.arp_ignore. Names are words
// joined by dots. ErrInvalidArgument where the namespace has no such interface or sysctl, or the kernel refuses the value.
func (n *Network) SetSysctls(netns string, sysctls map[string]string) error {
	if _, err := n.ns.inode(netns); err != nil { // never the host's
		return err
	}
	return within(netns, func(*netlink.Handle) error {
		proc, err := os.OpenRoot("/proc/sys")
		if err != nil {
			return err
		}
		defer func() { _ = proc.Close() }()
		for _, name := range slices.Sorted(maps.Keys(sysctls)) {
			file, err := proc.OpenFile(strings.ReplaceAll(name, ".", "/"), os.O_WRONLY, 0)
			if err == nil {
				_, err = file.WriteString(sysctls[name])
				err = errors.Join(err, file.Close())
			}
			if err != nil {
				return fmt.Errorf("set sysctl %s to %.80q: %w: %w", name, sysctls[name], err, errdefs.ErrInvalidArgument)
			}
		}
		return nil
	})
}
