package preflight

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"crishim/migrate/kubeletfiles"
)

func (x *examination) kubelet() {
	k := &x.node.Kubelet
	row := &x.report.Kubelet
	row.Version = k.Version
	if k.FilesError != "" {
		x.find(Do, "kubelet-files", "", "the kubelet's files cannot be read: "+k.FilesError, "mend them")
	}
	x.version()
	if k.Files == nil {
		return
	}
	if len(k.Files.Units) == 0 {
		x.find(Do, "kubelet-no-unit", "", "there is no kubelet.service: crishim adopt cannot switch this kubelet",
			"change how it is started by hand: --container-runtime-endpoint="+first(x.node.Own.Listen))
	} else {
		x.plan()
	}
	x.driver()
	x.drift()
	x.flags()
}

func (x *examination) version() {
	k := &x.node.Kubelet
	switch {
	case k.Pid == 0:
		x.find(Note, "kubelet-not-running", "", "no kubelet runs", "")
	case x.minor == 0:
		x.find(Do, "kubelet-version", "", "the kubelet's version is not known, and with it what it will do with its pods", "see kubelet --version")
	}
	if x.minor > 0 && x.minor < oldestMinor {
		x.find(Stop, "kubelet-old", "", fmt.Sprintf("kubelet %s speaks an older CRI than the v1alpha2 of 1.20", k.Version), "upgrade the kubelet to 1.20 or newer first")
	}
	if d := x.node.Docker; d != nil && d.CgroupVersion == "1" && x.minor >= cgroupV1Refused {
		if value, _ := filesValue(k.Files, "failCgroupV1"); value != "false" {
			x.find(Do, "cgroup-v1", "", "this host has cgroup v1, on which kubelets from 1.35 on do not start by default", "failCgroupV1: false in the kubelet's configuration, or boot with cgroup v2")
		}
	}
}

func filesValue(files *kubeletfiles.Files, key string) (value, where string) {
	if files == nil {
		return "", ""
	}
	return files.Value(key)
}

// driver: two cgroup drivers make two trees of limits, and the kubelet does not find its pods in the other one.
func (x *examination) driver() {
	value, where := x.node.Kubelet.Files.Setting("cgroup-driver", "cgroupDriver")
	if value == "" {
		value, where = "cgroupfs", "the kubelet's default"
	}
	x.report.Kubelet.CgroupDriver = value
	d := x.node.Docker
	if d == nil || d.CgroupDriver == value {
		return
	}
	message := fmt.Sprintf("the kubelet has the cgroup driver %s (%s), Docker has %s", value, where, d.CgroupDriver)
	if x.minor >= driverFromRuntime {
		x.find(Note, "cgroup-driver", where, message+"; this kubelet takes the runtime's", "")
		return
	}
	x.find(Stop, "cgroup-driver", where, message, "set cgroupDriver: "+d.CgroupDriver+" in the kubelet's configuration, with the node drained")
}

// drift: a kubelet that is restarted reads its files again, and what somebody changed since comes into force with the switch.
func (x *examination) drift() {
	k := &x.node.Kubelet
	if k.Pid == 0 || len(k.Files.Units) == 0 {
		return
	}
	now, next := set(kubeletfiles.ParseArguments(k.Running)), set(k.Files.Flags())
	var differ []string
	for flag := range now {
		if !next[flag] {
			differ = append(differ, "loses "+flag)
		}
	}
	for flag := range next {
		if !now[flag] {
			differ = append(differ, "gets "+flag)
		}
	}
	if len(differ) == 0 {
		return
	}
	slices.Sort(differ)
	x.find(Do, "kubelet-drift", "", "the files were changed since the kubelet started; with the restart it "+strings.Join(differ, ", it "), "restart the kubelet before the switch, so that each change is seen by itself")
}

func set(flags []kubeletfiles.Flag) map[string]bool {
	all := map[string]bool{}
	for _, f := range flags {
		all["--"+f.Name+"="+f.Value] = true
	}
	return all
}

