package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DockerOptions say how a private Docker Engine is to be. The zero value is the engine that $E2E_ENGINE names (DockerEngine).
type DockerOptions struct {
	// Binary is another dockerd, "" the one that $E2E_ENGINE names.
	Binary string
	// PathPrefix goes before PATH: the folder of another containerd or runc.
	PathPrefix string
	// LiveRestore keeps the containers while dockerd is away.
	LiveRestore bool
	// Config is added to the configuration file.
	Config map[string]any
}

// Docker is a private Docker Engine: its own folders, socket, bridge and cgroup, no rule in iptables.
type Docker struct {
	*Process
	// Socket is the path of the API socket, DataRoot the engine's storage, CgroupParent ("/name") where its containers are
	// unless they name a parent; pods of the harness are below it too.
	Socket       string
	DataRoot     string
	CgroupParent string
	Options      DockerOptions

	t          T
	dir        string
	bridge     string
	configFile string
	client     *http.Client
	// leftRunning says that a dockerd has ended above running containers: their logs lack what it had read and not written.
	leftRunning bool
}

// StartDocker starts a Docker Engine and waits until it answers. The cleanup stops it and checks that nothing stays.
func StartDocker(t T, options DockerOptions) *Docker {
	t.Helper()
	if options.Binary == "" {
		engine := DockerEngine(t, os.Getenv(engineVariable))
		options.Binary, options.PathPrefix = engine.Binary, engine.PathPrefix
	}
	dir := WorkDir(t, "d")
	id := filepath.Base(dir)
	d := &Docker{
		t: t, dir: dir, Options: options, Socket: filepath.Join(dir, "docker.sock"), DataRoot: filepath.Join(dir, "data"),
		CgroupParent: "/" + id, bridge: "dk" + id[len(id)-8:], configFile: filepath.Join(dir, "daemon.json"),
	}
	d.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
		},
		DisableKeepAlives: true, // a test may count the descriptors of dockerd
	}}
	t.Cleanup(d.cleanup)
	addBridge(t, d.bridge)
	makeCgroup(t, d.CgroupParent)
	d.writeConfig()
	d.launch()
	return d
}

func (d *Docker) writeConfig() {
	d.t.Helper()
	config := map[string]any{
		"data-root": d.DataRoot, "exec-root": filepath.Join(d.dir, "exec"), "pidfile": d.pidFile(),
		"hosts": []string{"unix://" + d.Socket}, "group": "root", "bridge": d.bridge, "iptables": false, "ip6tables": false,
		"cgroup-parent": d.CgroupParent, "exec-opts": []string{"native.cgroupdriver=cgroupfs"},
		"live-restore": d.Options.LiveRestore, "shutdown-timeout": 5,
	}
	if !hasSysResource() {
		config["runtimes"] = map[string]any{"wrapped": map[string]any{"path": ociWrapper(d.t)}}
		config["default-runtime"] = "wrapped"
	}
	for key, value := range d.Options.Config {
		config[key] = value
	}
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		d.t.Fatalf("describing the Docker Engine: %v", err)
	}
	if err := os.WriteFile(d.configFile, data, 0o644); err != nil {
		d.t.Fatalf("writing %s: %v", d.configFile, err)
	}
}

func (d *Docker) launch() {
	d.t.Helper()
	var env []string
	if d.Options.PathPrefix != "" {
		env = append(env, "PATH="+d.Options.PathPrefix+":"+os.Getenv("PATH"))
	}
	d.Process = start(d.t, "dockerd", filepath.Join(d.dir, "dockerd.log"), env, d.Options.Binary, "--config-file", d.configFile)
	Eventually(d.t, time.Minute, "dockerd to answer", func() error {
		if !d.Running() {
			d.t.Fatalf("dockerd ended at its start:\n%s", d.LogTail())
		}
		return d.call(http.MethodGet, "/info", nil, nil)
	})
}

// Stop ends dockerd with SIGTERM, as an operator does: without live-restore its containers end too.
func (d *Docker) Stop() {
	d.t.Helper()
	d.leftRunning = d.leftRunning || d.Options.LiveRestore
	if err := d.Terminate(time.Minute); err != nil {
		d.t.Errorf("stopping: %v", err)
	}
}

