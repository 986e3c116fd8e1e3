package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	// The directories are read again this often, whatever inotify says; sooner while pods cannot be attached or inotify
	// cannot be had, so that readiness never takes 2 s from the moment that everything is there.
	slowPoll = 5 * time.Second
	fastPoll = time.Second
	// settle is how long a burst of changes is waited out, so that a file being written is read once.
	settle = 50 * time.Millisecond
)

// network is one configuration in use.
type network struct {
	file    string
	list    *libcni.NetworkConfigList // Bytes has every plugin inlined
	missing error                     // the plugins that are not in the plugin directories
}

// reload reads the directories and takes over what changed.
func (n *Network) reload() {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	n.mu.Lock()
	previous, before := n.current, n.problem
	n.mu.Unlock()

	next, problem := load(n.opts.ConfDir, n.opts.BinDirs, previous)
	same := next.same(previous)
	if same {
		next = previous
	}
	n.mu.Lock()
	n.current, n.problem = next, problem
	if !same {
		n.verdict = nil
	}
	n.mu.Unlock()

	if problem != nil && (before == nil || before.Error() != problem.Error()) {
		klog.ErrorS(problem, "A network configuration cannot be used", "dir", n.opts.ConfDir)
	}
	if same {
		return
	}
	switch {
	case next == nil:
		klog.InfoS("No network configuration any more", "dir", n.opts.ConfDir)
	default:
		klog.InfoS("Network configuration", "file", next.file, "network", next.list.Name, "missing", next.missing)
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (c *network) same(other *network) bool {
	if c == nil || other == nil {
		return c == other
	}
	return c.file == other.file && bytes.Equal(c.list.Bytes, other.list.Bytes) && fmt.Sprint(c.missing) == fmt.Sprint(other.missing)
}

// load takes the first valid file by name that attaches pods to a network. A file that was in use and is broken now keeps the network made of its last
// good version, also before other files: half an edit must not move new pods to another network. problem tells of every
// file that could not be used.
func load(dir string, binDirs []string, previous *network) (chosen *network, problem error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return previous, fmt.Errorf("read the network configurations: %w", err)
	}
	slices.Sort(files)
	var problems []error
	for _, file := range files {
		list, err := parseFile(file)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", file, err))
			if previous != nil && previous.file == file {
				kept := &network{file: file, list: previous.list, missing: missingPlugins(previous.list, binDirs)}
				return kept, errors.Join(problems...)
			}
			continue
		}
		if onlyLoopback(list) {
			continue
		}
		next := &network{file: file, list: list, missing: missingPlugins(list, binDirs)}
		if next.missing != nil && previous != nil && previous.file == file && missingPlugins(previous.list, binDirs) == nil {
			problems = append(problems, fmt.Errorf("%s: %w", file, next.missing))
			next = &network{file: file, list: previous.list}
		}
		return next, errors.Join(problems...)
	}
	return nil, errors.Join(problems...)
}

// onlyLoopback says that a configuration is of the pods' loopback alone, as packages and guides for other runtimes put one last in the
// folder (99-loopback.conf). Until a network add-on came, pods would run without a network, with 127.0.0.1 for their address.
func onlyLoopback(list *libcni.NetworkConfigList) bool {
	return !slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type != "loopback" })
}

func parseFile(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			return nil, err
		}
		return inlined(list)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseConfig(data)
}

// parseConfig reads a configuration list, or a single plugin's configuration as one.
func parseConfig(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		plugin, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			return nil, err
		}
		// The format of one plugin is deprecated, but nodes still have such files; DEL of old records depends on it too.
		data, err = json.Marshal(map[string]any{"name": plugin.Network.Name, "cniVersion": plugin.Network.CNIVersion, "plugins": []json.RawMessage{data}})
		if err != nil {
			return nil, err
		}
		if list, err = libcni.NetworkConfFromBytes(data); err != nil {
			return nil, err
		}
	}
	return list, validate(list)
}

