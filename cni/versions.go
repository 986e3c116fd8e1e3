package cni

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
)

// oldest is the containernetworking/plugins release below which known faults are (CVE-2025-67499 in portmap).
var oldest = [2]int{1, 9}

// PluginVersion is one plugin binary.
type PluginVersion struct {
	Type string
	Path string
	// Version is as the plugin tells it ("1.9.0"), "" where it does not (distributions leave it out).
	Version string
	// Old says that it is a containernetworking plugin below 1.9, or one that tells no version and is below 1.6 because it does
	// not know CNI 1.1.
	Old bool
}

// aboutLine is what containernetworking plugins print when they are run with no CNI_COMMAND.
var aboutLine = regexp.MustCompile(`^CNI (\S+) plugin (?:version )?v?(\S+)`)

// PluginVersions asks each plugin of the network in use, and its IPAM plugin, for its version.
func (n *Network) PluginVersions(ctx context.Context) ([]PluginVersion, error) {
	list, err := n.usable()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, plugin := range list.Plugins {
		names = append(names, binaries(plugin)...)
	}
	slices.Sort(names)
	var versions []PluginVersion
	for _, name := range slices.Compact(names) {
		v, err := n.pluginVersion(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("version of plugin %s: %w", name, err)
		}
		versions = append(versions, v)
	}
	return versions, nil
}

func (n *Network) pluginVersion(ctx context.Context, name string) (PluginVersion, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path, err := n.exec.FindInPath(name, n.opts.BinDirs)
	if err != nil {
		return PluginVersion{}, err
	}
	v := PluginVersion{Type: name, Path: path}
	// A plugin of others may answer with an error: then it does not tell.
	_, stderr, _ := runPlugin(ctx, path, nil, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
	about := aboutLine.FindSubmatch(stderr)
	if about == nil || string(about[1]) != name {
		return v, nil
	}
	if major, minor, ok := parseVersion(string(about[2])); ok {
		v.Version = string(about[2])
		v.Old = slices.Compare([]int{major, minor}, oldest[:]) < 0
		return v, nil
	}
	info, err := invoke.GetVersionInfo(ctx, path, n.exec)
	if err != nil {
		return v, err
	}
	v.Old = !slices.Contains(info.SupportedVersions(), "1.1.0")
	return v, nil
}

func parseVersion(text string) (major, minor int, ok bool) {
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err := strconv.Atoi(parts[0])
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(parts[1])
	return major, minor, err == nil
}