// Kill ends dockerd with SIGKILL. Its containerd dies with it, a moment later: a dockerd started meanwhile would take that
// one for its own, so this waits for it.
func (d *Docker) Kill() {
	d.t.Helper()
	file := filepath.Join(d.dir, "exec", "containerd", "containerd.pid")
	data, err := os.ReadFile(file)
	if err != nil {
		d.t.Fatalf("looking for the containerd of dockerd: %v", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		d.t.Fatalf("reading %s: %v", file, err)
	}
	d.leftRunning = true
	d.Process.Kill()
	Eventually(d.t, time.Minute, "the end of the containerd of dockerd", func() error {
		if syscall.Kill(pid, 0) == nil {
			return fmt.Errorf("process %d is there", pid)
		}
		return nil
	})
	// The next dockerd would take whatever process has these ids by then for one that runs here.
	for _, left := range []string{file, d.pidFile()} {
		if err := os.Remove(left); err != nil && !os.IsNotExist(err) {
			d.t.Fatalf("killing dockerd: %v", err)
		}
	}
}

func (d *Docker) pidFile() string { return filepath.Join(d.dir, "docker.pid") }

// Start starts it again after Stop or Kill and waits until it answers.
func (d *Docker) Start() {
	d.t.Helper()
	d.launch()
}

// Restart is Stop and Start.
func (d *Docker) Restart() {
	d.t.Helper()
	d.Stop()
	d.Start()
}

// Upgrade stops dockerd and starts another one on the same folders.
func (d *Docker) Upgrade(binary, pathPrefix string) {
	d.t.Helper()
	d.Stop()
	d.Options.Binary, d.Options.PathPrefix = binary, pathPrefix
	d.Start()
}

// Endpoint is what a client dials.
func (d *Docker) Endpoint() string { return "unix://" + d.Socket }

// call asks the engine's API, in its own newest version, and decodes the reply into result unless that is nil.
func (d *Docker) call(method, path string, body, result any) error {
	var reader io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/x-tar"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, reader)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	reply, err := d.client.Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(reply.Body)
	if err != nil {
		return err
	}
	if reply.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, reply.Status, bytes.TrimSpace(data))
	}
	if i := bytes.Index(data, []byte(`"errorDetail"`)); i >= 0 { // of a pull or load: the status was sent before it failed
		return fmt.Errorf("%s %s: %s", method, path, data[i:])
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(data, result)
}

// Get asks the engine itself, behind the daemon's back, and decodes the reply.
func (d *Docker) Get(path string, result any) {
	d.t.Helper()
	if err := d.call(http.MethodGet, path, nil, result); err != nil {
		d.t.Fatalf("asking dockerd: %v", err)
	}
}

// Post changes something behind the daemon's back.
func (d *Docker) Post(path string) {
	d.t.Helper()
	if err := d.call(http.MethodPost, path, nil, nil); err != nil {
		d.t.Fatalf("asking dockerd: %v", err)
	}
}

// Delete removes something behind the daemon's back.
func (d *Docker) Delete(path string) {
	d.t.Helper()
	if err := d.call(http.MethodDelete, path, nil, nil); err != nil {
		d.t.Fatalf("asking dockerd: %v", err)
	}
}

// Try is Post or Delete of something that may be gone already.
func (d *Docker) Try(method, path string) error { return d.call(method, path, nil, nil) }

// Version is the engine's own.
func (d *Docker) Version() (string, error) {
	var reply struct{ Version string }
	err := d.call(http.MethodGet, "/version", nil, &reply)
	return reply.Version, err
}

// Load brings images out of a tar file as `docker save` makes it.
func (d *Docker) Load(tar io.Reader) {
	d.t.Helper()
	if err := d.call(http.MethodPost, "/images/load?quiet=1", tar, nil); err != nil {
		d.t.Fatalf("loading an image: %v", err)
	}
}

// Containers are the ids of all containers, running or not.
func (d *Docker) Containers() ([]string, error) {
	var list []struct{ ID string }
	if err := d.call(http.MethodGet, "/containers/json?all=1", nil, &list); err != nil {
		return nil, err
	}
	ids := []string{}
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids, nil
}