// inlined makes Bytes tell of every plugin, also those that came from files beside the list (CNI 1.1), because an
// attachment is ended by its recorded bytes alone.
func inlined(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	if err := validate(list); err != nil {
		return nil, err
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, plugin := range list.Plugins {
		plugins = append(plugins, plugin.Bytes)
	}
	all, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	raw["plugins"], raw["loadOnlyInlinedPlugins"] = all, json.RawMessage("true")
	if list.Bytes, err = json.Marshal(raw); err != nil {
		return nil, err
	}
	return list, nil
}

func validate(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return err
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	}
	if newer {
		return fmt.Errorf("cniVersion %q is newer than %q, the newest known here", list.CNIVersion, version.Current())
	}
	for _, plugin := range list.Plugins {
		for _, name := range binaries(plugin) {
			if strings.ContainsRune(name, filepath.Separator) || name == "." || name == ".." {
				return fmt.Errorf("plugin type %q must be a file name without a path", name)
			}
		}
	}
	return nil
}

// binaries are the plugin's own and that of its address management.
func binaries(plugin *libcni.PluginConfig) []string {
	names := []string{plugin.Network.Type}
	if ipam := plugin.Network.IPAM.Type; ipam != "" {
		names = append(names, ipam)
	}
	return names
}

// missingPlugins tells which plugins of the list cannot be run. Those for the addresses are no part of it: a plugin may have a
// daemon run them, with its own files (Antrea's does).
func missingPlugins(list *libcni.NetworkConfigList, binDirs []string) error {
	var missing []string
	for _, plugin := range list.Plugins {
		path, err := invoke.FindInPath(plugin.Network.Type, binDirs)
		if err == nil {
			if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o111 != 0 {
				continue
			}
		}
		missing = append(missing, plugin.Network.Type)
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("plugin %s of network %q not found in %s", strings.Join(slices.Compact(missing), ", "), list.Name, strings.Join(binDirs, ", "))
}

// usable is the configuration that pods can be attached by.
func (n *Network) usable() (*libcni.NetworkConfigList, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.current == nil && n.problem != nil:
		return nil, fmt.Errorf("no usable network configuration in %s: %w: %w", n.opts.ConfDir, n.problem, errdefs.ErrUnavailable)
	case n.current == nil:
		return nil, fmt.Errorf("no network configuration in %s: install a network add-on or put a .conflist file there: %w", n.opts.ConfDir, errdefs.ErrUnavailable)
	case n.current.missing != nil:
		return nil, fmt.Errorf("%w: %w", n.current.missing, errdefs.ErrUnavailable)
	}
	return n.current.list, nil
}

// watch reloads at each change of the directories and at each poll.
func (n *Network) watch(ctx context.Context, newWatcher func() (*fsnotify.Watcher, error)) {
	watcher, err := newWatcher()
	if err != nil {
		klog.InfoS("No inotify, the network configuration is polled", "err", err)
		watcher = &fsnotify.Watcher{} // its nil channels never deliver
	} else {
		defer func() { _ = watcher.Close() }()
	}
	for {
		interval := fastPoll
		if err == nil && n.watchDirs(watcher) {
			if _, notReady := n.usable(); notReady == nil {
				interval = slowPoll
			}
		}
		// After the watches are set: what came before them is read, what comes after is told.
		n.reload()
		timer := time.NewTimer(interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-watcher.Events:
			timer.Stop()
			drain(ctx, watcher)
		case <-watcher.Errors: // events were lost: what is there is read anyway
			timer.Stop()
		}
	}
}

// watchDirs adds what can be watched, again for directories that came or came back; false when some cannot be.
func (n *Network) watchDirs(watcher *fsnotify.Watcher) bool {
	all := true
	for _, dir := range append([]string{n.opts.ConfDir}, n.opts.BinDirs...) {
		if err := watcher.Add(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = false
		}
	}
	return all
}

func drain(ctx context.Context, watcher *fsnotify.Watcher) {
	end := time.After(settle)
	for {
		select {
		case <-watcher.Events:
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}
