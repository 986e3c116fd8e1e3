package preflight

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"crishim/migrate/kubeletfiles"
)

// Examine makes the report. It asks nobody anything.
func Examine(n *Node) *Report {
	x := &examination{node: n, report: &Report{Node: n.Name, Findings: []Finding{}, Pods: []Pod{}, Images: []ImageRow{}}}
	x.minor = Minor(n.Kubelet.Version)
	x.shim()
	x.docker()
	x.kubelet()
	x.network()
	x.own()
	x.adoption()
	x.pods()
	x.images()
	x.users()
	x.devices()
	x.report.conclude()
	return x.report
}

type examination struct {
	node   *Node
	report *Report
	minor  int // the kubelet's, 0 where it is not known
}

func (x *examination) find(s Severity, id, subject, message, fix string) {
	x.report.Findings = append(x.report.Findings, Finding{Severity: s, ID: id, Subject: subject, Message: message, Fix: fix})
}

var versionForm = regexp.MustCompile(`\bv?1\.(\d+)\.`)

// Minor is the minor version of Kubernetes in a version such as "v1.23.17", 0 where there is none.
func Minor(version string) int {
	match := versionForm.FindStringSubmatch(version)
	if match == nil {
		return 0
	}
	minor, _ := strconv.Atoi(match[1])
	return minor
}

// The bounds of what a kubelet may be: 1.20 to 1.22 speak v1alpha2 only, which is served.
const (
	oldestMinor = 20
	// lastDockershim is the last kubelet with dockershim in it.
	lastDockershim = 23
	// seccompByFlag is the last kubelet that has --seccomp-profile-root.
	seccompByFlag = 22
	// defaultSeccomp is the folder of a kubelet's Localhost profiles that no flag moves.
	defaultSeccomp = "/var/lib/kubelet/seccomp"
	// driverFromRuntime is the first kubelet that asks the runtime for the cgroup driver by default.
	driverFromRuntime = 31
	// cgroupV1Refused is the first kubelet that does not start on cgroup v1 unless failCgroupV1 is false.
	cgroupV1Refused = 35
)

// minAPI is the oldest Docker Engine API that can be driven, that of Docker 20.10.
const minAPI = "1.41"

func (x *examination) shim() {
	endpoint, where := "", ""
	if files := x.node.Kubelet.Files; files != nil {
		endpoint, where = files.Endpoint()
	}
	row := &x.report.Kubelet
	row.Endpoint, row.Where = endpoint, where
	row.Shim = ShimOf(endpoint, x.minor, slices.Contains(x.node.Own.Listen, endpoint))
}

// ShimOf names what serves a kubelet's endpoint.
func ShimOf(endpoint string, minor int, ours bool) string {
	switch {
	case ours || strings.Contains(endpoint, "crishim"):
		return "crishim"
	case strings.Contains(endpoint, "cri-dockerd"):
		return "cri-dockerd"
	case (endpoint == "" || strings.Contains(endpoint, "dockershim")) && minor > 0 && minor <= lastDockershim:
		return "dockershim"
	}
	return ""
}

func (x *examination) docker() {
	d := x.node.Docker
	if d == nil {
		x.find(Stop, "docker-away", "", "no Docker Engine answers: "+x.node.DockerError, "start it, or name its socket in docker.endpoint")
		return
	}
	x.report.Engine = EngineRow{
		Version: d.Version, APIVersion: d.APIVersion, CgroupDriver: d.CgroupDriver, CgroupVersion: d.CgroupVersion, StorageDriver: d.StorageDriver,
		LogDriver: d.LogDriver, LiveRestore: d.LiveRestore, Runtimes: d.Runtimes, DefaultRuntime: d.DefaultRuntime,
	}
	if olderAPI(d.APIVersion, minAPI) {
		x.find(Stop, "docker-old", "", fmt.Sprintf("Docker %s speaks API %s, at least %s is needed", d.Version, d.APIVersion, minAPI), "upgrade to Docker 20.10 or newer; with live-restore containers go on meanwhile")
	}
	if d.OSType != "" && d.OSType != "linux" {
		x.find(Stop, "docker-not-linux", "", "the engine runs "+d.OSType+" containers", "")
	}
	if slices.Contains(d.Security, "rootless") {
		x.find(Stop, "docker-rootless", "", "the engine runs rootless, pods need one that runs as root", "")
	}
	if slices.Contains(d.Security, "userns") {
		x.find(Stop, "docker-userns", "", "userns-remap is on", "take it out of daemon.json; containers made with it are gone then")
	}
	if d.Swarm != "" && d.Swarm != "inactive" {
		x.find(Stop, "docker-swarm", "", "the engine is a swarm node ("+d.Swarm+")", "docker swarm leave")
	}
	if !d.LiveRestore {
		x.find(Note, "live-restore-off", x.node.Daemon.Path, "a restart of dockerd ends every pod; the switch itself restarts no dockerd", `"live-restore": true, then systemctl reload docker`)
	}
	if d.LogDriver != "json-file" {
		x.find(Note, "log-driver", x.node.Daemon.Path, "new containers of others are logged by "+d.LogDriver+"; those of pods get json-file from crishim, whatever is set here", "")
	} else if x.node.Daemon.LogMode == "non-blocking" {
		x.find(Note, "log-drops", x.node.Daemon.Path, `"mode" in log-opts is "non-blocking", for pods too: what they write faster than dockerd logs it, dockerd drops, and nobody is told`,
			`take "mode" and "max-buffer-size" out of log-opts, and restart dockerd, before new pods are made`)
	}
	if x.node.Daemon.Error != "" {
		x.find(Do, "daemon-json", x.node.Daemon.Path, x.node.Daemon.Error, "mend the file: dockerd does not start with it")
	}
	x.registries()
}