// flags: what only dockershim obeyed is said to crishim, or is nothing any more.
func (x *examination) flags() {
	o := x.node.Own
	for _, f := range slices.Concat(x.node.Kubelet.Files.Flags(), x.node.Shim.Flags) {
		switch f.Name {
		case "network-plugin":
			x.networkPlugin(f)
		case "cni-conf-dir":
			x.moves(f, "network.conf_dir", f.Value == o.ConfDir, fmt.Sprintf("conf_dir = %q", f.Value))
		case "cni-bin-dir":
			x.moves(f, "network.bin_dirs", !slices.ContainsFunc(strings.Split(f.Value, ","), func(dir string) bool { return !slices.Contains(o.BinDirs, dir) }),
				fmt.Sprintf("bin_dirs = [%s]", quoted(strings.Split(f.Value, ","))))
		case "docker-endpoint":
			if x.node.Docker != nil {
				x.moves(f, "docker.endpoint", f.Value == x.node.Docker.Socket, fmt.Sprintf("endpoint = %q", f.Value))
			}
		case "pod-infra-container-image":
			if f.Value != o.Pause {
				x.find(Note, "flag-pause", f.File, "new pods get the pause image "+o.Pause+", the old ones keep "+f.Value, fmt.Sprintf("images.pause: pause = %q keeps it", f.Value))
			}
		case "network-plugin-mtu":
			x.find(Do, "flag-moves", f.File, "--network-plugin-mtu="+f.Value+" is not obeyed any more", "set mtu in the CNI configuration")
		case "image-pull-progress-deadline":
			x.find(Note, "flag-moves", f.File, "--image-pull-progress-deadline="+f.Value+" becomes images.pull_no_progress", fmt.Sprintf("pull_no_progress = %q", f.Value))
		}
	}
	x.seccomp()
	if image, where := x.node.Kubelet.Files.ImageEndpoint(); image != "" {
		x.find(Do, "image-endpoint", where, "the kubelet has an endpoint of its own for images, "+image+": images and containers would be those of different runtimes", "take it away")
	}
}

// seccomp: where the runtime looks for Localhost profiles elsewhere than the kubelet, containers with one are refused. Up to
// 1.22 a flag of its own names the folder, whatever the kubelet's root is; then it is in that root.
func (x *examination) seccomp() {
	dir := filepath.Clean(x.node.Own.SeccompDir)
	if f, ok := x.node.Kubelet.Files.Flag("seccomp-profile-root"); ok {
		x.moves(f, "seccomp_dir", filepath.Clean(f.Value) == dir, fmt.Sprintf("seccomp_dir = %q", f.Value))
		return
	}
	f, ok := x.node.Kubelet.Files.Flag("root-dir")
	if own := filepath.Join(f.Value, "seccomp"); ok && (x.minor == 0 || x.minor > seccompByFlag) {
		x.moves(f, "seccomp_dir", own == dir, fmt.Sprintf("seccomp_dir = %q", own))
		return
	}
	// Without a unit the kubelet's flags are not known, and with "" no profile is taken.
	if len(x.node.Kubelet.Files.Units) > 0 && x.node.Own.SeccompDir != "" && dir != defaultSeccomp {
		x.find(Do, "seccomp-dir", dir, "crishim looks for seccomp profiles in "+dir+", and the kubelet has them in "+defaultSeccomp+", as no flag of its names another folder",
			fmt.Sprintf("seccomp_dir: seccomp_dir = %q", defaultSeccomp))
	}
}

func (x *examination) moves(f kubeletfiles.Flag, setting string, done bool, line string) {
	if !done {
		x.find(Do, "flag-moves", f.File, fmt.Sprintf("--%s=%s is crishim's setting %s, which is another", f.Name, f.Value, setting), setting+": "+line)
	}
}

func (x *examination) networkPlugin(f kubeletfiles.Flag) {
	switch {
	case f.Value == "kubenet":
		x.find(Stop, "kubenet", f.File, "--network-plugin=kubenet keeps addresses in its memory only and has no successor",
			"write a CNI configuration (bridge, host-local, portmap), drain the node, and switch it empty")
	case f.Value == "cni" && x.node.Own.NetworkMode != "cni":
		x.find(Do, "network-mode", f.File, "pods have CNI now, and crishim is set to network.mode "+x.node.Own.NetworkMode, `network.mode = "cni"`)
	case f.Value != "cni" && x.node.Own.NetworkMode == "cni":
		x.find(Do, "network-mode", f.File, "pods are on Docker's own bridge now, and crishim is set to CNI", `network.mode = "docker-bridge"`)
	}
}

func quoted(words []string) string {
	var all []string
	for _, w := range words {
		all = append(all, fmt.Sprintf("%q", w))
	}
	return strings.Join(all, ", ")
}

func first(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return words[0]
}

func (x *examination) network() {
	if x.node.Own.NetworkMode != "cni" {
		return
	}
	c := x.node.CNI
	switch {
	case c.File == "":
		x.find(Do, "cni-none", x.node.Own.ConfDir, strings.TrimSpace("no CNI configuration can be used, and the kubelet would call the node NotReady "+c.Problem), "install a network add-on, or set network.conf_dir")
	case c.Missing != "":
		x.find(Do, "cni-plugin", c.File, c.Missing, "install it, or set network.bin_dirs")
	case c.Problem != "":
		x.find(Note, "cni-problem", c.File, c.Problem, "")
	}
}
