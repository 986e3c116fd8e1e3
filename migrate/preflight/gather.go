package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"crishim/cni"
	"crishim/config"
	"crishim/engine"
	"crishim/engine/docker/survey"
	"crishim/migrate"
	"crishim/migrate/kubeletfiles"
)

const loopbackNetwork = "cni-loopback"

// dockerCertificates is where dockerd reads certificates of registries, each in a folder of its host.
const dockerCertificates = "/etc/docker/certs.d"

// Places are where a node is looked at.
type Places struct {
	// Root is "/" on a node: files of the kubelet, of Docker and of shims are looked for below it.
	Root string
	// Proc is where the kubelet's process is looked for, "/proc" on a node.
	Proc string
	// ShimRoot and CacheDir are the old shim's folders; "" takes what its flags say, else its defaults.
	ShimRoot string
	CacheDir string
}

// Gather reads a node. What cannot be read is told in the Node, so that a report is made of the rest.
func Gather(ctx context.Context, c *config.Config, places Places) *Node {
	n := &Node{Own: ownSettings(c)}
	var err error
	if n.Docker, err = survey.Read(ctx, c.Docker.Endpoint); err != nil {
		n.DockerError = err.Error()
	}
	n.Daemon = readDaemon(places.Root)
	n.Kubelet = gatherKubelet(ctx, places)
	n.Shim = gatherShim(places, &n.Kubelet)
	n.Name = nodeName(n.Kubelet.Files)
	n.CNI = cni.Look(c.Network.ConfDir, c.Network.BinDirs)
	if n.Docker != nil {
		n.Sandboxes = gatherTraces(n.Docker, &n.Shim)
	}
	n.GPUs = matches(places.Root, "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri/renderD*")
	n.CDI = matches(places.Root, "/etc/cdi/*", "/var/run/cdi/*")
	n.Certificates = matches(places.Root, dockerCertificates+"/*/*.crt", dockerCertificates+"/*/*.cert")
	return n
}

func ownSettings(c *config.Config) Own {
	o := Own{SeccompDir: c.SeccompDir, Engine: c.Engine, RuntimeName: c.RuntimeName, Listen: c.Listen, NetworkMode: c.Network.Mode, ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs,
		Pause: c.Images.Pause, ContainerLog: c.DockerLog(),
		AdoptRoots: slices.Clone(c.Adopt.Roots), AdoptCaches: append(slices.Clone(c.Adopt.CNICacheDirs), c.CNICacheDir()), // its own are read, too
		Compatibility: c.Compatibility, CompatibilityRoot: c.ShimRoot(), CNICacheDir: c.CNICacheDir(), RegistryDirs: c.Images.RegistryDirs}
	if root := c.ShimRoot(); root != "" {
		o.AdoptRoots = append(o.AdoptRoots, root)
	}
	if o.RuntimeName == "" {
		o.RuntimeName = "docker" // what the docker engine's first start takes
	}
	return o
}

func readDaemon(root string) Daemon {
	d := Daemon{Path: "/etc/docker/daemon.json"}
	data, err := os.ReadFile(filepath.Join(root, d.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return d
	}
	if err == nil {
		// Tokens of log services are among the options: but for the mode only that they have the form which dockerd wants is told.
		file := struct {
			*Daemon
			LogOpts map[string]string `json:"log-opts"`
		}{Daemon: &d}
		err = json.Unmarshal(data, &file)
		d.LogMode = file.LogOpts["mode"]
	}
	if err != nil {
		d.Error = err.Error()
	}
	return d
}

func gatherKubelet(ctx context.Context, places Places) Kubelet {
	var k Kubelet
	files, err := kubeletfiles.Read(places.Root)
	if err != nil {
		k.FilesError = err.Error()
	} else {
		k.Files = files
	}
	program := ""
	if k.Pid, k.Running = findProcess(places.Proc, "kubelet"); k.Pid != 0 {
		program = filepath.Join(places.Proc, strconv.Itoa(k.Pid), "exe")
	} else if files != nil && files.Program() != "" {
		program = filepath.Join(places.Root, files.Program())
	}
	if program != "" {
		k.Version = askVersion(ctx, program)
	}
	return k
}

// askVersion runs the kubelet's own binary, "" where it does not say.
func askVersion(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.WaitDelay = time.Second // its child may hold the output
	out, err := cmd.Output()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return ""
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), "Kubernetes "))
}