// ImageTags are the tags ("repository:tag") of all images of the engine.
func (d *Docker) ImageTags(t T) []string {
	t.Helper()
	var list []struct{ RepoTags []string }
	if err := d.call(http.MethodGet, "/images/json", nil, &list); err != nil {
		t.Fatalf("listing Docker's images: %v", err)
	}
	var tags []string
	for _, image := range list {
		tags = append(tags, image.RepoTags...)
	}
	return tags
}

// ContainerNames are the names of all containers of the engine, without Docker's slash.
func (d *Docker) ContainerNames() ([]string, error) {
	var list []struct{ Names []string }
	if err := d.call(http.MethodGet, "/containers/json?all=1", nil, &list); err != nil {
		return nil, err
	}
	names := []string{}
	for _, c := range list {
		names = append(names, strings.TrimPrefix(strings.Join(c.Names, " "), "/"))
	}
	return names, nil
}

// cleanup ends everything of the engine, also what a dockerd that was killed left, and reports what could not be ended.
func (d *Docker) cleanup() {
	d.t.Helper()
	if d.Process != nil && d.Running() {
		d.Resume()
		if ids, err := d.Containers(); err == nil {
			for _, id := range ids {
				_ = d.call(http.MethodDelete, "/containers/"+id+"?force=1&v=1", nil, nil) // what stays is reported below
			}
		}
		if err := d.Terminate(time.Minute); err != nil {
			d.t.Errorf("%v; the end of its log:\n%s", err, d.LogTail())
		}
	}
	removeCgroup(d.CgroupParent)
	for _, pid := range processesNaming(d.dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	Eventually(d.t, 20*time.Second, "the end of everything that dockerd started", func() error {
		if pids := processesNaming(d.dir); len(pids) > 0 {
			return fmt.Errorf("processes %v are left", pids)
		}
		removeCgroup(d.CgroupParent)
		if left := Cgroups(filepath.Dir(d.CgroupParent)); containsUnder(left, d.CgroupParent) {
			return fmt.Errorf("cgroup %s is left", d.CgroupParent)
		}
		return nil
	})
	unmountAll(d.dir)
	if left := mountsUnder(d.dir); len(left) > 0 {
		d.t.Errorf("mounts are left: %v", left)
	}
	removeBridge(d.t, d.bridge)
}

func containsUnder(list []string, prefix string) bool {
	for _, name := range list {
		if name == prefix || strings.HasPrefix(name, prefix+"/") {
			return true
		}
	}
	return false
}

// hasSysResource says whether containers here can have every capability and any score of the OOM killer.
func hasSysResource() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// addBridge makes the bridge of a Docker Engine beforehand: left to itself it would take docker0. Pods never use it.
func addBridge(t T, name string) {
	t.Helper()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatalf("making bridge %s: %v", name, err)
	}
	address, err := netlink.ParseAddr(freeSubnet(t) + ".1/24")
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := netlink.AddrAdd(bridge, address); err != nil {
		t.Fatalf("giving bridge %s an address: %v", name, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		t.Fatalf("bringing bridge %s up: %v", name, err)
	}
}

func removeBridge(t T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		return // never made, or gone with the last pod
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Errorf("removing bridge %s: %v", name, err)
	}
}

// freeSubnet is the first three numbers of a /24 that no interface here has, out of the range for benchmarks (RFC 2544),
// which no real network uses.
func freeSubnet(t T) string {
	t.Helper()
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatalf("listing addresses: %v", err)
	}
	for third := 1; third < 255; third++ {
		subnet := fmt.Sprintf("198.18.%d", third)
		taken := givenSubnets[subnet]
		for _, a := range addresses {
			taken = taken || strings.HasPrefix(a.IP.String(), subnet+".")
		}
		if !taken {
			givenSubnets[subnet] = true
			return subnet
		}
	}
	t.Fatalf("no free subnet in 198.18.0.0/16")
	return ""
}

// givenSubnets are those handed out by this process: the bridge of a CNI network appears with its first pod.
var givenSubnets = map[string]bool{}

// LogTo copies the end of the engine's log into the test's output, for failures.
func (d *Docker) LogTo(t T) { t.Logf("dockerd:\n%s", d.LogTail()) }

// CLI runs the docker command against the engine, where this machine has it.
func (d *Docker) CLI(t T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Fatalf("the docker command is not on PATH")
	}
	return Run(t, "docker", append([]string{"-H", d.Endpoint()}, args...)...)
}