func olderAPI(version, than string) bool {
	parse := func(v string) (major, minor int) {
		a, b, _ := strings.Cut(v, ".")
		major, _ = strconv.Atoi(a)
		minor, _ = strconv.Atoi(b)
		return major, minor
	}
	a, b := parse(version)
	c, d := parse(than)
	return a < c || a == c && b < d
}

func (x *examination) registries() {
	mirrors := union(x.node.Docker.Mirrors, x.node.Daemon.RegistryMirrors)
	if len(mirrors) > 0 {
		x.find(Note, "registry-mirrors", x.node.Daemon.Path, "pulls from Docker Hub go through "+strings.Join(mirrors, ", ")+"; with the docker engine that stays so",
			"for the native engine write /etc/crishim/certs.d/docker.io/hosts.toml: "+hostsTOML(mirrors))
	}
	if insecure := union(x.node.Docker.InsecureRegistries, x.node.Daemon.InsecureRegistries); len(insecure) > 0 {
		x.find(Note, "insecure-registries", x.node.Daemon.Path, "not checked or spoken to by plain HTTP: "+strings.Join(insecure, ", ")+"; with the docker engine that stays so",
			"for the native engine each needs a hosts.toml with skip_verify = true or an http:// address")
	}
	if len(x.node.Certificates) > 0 && !slices.Contains(x.node.Own.RegistryDirs, dockerCertificates) {
		x.find(Note, "registry-certificates", "images.registry_dirs", "certificates of registries are used by dockerd: "+strings.Join(x.node.Certificates, ", ")+"; with the docker engine that stays so",
			fmt.Sprintf("for the native engine add %q", dockerCertificates))
	}
}

// hostsTOML is the mirrors in the form that the native engine reads, for people.
func hostsTOML(mirrors []string) string {
	tables := make([]string, len(mirrors))
	for i, m := range mirrors {
		tables[i] = fmt.Sprintf("[host.%q]", strings.TrimSuffix(m, "/"))
	}
	return strings.Join(tables, " and, on a line of its own, ")
}

func union(lists ...[]string) []string {
	var all []string
	for _, list := range lists {
		for _, entry := range list {
			if entry = strings.TrimSuffix(entry, "/"); !slices.Contains(all, entry) {
				all = append(all, entry)
			}
		}
	}
	return all
}

func (x *examination) own() {
	o := x.node.Own
	if o.Engine == "native" {
		x.find(Stop, "own-engine", "engine", "crishim is set to make pods with its native engine, which cannot take over Docker's", `engine = "docker"`)
	}
	if o.RuntimeName != "docker" {
		x.find(Do, "own-runtime-name", "runtime_name", fmt.Sprintf("container ids would become %s://…: agents that read them, and everything that remembers docker://… ids, lose the containers", o.RuntimeName),
			`leave runtime_name empty, or set it to "docker"`)
	}
}

// adoption: the old shim's files must be looked for where they are.
func (x *examination) adoption() {
	o, s := x.node.Own, x.node.Shim
	if !slices.Contains(o.AdoptRoots, s.Root) {
		x.find(Do, "adopt-roots", s.Root, "the old shim's checkpoints are not looked for there: host ports that nobody else tells are not known", fmt.Sprintf("adopt.roots: add %q", s.Root))
	}
	if o.NetworkMode == "cni" && !slices.Contains(o.AdoptCaches, s.CacheDir) {
		x.find(Do, "adopt-caches", s.CacheDir, "the results of CNI are not looked for there: pods would be taken down by today's configuration", fmt.Sprintf("adopt.cni_cache_dirs: add %q", s.CacheDir))
	}
	shim := x.report.Kubelet.Shim
	switch {
	case shim != "dockershim" && shim != "cri-dockerd":
	case shim == o.Compatibility:
		x.wayBack(shim)
	default:
		x.find(Note, "no-way-back", "compatibility", "pods that crishim makes could not be taken back by "+shim+" after a rollback; those that it takes over could", fmt.Sprintf("compatibility = %q, until you need no way back", shim))
	}
}

// wayBack: what is kept for the old shim must be where it looks.
func (x *examination) wayBack(shim string) {
	o, s := x.node.Own, x.node.Shim
	if o.CompatibilityRoot != "" && o.CompatibilityRoot != s.Root {
		x.find(Note, "no-way-back", "compatibility_root", fmt.Sprintf("the checkpoints of pods that crishim makes would be in %s, and %s looks for them in %s: after a rollback it would not know their host ports", o.CompatibilityRoot, shim, s.Root),
			fmt.Sprintf("compatibility_root = %q", s.Root))
	}
	if o.NetworkMode == "cni" && o.CNICacheDir != "" && o.CNICacheDir != s.CacheDir {
		x.find(Note, "no-way-back", "network.cache_dir", fmt.Sprintf("the results of CNI of pods that crishim makes would be in %s, and %s looks for them in %s: after a rollback it would take them down without", o.CNICacheDir, shim, s.CacheDir),
			fmt.Sprintf("network.cache_dir: cache_dir = %q", s.CacheDir))
	}
}

// plan is what the switch edits.
func (x *examination) plan() {
	files := x.node.Kubelet.Files
	if files == nil || len(x.node.Own.Listen) == 0 {
		return
	}
	edits, err := files.Plan(kubeletfiles.Target{Endpoint: x.node.Own.Listen[0], Minor: x.minor})
	if err != nil {
		x.find(Do, "kubelet-by-hand", "", "crishim adopt cannot edit the kubelet's files: "+err.Error(), "edit them by hand")
		return
	}
	for _, e := range edits {
		x.report.Kubelet.Edits = append(x.report.Kubelet.Edits, EditRow{Path: e.Path, New: e.New, Why: e.Why})
	}
}
