package preflight

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crishim/cni"
	"crishim/engine/docker/survey"
	"crishim/migrate/kubeletfiles"
)

var update = flag.Bool("update", false, "write the golden files anew")

const socket = "unix:///run/crishim/crishim.sock"

// files is what a kubelet was given.
func files(t *testing.T, tree map[string]string) *kubeletfiles.Files {
	t.Helper()
	root := t.TempDir()
	for path, text := range tree {
		on := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(on), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(on, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := kubeletfiles.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func id(n int) string { return fmt.Sprintf("%064x", n) }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func sandbox(n int, pod string, changes ...func(*survey.Container)) survey.Container {
	c := survey.Container{
		ID: id(n), Name: "k8s_POD_" + pod + "_default_uid-" + pod + "_0", Image: "k8s.gcr.io/pause:3.5", ImageID: "sha256:pause", State: "running", Pid: 100 + n,
		Created: start.Add(time.Duration(n) * time.Second), LogDriver: "json-file", NetworkMode: "none",
		Labels: map[string]string{labelType: "podsandbox", labelPod: pod, labelNamespace: "default", labelUID: "uid-" + pod, labelContainer: "POD"},
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

func container(n, sandboxID int, pod, name string, changes ...func(*survey.Container)) survey.Container {
	c := survey.Container{
		ID: id(n), Name: "k8s_" + name + "_" + pod + "_default_uid-" + pod + "_0", Image: "sha256:web", ImageID: "sha256:web", State: "running", Pid: 100 + n,
		Created: start.Add(time.Duration(n) * time.Second), LogDriver: "json-file", LogPath: "/var/lib/docker/containers/" + id(n) + "/x-json.log",
		NetworkMode: "container:" + id(sandboxID),
		Labels: map[string]string{
			labelType: "container", labelSandbox: id(sandboxID), labelPod: pod, labelNamespace: "default", labelUID: "uid-" + pod, labelContainer: name,
			labelHash: "76a0db39", labelRestarts: "0", labelLogPath: "/var/log/pods/default_" + pod + "_uid/" + name + "/0.log",
		},
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

const kubeadmConf = `[Service]
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS
`

// readyNode is a kubeadm node with dockershim on which nothing stands in the way.
func readyNode(t *testing.T) *Node {
	return &Node{
		Name: "node-1",
		Docker: &survey.Engine{
			Socket: "unix:///var/run/docker.sock", Version: "20.10.24", APIVersion: "1.41", OSType: "linux", CgroupDriver: "systemd", CgroupVersion: "2", RootDir: "/var/lib/docker",
			StorageDriver: "overlay2", LogDriver: "json-file", LiveRestore: true, Runtimes: []string{"runc"}, DefaultRuntime: "runc", Security: []string{"seccomp"},
			Containers: []survey.Container{sandbox(1, "web"), container(2, 1, "web", "server")},
			Images:     []survey.Image{{ID: "sha256:web", Tags: []string{"web:1"}, Size: 141 << 20}, {ID: "sha256:pause", Tags: []string{"k8s.gcr.io/pause:3.5"}, Size: 683 << 10}},
		},
		Daemon: Daemon{Path: "/etc/docker/daemon.json"},
		Kubelet: Kubelet{
			Version: "v1.22.17", Pid: 812, Running: []string{"--config=/var/lib/kubelet/config.yaml", "--network-plugin=cni"},
			Files: files(t, map[string]string{
				"lib/systemd/system/kubelet.service":                   "[Service]\nExecStart=/usr/bin/kubelet\n",
				"etc/systemd/system/kubelet.service.d/10-kubeadm.conf": kubeadmConf,
				"var/lib/kubelet/kubeadm-flags.env":                    "KUBELET_KUBEADM_ARGS=\"--network-plugin=cni\"\n",
				"var/lib/kubelet/config.yaml":                          "kind: KubeletConfiguration\ncgroupDriver: systemd\n",
			}),
		},
		Shim: Shim{Root: "/var/lib/dockershim", CacheDir: "/var/lib/cni/cache"},
		CNI:  cni.Found{File: "/etc/cni/net.d/10-net.conflist", Network: "net", Plugins: []string{"bridge", "host-local"}},
		Sandboxes: map[string]Traces{
			id(1): {Networks: []string{"net"}, IPs: []string{"10.1.0.2"}, Checkpoint: &Checkpoint{Path: "/var/lib/dockershim/sandbox/" + id(1), Namespace: "default", Name: "web", By: "dockershim"}},
		},
		Own: Own{Engine: "auto", RuntimeName: "docker", Listen: []string{socket}, NetworkMode: "cni", ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, Pause: "registry.k8s.io/pause:3.10.1", ContainerLog: "cri", SeccompDir: "/var/lib/kubelet/seccomp",
			AdoptRoots: []string{"/var/lib/dockershim"}, AdoptCaches: []string{"/var/lib/cni/cache"}, Compatibility: "dockershim"},
	}
}

func TestAReadyNodeIsReady(t *testing.T) {
	n := readyNode(t)
	golden(t, "ready", n, Ready)
}

// Most of what can be found, on one node, as an operator gets to read it.
func TestATroubledNode(t *testing.T) {
	n := readyNode(t)
	d := n.Docker
	d.LiveRestore, d.LogDriver, d.Runtimes = false, "journald", []string{"nvidia", "runc"}
	d.Mirrors, d.InsecureRegistries = []string{"https://mirror.example/"}, []string{"reg.example:5000"}
	n.GPUs = []string{"/dev/nvidia0"}
	hostNetwork := func(c *survey.Container) { c.NetworkMode = "host" }
	d.Containers = append(d.Containers,
		sandbox(3, "proxy", hostNetwork),
		container(4, 3, "proxy", "agent", func(c *survey.Container) {
			c.Mounts = []survey.Mount{{Source: "/var/run/docker.sock"}, {Source: "/var/run/dockershim.sock"}, {Source: "/var/log"}}
			c.ImageID = "sha256:agent"
		}),
		sandbox(5, "lost", func(c *survey.Container) { c.NetworkMode = "bridge" }), container(6, 5, "lost", "server"),
		sandbox(7, "ended", func(c *survey.Container) { c.State = "exited" }), container(8, 7, "ended", "job", func(c *survey.Container) { c.State = "exited" }),
		sandbox(9, "odd"), container(10, 9, "odd", "server", func(c *survey.Container) { delete(c.Labels, labelHash) }),
		container(11, 9, "odd", "splunk", func(c *survey.Container) { c.LogDriver = "splunk" }),
		survey.Container{ID: id(12), Name: "build", State: "running", NetworkMode: "bridge", Mounts: []survey.Mount{{Source: "/"}}},
	)
	d.Images = append(d.Images, survey.Image{ID: "sha256:agent", Tags: []string{"datadog/agent:7"}, Size: 2 << 30})
	n.Sandboxes[id(9)] = Traces{Networks: []string{"net"}, IPs: []string{"10.1.0.3"}, CheckpointError: "unexpected end of JSON input"}
	n.Kubelet.Running = append(n.Kubelet.Running, "--v=4")
	golden(t, "troubled", n, ToDo)
}

// golden compares both forms of the report, made from a recording of the node.
func golden(t *testing.T, name string, n *Node, verdict int) {
	t.Helper()
	recorded, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	var read Node
	if err := json.Unmarshal(recorded, &read); err != nil {
		t.Fatal(err)
	}
	r := Examine(&read)
	if r.Verdict != verdict {
		t.Errorf("verdict %d, want %d", r.Verdict, verdict)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for path, got := range map[string]string{name + ".txt": text.String(), name + ".json": string(asJSON) + "\n"} {
		path = filepath.Join("testdata", path)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs; look at it and run with -update if it is right:\n%s", path, got)
		}
	}
}

// Each row changes one thing on a ready node.
func TestOneThingIsFound(t *testing.T) {
	for _, test := range []struct {
		finding string // "SEVERITY ID"
		verdict int
		change  func(t *testing.T, n *Node)
	}{
		{"stop docker-away", Cannot, func(_ *testing.T, n *Node) { n.Docker, n.DockerError = nil, "connection refused" }},
		{"stop docker-old", Cannot, func(_ *testing.T, n *Node) { n.Docker.APIVersion = "1.39" }},
		{"stop docker-not-linux", Cannot, func(_ *testing.T, n *Node) { n.Docker.OSType = "windows" }},
		{"stop docker-rootless", Cannot, func(_ *testing.T, n *Node) { n.Docker.Security = []string{"rootless"} }},
		{"stop docker-userns", Cannot, func(_ *testing.T, n *Node) { n.Docker.Security = []string{"userns"} }},
		{"stop docker-swarm", Cannot, func(_ *testing.T, n *Node) { n.Docker.Swarm = "active" }},
		{"do daemon-json", ToDo, func(_ *testing.T, n *Node) { n.Daemon.Error = "invalid character" }},
		{"stop cgroup-driver", Cannot, func(_ *testing.T, n *Node) { n.Docker.CgroupDriver = "cgroupfs" }},
		{"note cgroup-driver", Ready, func(_ *testing.T, n *Node) {
			n.Docker.CgroupDriver, n.Kubelet.Version = "cgroupfs", "v1.34.1"
		}},
		{"do cgroup-v1", ToDo, func(_ *testing.T, n *Node) { n.Docker.CgroupVersion, n.Kubelet.Version = "1", "v1.37.2" }},
		{"stop kubelet-old", Cannot, func(_ *testing.T, n *Node) { n.Kubelet.Version = "v1.19.16" }},
		{"do kubelet-version", ToDo, func(_ *testing.T, n *Node) { n.Kubelet.Version = "" }},
		{"note kubelet-not-running", Ready, func(_ *testing.T, n *Node) { n.Kubelet.Pid = 0 }},
		{"do kubelet-files", ToDo, func(_ *testing.T, n *Node) { n.Kubelet.Files, n.Kubelet.FilesError = nil, "yaml: line 3" }},
		{"do kubelet-no-unit", ToDo, func(t *testing.T, n *Node) {
			n.Kubelet.Files = files(t, map[string]string{"var/lib/kubelet/config.yaml": "cgroupDriver: systemd\n"})
		}},
		{"do kubelet-drift", ToDo, func(_ *testing.T, n *Node) { n.Kubelet.Running = append(n.Kubelet.Running, "--v=9") }},
		{"do kubelet-by-hand", ToDo, func(t *testing.T, n *Node) {
			n.Kubelet.Running = []string{"--config=/k.json"}
			n.Kubelet.Version = "v1.30.0"
			n.Kubelet.Files = files(t, map[string]string{"lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.json\n", "k.json": `{"cgroupDriver":"systemd"}`})
		}},
		{"stop kubenet", Cannot, flags("--network-plugin=kubenet")},
		{"do network-mode", ToDo, flags("--network-plugin=")},
		{"do flag-moves", ToDo, flags("--network-plugin=cni --cni-conf-dir=/etc/other")},
		{"do flag-moves", ToDo, flags("--network-plugin=cni --cni-bin-dir=/opt/cni/bin,/other")},
		{"do flag-moves", ToDo, flags("--network-plugin=cni --docker-endpoint=unix:///other.sock")},
		{"do flag-moves", ToDo, flags("--network-plugin=cni --network-plugin-mtu=1400")},
		{"do flag-moves", ToDo, flags("--network-plugin=cni --seccomp-profile-root=/etc/seccomp")},
		{"do flag-moves", ToDo, func(t *testing.T, n *Node) {
			flags("--network-plugin=cni --root-dir=/data/kubelet")(t, n)
			n.Kubelet.Version = "v1.23.17"
		}},
		{"do seccomp-dir", ToDo, func(_ *testing.T, n *Node) { n.Own.SeccompDir = "/etc/crishim/seccomp" }},
		{"do seccomp-dir", ToDo, func(t *testing.T, n *Node) { // whose root says nothing of the profiles' folder
			flags("--network-plugin=cni --root-dir=/data/kubelet")(t, n)
			n.Kubelet.Version, n.Own.SeccompDir = "v1.22.17", "/data/kubelet/seccomp"
		}},
		{"note flag-moves", Ready, flags("--network-plugin=cni --image-pull-progress-deadline=10m")},
		{"note flag-pause", Ready, flags("--network-plugin=cni --pod-infra-container-image=k8s.gcr.io/pause:3.5")},
		{"do image-endpoint", ToDo, flags("--network-plugin=cni --image-service-endpoint=unix:///other.sock")},
		{"do image-endpoint", ToDo, func(t *testing.T, n *Node) {
			n.Kubelet.Files = files(t, map[string]string{"lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.json\n", "k.json": `{"cgroupDriver":"systemd","imageServiceEndpoint":"unix:///other.sock"}`})
		}},
		{"do cni-none", ToDo, func(_ *testing.T, n *Node) { n.CNI = cni.Found{} }},
		{"do cni-plugin", ToDo, func(_ *testing.T, n *Node) { n.CNI.Missing = "plugin bridge not found" }},
		{"note cni-problem", Ready, func(_ *testing.T, n *Node) { n.CNI.Problem = "05-broken.conf: EOF" }},
		{"stop own-engine", Cannot, func(_ *testing.T, n *Node) { n.Own.Engine = "native" }},
		{"do own-runtime-name", ToDo, func(_ *testing.T, n *Node) { n.Own.RuntimeName = "crishim" }},
		{"do id-reader", ToDo, func(_ *testing.T, n *Node) {
			n.Own.RuntimeName, n.Docker.Images[0].Tags = "crishim", []string{"falcosecurity/falco:1"}
		}},
		{"note id-reader", Ready, func(_ *testing.T, n *Node) { n.Docker.Images[0].Tags = []string{"falcosecurity/falco:1"} }},
		{"do shim-socket", ToDo, mounts("/var/run/cri-dockerd.sock")},
		{"note docker-socket", Ready, mounts("/var/run")},
		{"do log-reader", ToDo, mounts("/var/lib/docker/containers")},
		{"do log-reader", ToDo, mounts("/var/log/pods")},
		{"note no-labels", Ready, func(_ *testing.T, n *Node) { n.Docker.Containers[1].Labels = nil }},
		{"note orphan-container", Ready, func(_ *testing.T, n *Node) { n.Docker.Containers[1].Labels[labelSandbox] = id(99) }},
		{"do pod-not-adopted", ToDo, func(_ *testing.T, n *Node) { n.Docker.Containers[0].Name = "k8s_POD_web" }},
		{"do pod-not-adopted", ToDo, func(_ *testing.T, n *Node) { n.Docker.Containers[0].Labels[labelUID] = "another" }},
		{"note pod-note", Ready, func(_ *testing.T, n *Node) { n.Sandboxes = nil }},
		{"note pod-note", Ready, func(_ *testing.T, n *Node) { n.Sandboxes[id(1)] = Traces{Networks: []string{"net"}} }},
		{"do pod-not-adopted", ToDo, func(_ *testing.T, n *Node) { n.Sandboxes[id(1)], n.CNI = Traces{CacheError: "EOF"}, cni.Found{} }},
		{"do adopt-roots", ToDo, func(_ *testing.T, n *Node) { n.Shim.Root = "/elsewhere" }},
		{"do adopt-caches", ToDo, func(_ *testing.T, n *Node) { n.Shim.CacheDir = "/elsewhere" }},
		{"note no-way-back", Ready, func(_ *testing.T, n *Node) { n.Own.Compatibility = "" }},
		{"note no-way-back", Ready, func(_ *testing.T, n *Node) { n.Own.CompatibilityRoot = "/elsewhere" }},
		{"note no-way-back", Ready, func(_ *testing.T, n *Node) { n.Own.CNICacheDir = "/elsewhere" }},
		{"do pod-not-adopted", ToDo, func(_ *testing.T, n *Node) { n.Docker.Containers[0].NetworkMode = "default" }},
		{"do pod-not-adopted", ToDo, func(_ *testing.T, n *Node) { n.Own.NetworkMode = "docker-bridge" }},
		{"do pod-not-adopted", ToDo, func(_ *testing.T, n *Node) { n.Docker.Containers[0].NetworkMode = "overlay" }},
		{"note pod-note", Ready, func(_ *testing.T, n *Node) { n.Sandboxes[id(1)].Checkpoint.Name = "other" }},
		{"note pod-note", Ready, func(_ *testing.T, n *Node) { n.Sandboxes[id(1)].Checkpoint.HostNetwork = true }},
		{"do pod-restarts", ToDo, func(_ *testing.T, n *Node) {
			n.Docker.Containers = append(n.Docker.Containers, sandbox(9, "web", func(c *survey.Container) { c.Name = strings.TrimSuffix(c.Name, "0") + "1" }))
			n.Sandboxes[id(9)] = n.Sandboxes[id(1)]
		}},
		{"do container-restarts", ToDo, func(_ *testing.T, n *Node) { n.Docker.Containers[1].Labels[labelHash] = "not hexadecimal" }},
		{"do container-restarts", ToDo, func(_ *testing.T, n *Node) { n.Docker.Containers[1].Name = "renamed" }},
		{"note container-note", Ready, func(_ *testing.T, n *Node) { n.Docker.Containers[1].LogDriver = "gelf" }},
		{"note container-note", Ready, func(_ *testing.T, n *Node) { n.Docker.Containers[1].Labels[labelRestarts] = "4" }},
		{"note registry-mirrors", Ready, func(_ *testing.T, n *Node) { n.Daemon.RegistryMirrors = []string{"https://m.example"} }},
		{"note insecure-registries", Ready, func(_ *testing.T, n *Node) { n.Daemon.InsecureRegistries = []string{"reg.example"} }},
		{"note registry-certificates", Ready, func(_ *testing.T, n *Node) { n.Certificates = []string{"/etc/docker/certs.d/reg.example/ca.crt"} }},
		{"note live-restore-off", Ready, func(_ *testing.T, n *Node) { n.Docker.LiveRestore = false }},
		{"note log-driver", Ready, func(_ *testing.T, n *Node) { n.Docker.LogDriver = "local" }},
		{"note log-drops", Ready, func(_ *testing.T, n *Node) { n.Daemon.LogMode = "non-blocking" }},
		{"note runtimes", Ready, func(_ *testing.T, n *Node) { n.Docker.Runtimes = []string{"kata", "runc"} }},
		{"note gpu", Ready, func(_ *testing.T, n *Node) { n.GPUs = []string{"/dev/nvidia0"} }},
	} {
		t.Run(test.finding, func(t *testing.T) {
			n := readyNode(t)
			test.change(t, n)
			r := Examine(n)
			var found []string
			for _, f := range r.Findings {
				found = append(found, string(f.Severity)+" "+f.ID)
				if f.Message == "" {
					t.Errorf("%s says nothing", f.ID)
				}
			}
			if !slices.Contains(found, test.finding) {
				t.Errorf("found %q", found)
			}
			if r.Verdict != test.verdict {
				t.Errorf("verdict %d, want %d; found %q", r.Verdict, test.verdict, found)
			}
		})
	}
}

// flags gives the kubelet a command line.
func flags(line string) func(t *testing.T, n *Node) {
	return func(t *testing.T, n *Node) {
		n.Kubelet.Running = append([]string{"--config=/var/lib/kubelet/config.yaml"}, strings.Fields(line)...)
		n.Kubelet.Files = files(t, map[string]string{
			"lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml " + line + "\n",
			"var/lib/kubelet/config.yaml":        "cgroupDriver: systemd\n",
		})
	}
}

func mounts(source string) func(t *testing.T, n *Node) {
	return func(_ *testing.T, n *Node) { n.Docker.Containers[1].Mounts = []survey.Mount{{Source: source}} }
}

func TestShimOf(t *testing.T) {
	for _, test := range []struct {
		endpoint string
		minor    int
		want     string
	}{
		{"", 22, "dockershim"}, {"unix:///var/run/dockershim.sock", 23, "dockershim"}, {"", 30, ""},
		{"unix:///var/run/cri-dockerd.sock", 30, "cri-dockerd"}, {"unix:///run/containerd/containerd.sock", 30, ""}, {socket, 30, "crishim"},
	} {
		if got := ShimOf(test.endpoint, test.minor, false); got != test.want {
			t.Errorf("%q with 1.%d is %q, want %q", test.endpoint, test.minor, got, test.want)
		}
	}
}

// TOML has one table on a line: who pasted several got a hosts.toml that fails each pull from Docker Hub.
func TestSeveralMirrorsAreTablesOnLinesOfTheirOwn(t *testing.T) {
	n := readyNode(t)
	n.Daemon.RegistryMirrors = []string{"https://a.example", "https://b.example/"}
	for _, f := range Examine(n).Findings {
		if f.ID == "registry-mirrors" {
			_, lines, _ := strings.Cut(f.Fix, "hosts.toml: ")
			if want := `[host."https://a.example"] and, on a line of its own, [host."https://b.example"]`; lines != want {
				t.Errorf("it says to write %q", lines)
			}
			return
		}
	}
	t.Error("the mirrors are not told")
}
