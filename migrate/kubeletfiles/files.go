// Package kubeletfiles knows where a kubelet's settings come from (its systemd unit, drop-ins, environment files, its own
// configuration files, kubeadm's among them) and what to change in them so that it uses another container runtime.
//
// A caller gets the files with Read, asks Flag, Value and Endpoint, decides with Plan, which touches nothing, and keeps the
// old files with Save before Apply writes; Restore undoes.
package kubeletfiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files of kubeadm, and the drop-in that Plan writes where flags stand in unit files.
const (
	KubeadmFlags   = "/var/lib/kubelet/kubeadm-flags.env"
	InstanceConfig = "/var/lib/kubelet/instance-config.yaml"
	KubeadmConfig  = "/var/lib/kubelet/config.yaml"
	DropIn         = "/etc/systemd/system/kubelet.service.d/90-crishim.conf"

	kubeadmVariable = "KUBELET_KUBEADM_ARGS"
)

// unitDirs are systemd's, the first counts over the later ones.
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"}

// File is one file as it was read, at its path on the node.
type File struct {
	Path string      `json:"path"`
	Data string      `json:"data"`
	Mode fs.FileMode `json:"mode"`
}

// Argument is one word of the kubelet's command line and where it stands: in ExecStart, or in a variable.
type Argument struct {
	Text     string
	File     string
	Variable string // "" in ExecStart itself
}

// Files are all files that a kubelet's settings are in.
type Files struct {
	Units        []File `json:"units,omitempty"` // kubelet.service, then its drop-ins as systemd reads them
	Environments []File `json:"environments,omitempty"`
	// Configs are KubeletConfiguration files; the later ones count over the earlier: --config, then those of --config-dir.
	Configs []File `json:"configs,omitempty"`
	// Instance is kubeadm's file for this node alone, which kubeadm merges into the configuration at upgrades.
	Instance *File `json:"instance,omitempty"`

	args    []Argument
	program string
}

// Read reads what there is below root ("/" on a node). A node without kubelet.service has no Units.
func Read(root string) (*Files, error) {
	f := &Files{}
	for _, path := range unitFiles(root, "kubelet.service") {
		if err := add(&f.Units, root, path); err != nil {
			return nil, err
		}
	}
	if err := f.readEnvironments(root); err != nil {
		return nil, err
	}
	config := KubeadmConfig
	if flag, ok := f.Flag("config"); ok {
		config = flag.Value
	} else if base(f.program) == "kubelet" {
		config = "" // it reads none, also where one of kubeadm's is left
	}
	if config != "" {
		if err := add(&f.Configs, root, config); err != nil {
			return nil, err
		}
	}
	if flag, ok := f.Flag("config-dir"); ok {
		for _, path := range configsBelow(filepath.Join(root, flag.Value)) {
			if err := add(&f.Configs, root, "/"+strings.TrimPrefix(strings.TrimPrefix(path, root), "/")); err != nil {
				return nil, err
			}
		}
	}
	var instance []File
	if err := add(&instance, root, InstanceConfig); err != nil {
		return nil, err
	}
	if len(instance) > 0 {
		f.Instance = &instance[0]
	}
	return f, f.checkConfigs()
}

// configsBelow are the files that a kubelet reads of its --config-dir, in its order.
func configsBelow(dir string) []string {
	var paths []string
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Ext(path) == ".conf" {
			paths = append(paths, path)
		}
		return nil // what cannot be read keeps the kubelet itself from starting
	})
	return paths
}

// UnmarshalJSON reads recorded files.
func (f *Files) UnmarshalJSON(data []byte) error {
	type plain Files
	if err := json.Unmarshal(data, (*plain)(f)); err != nil {
		return err
	}
	return f.parse()
}

func (f *Files) checkConfigs() error {
	for _, c := range f.Configs {
		if _, err := parseConfig(c.Data); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	return nil
}

// parse finds the command line; it is called again after an edit.
func (f *Files) parse() error {
	if len(f.Units) == 0 {
		return nil
	}
	u, err := parseUnit(f.Units, func(path string) (string, bool) {
		i := slices.IndexFunc(f.Environments, func(e File) bool { return e.Path == path })
		if i < 0 {
			return "", false
		}
		return f.Environments[i].Data, true
	})
	if err != nil {
		return err
	}
	if len(u.exec) > 0 {
		f.program = strings.TrimLeft(u.exec[0], "@-:+!")
	}
	f.args, err = u.arguments()
	return err
}

// Kubeadm says whether kubeadm set the node up.
func (f *Files) Kubeadm() bool {
	return slices.ContainsFunc(f.Environments, func(e File) bool { return e.Path == KubeadmFlags })
}

// Program is the path of the kubelet's binary in ExecStart, "" where there is none.
func (f *Files) Program() string { return f.program }

// UnitFlags are the flags of another service, a shim's; none where there is no such unit.
func UnitFlags(root, name string) ([]Flag, error) {
	f := &Files{}
	for _, path := range unitFiles(root, name) {
		if err := add(&f.Units, root, path); err != nil {
			return nil, err
		}
	}
	if err := f.readEnvironments(root); err != nil {
		return nil, err
	}
	return f.Flags(), nil
}

// readEnvironments reads the environment files that the units name, and then the command line.
func (f *Files) readEnvironments(root string) error {
	u, err := parseUnit(f.Units, func(string) (string, bool) { return "", false })
	if err != nil {
		return err
	}
	for _, path := range u.envFiles {
		if err := add(&f.Environments, root, path); err != nil {
			return err
		}
	}
	return f.parse()
}

// add appends a file; an absent one is none.
func add(files *[]File, root, path string) error {
	on := filepath.Join(root, path)
	data, err := os.ReadFile(on)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(on)
	if err != nil {
		return err
	}
	*files = append(*files, File{Path: path, Data: string(data), Mode: info.Mode().Perm()})
	return nil
}

// unitFiles are a unit and its drop-ins, in the order in which systemd reads them.
func unitFiles(root, unit string) []string {
	var paths []string
	for _, dir := range unitDirs {
		path := filepath.Join(dir, unit)
		if info, err := os.Stat(filepath.Join(root, path)); err == nil && info.Mode().IsRegular() {
			paths = append(paths, path)
			break
		}
	}
	if len(paths) == 0 {
		return nil
	}
	dropIns := map[string]string{} // file name → path
	for _, dir := range slices.Backward(unitDirs) {
		entries, _ := os.ReadDir(filepath.Join(root, dir, unit+".d"))
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") {
				dropIns[e.Name()] = filepath.Join(dir, unit+".d", e.Name())
			}
		}
	}
	names := make([]string, 0, len(dropIns))
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		paths = append(paths, dropIns[name])
	}
	return paths
}