// findProcess finds the oldest process whose program has that name, with its arguments. It must be our own user's and see
// our own files: its program is run, and any container can call a process a kubelet.
func findProcess(proc, name string) (pid int, args []string) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, nil
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil || pid != 0 && n > pid {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		data, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(data) == 0 {
			continue
		}
		words := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		if filepath.Base(words[0]) == name && ownUser(dir) && sameMounts(dir, filepath.Join(proc, "self")) {
			pid, args = n, words[1:]
		}
	}
	return pid, args
}

func ownUser(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

func sameMounts(dir, self string) bool {
	theirs, err := os.Readlink(filepath.Join(dir, "ns", "mnt"))
	if err != nil {
		return false
	}
	ours, err := os.Readlink(filepath.Join(self, "ns", "mnt"))
	return err == nil && theirs == ours
}

// gatherShim finds the old shim's folders: from what runs, else from files, else its defaults.
func gatherShim(places Places, k *Kubelet) Shim {
	s := Shim{Root: places.ShimRoot, CacheDir: places.CacheDir}
	s.Flags, _ = kubeletfiles.UnitFlags(places.Root, "cri-docker.service")
	flags := slices.Clone(s.Flags)
	endpoint := ""
	if k.Files != nil {
		flags = append(flags, k.Files.Flags()...)
		endpoint, _ = k.Files.Endpoint()
	}
	flags = append(flags, kubeletfiles.ParseArguments(k.Running)...)
	for _, f := range flags {
		switch f.Name {
		case "experimental-dockershim-root-directory", "cri-dockerd-root-directory":
			if places.ShimRoot == "" {
				s.Root = f.Value
			}
		case "cni-cache-dir":
			if places.CacheDir == "" {
				s.CacheDir = f.Value
			}
		}
	}
	if s.CacheDir == "" {
		s.CacheDir = filepath.Join(places.Root, "/var/lib/cni/cache")
	}
	if s.Root == "" {
		shim := migrate.CRIDockerd
		if ShimOf(endpoint, Minor(k.Version), false) == string(migrate.Dockershim) {
			shim = migrate.Dockershim
		}
		s.Root = filepath.Join(places.Root, shim.Root())
	}
	return s
}

// nodeName is what the kubelet registers.
func nodeName(files *kubeletfiles.Files) string {
	if files != nil {
		if f, ok := files.Flag("hostname-override"); ok {
			return strings.ToLower(f.Value)
		}
	}
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return strings.ToLower(name)
}

// gatherTraces looks for what lies beside each sandbox.
func gatherTraces(d *survey.Engine, s *Shim) map[string]Traces {
	all := map[string]Traces{}
	for _, c := range d.Containers {
		if c.Labels[labelType] == "podsandbox" {
			all[c.ID] = tracesOf(c.ID, s)
		}
	}
	return all
}

func tracesOf(id string, s *Shim) Traces {
	var t Traces
	c, by, err := migrate.ReadCheckpoint(s.Root, engine.PodID(id))
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		t.CheckpointError = err.Error()
	default:
		t.Checkpoint = &Checkpoint{Path: migrate.CheckpointPath(s.Root, engine.PodID(id)), Namespace: c.Namespace, Name: c.Name, HostNetwork: c.HostNetwork, By: string(by)}
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				t.Checkpoint.Ports = append(t.Checkpoint.Ports, survey.Port{Protocol: p.Protocol, ContainerPort: int(p.ContainerPort), HostIP: p.HostIP, HostPort: int(p.HostPort)})
			}
		}
	}
	attachments, err := cni.Adopt(s.CacheDir, id)
	if err != nil {
		t.CacheError = fmt.Sprint(err)
		return t
	}
	for _, a := range attachments {
		// Both shims keep the loopback's as a network of its own, under the same interface.
		if a.IfName != cni.IfName || a.Network == loopbackNetwork {
			continue
		}
		t.Networks = append(t.Networks, a.Network)
		t.IPs = append(t.IPs, a.IPs()...)
	}
	return t
}

func matches(root string, patterns ...string) []string {
	var all []string
	for _, pattern := range patterns {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, path := range found {
			all = append(all, "/"+strings.TrimPrefix(strings.TrimPrefix(path, root), "/"))
		}
	}
	return all
}
