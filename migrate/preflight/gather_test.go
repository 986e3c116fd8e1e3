package preflight

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"crishim/config"
	"crishim/engine/docker/survey"
)

func write(t *testing.T, root, path, text string) {
	t.Helper()
	on := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(on), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(on, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[path] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// cached is an entry of libcni's cache as dockershim leaves it.
func cached(network, id, ifname, result string) string {
	config := fmt.Sprintf(`{"cniVersion":"0.4.0","name":%q,"plugins":[{"type":"bridge"}]}`, network)
	return fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":%q,"ifName":%q,"networkName":%q,"netns":"/proc/1/ns/net","cniArgs":[["IgnoreUnknown","1"]],"capabilityArgs":{},"result":%s}`,
		id, base64.StdEncoding.EncodeToString([]byte(config)), ifname, network, result)
}

func TestGatherReadsANodeAndChangesNothing(t *testing.T) {
	root := t.TempDir()
	pod := id(7)
	write(t, root, "etc/docker/daemon.json", `{"registry-mirrors":["https://m.example"],"log-driver":"splunk","log-opts":{"splunk-token":"secret","mode":"non-blocking"},"live-restore":true}`)
	write(t, root, "lib/systemd/system/kubelet.service", "[Service]\nExecStart=/usr/bin/kubelet --hostname-override=Node-A --cni-cache-dir="+filepath.Join(root, "cache")+"\n")
	write(t, root, "usr/bin/kubelet", "#!/bin/sh\necho Kubernetes v1.22.17\n")
	write(t, root, "lib/systemd/system/cri-docker.service", "[Service]\nExecStart=/usr/bin/cri-dockerd --cri-dockerd-root-directory "+filepath.Join(root, "old")+"\n")
	write(t, root, "proc/12/cmdline", "/bin/sh\x00-c\x00kubelet\x00")
	write(t, root, "old/sandbox/"+pod, `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18080},{"protocol":"tcp","container_port":81,"host_port":0}]},"checksum":1}`)
	result := `{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"version":"4","interface":0,"address":"10.1.0.2/24"}]}`
	write(t, root, "cache/results/net-"+pod+"-eth0", cached("net", pod, "eth0", result))
	write(t, root, "cache/results/cni-loopback-"+pod+"-eth0", cached("cni-loopback", pod, "eth0", strings.ReplaceAll(result, "10.1.0.2", "127.0.0.1")))
	write(t, root, "dev/nvidia0", "")
	write(t, root, "etc/cdi/nvidia.yaml", "")
	write(t, root, "etc/docker/certs.d/reg.example:5000/ca.crt", "")
	before := snapshot(t, root)

	c := config.Default()
	c.Docker.Endpoint = "unix://" + filepath.Join(root, "none.sock")
	n := Gather(context.Background(), c, Places{Root: root, Proc: filepath.Join(root, "proc")})
	if n.Docker != nil || n.DockerError == "" {
		t.Errorf("docker: %+v, %q", n.Docker, n.DockerError)
	}
	if n.Name != "node-a" || n.Kubelet.Version != "v1.22.17" || n.Kubelet.Pid != 0 {
		t.Errorf("node %q, kubelet %q with pid %d", n.Name, n.Kubelet.Version, n.Kubelet.Pid)
	}
	if want := (Daemon{Path: "/etc/docker/daemon.json", RegistryMirrors: []string{"https://m.example"}, LogDriver: "splunk", LogMode: "non-blocking"}); !reflect.DeepEqual(n.Daemon, want) {
		t.Errorf("daemon.json: %+v", n.Daemon)
	}
	if !reflect.DeepEqual(n.GPUs, []string{"/dev/nvidia0"}) || !reflect.DeepEqual(n.CDI, []string{"/etc/cdi/nvidia.yaml"}) {
		t.Errorf("devices %q, %q", n.GPUs, n.CDI)
	}
	if !reflect.DeepEqual(n.Certificates, []string{"/etc/docker/certs.d/reg.example:5000/ca.crt"}) || !slices.Contains(n.Own.RegistryDirs, "/etc/docker/certs.d") {
		t.Errorf("certificates %q, read by ourselves in %q", n.Certificates, n.Own.RegistryDirs)
	}
	if n.Shim.Root != filepath.Join(root, "old") || n.Shim.CacheDir != filepath.Join(root, "cache") {
		t.Errorf("shim: %+v", n.Shim)
	}
	traces := gatherTraces(&survey.Engine{Containers: []survey.Container{{ID: pod, Labels: map[string]string{labelType: "podsandbox"}}, {ID: id(8)}}}, &n.Shim)
	want := map[string]Traces{pod: {
		Networks: []string{"net"}, IPs: []string{"10.1.0.2"},
		Checkpoint: &Checkpoint{Path: filepath.Join(root, "old/sandbox", pod), Namespace: "default", Name: "web", Ports: []survey.Port{{Protocol: "tcp", ContainerPort: 80, HostPort: 18080}}},
	}}
	if !reflect.DeepEqual(traces, want) {
		t.Errorf("traces %+v", traces[pod])
	}
	if after := snapshot(t, root); !reflect.DeepEqual(before, after) {
		t.Errorf("something was changed: %v, was %v", after, before)
	}
}

func TestTheRunningKubeletCounts(t *testing.T) {
	root := t.TempDir()
	write(t, root, "proc/30/cmdline", "/usr/bin/kubelet\x00--experimental-dockershim-root-directory=/other\x00")
	write(t, root, "proc/31/cmdline", "/usr/bin/kubelet\x00--v=1\x00") // a later one is somebody's --version
	write(t, root, "proc/30/exe", "#!/bin/sh\necho Kubernetes v1.21.2\n")
	// A container's process may have any name.
	write(t, root, "proc/20/cmdline", "/usr/bin/kubelet\x00--v=9\x00")
	write(t, root, "proc/20/exe", "#!/bin/sh\necho Kubernetes v1.99.0\n")
	for pid, namespace := range map[string]string{"self": "mnt:[1]", "30": "mnt:[1]", "31": "mnt:[1]", "20": "mnt:[2]"} {
		dir := filepath.Join(root, "proc", pid, "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(namespace, filepath.Join(dir, "mnt")); err != nil {
			t.Fatal(err)
		}
	}
	k := gatherKubelet(context.Background(), Places{Root: root, Proc: filepath.Join(root, "proc")})
	if k.Pid != 30 || k.Version != "v1.21.2" {
		t.Errorf("pid %d, version %q", k.Pid, k.Version)
	}
	if s := gatherShim(Places{Root: root}, &k); s.Root != "/other" {
		t.Errorf("shim root %q", s.Root)
	}
}

// With an old shim's files kept up the logs stay Docker's: no agent has to learn another format.
func TestKeptOldShimsLogsAreDockers(t *testing.T) {
	c := config.Default()
	if own := ownSettings(c); own.ContainerLog != "cri" {
		t.Errorf("logs are %q", own.ContainerLog)
	}
	c.Compatibility = "cri-dockerd"
	if own := ownSettings(c); own.ContainerLog != "json-file" {
		t.Errorf("logs are %q where the way back is kept open", own.ContainerLog)
	}
}

// An old shim with folders of its own gets them by the settings of the way back alone, by which its files are found, too.
func TestFoldersOfTheWayBackAreReadToo(t *testing.T) {
	node := func(change func(c *config.Config)) []Finding {
		c := config.Default()
		c.Engine, c.Compatibility = "docker", "dockershim"
		change(c)
		n := readyNode(t)
		n.Shim = Shim{Root: "/data/dockershim", CacheDir: "/data/cni"}
		n.Own = ownSettings(c)
		n.Own.Listen = []string{socket}
		return Examine(n).Findings
	}
	of := func(findings []Finding) (ids []string) {
		for _, f := range findings {
			if strings.HasPrefix(f.ID, "adopt-") || f.ID == "no-way-back" {
				ids = append(ids, f.ID)
			}
		}
		return ids
	}
	if got := of(node(func(*config.Config) {})); !slices.Equal(got, []string{"adopt-roots", "adopt-caches", "no-way-back", "no-way-back"}) {
		t.Errorf("with the default folders: %q", got)
	}
	got := of(node(func(c *config.Config) { c.CompatibilityRoot, c.Network.CacheDir = "/data/dockershim", "/data/cni" }))
	if len(got) > 0 {
		t.Errorf("with the shim's own: %q", got)
	}
}

// dockerd does not start with such a file.
func TestLogOptionsThatAreNoTextsAreTold(t *testing.T) {
	root := t.TempDir()
	write(t, root, "etc/docker/daemon.json", `{"log-driver":"local","log-opts":{"max-file":3}}`)
	if d := readDaemon(root); d.LogDriver != "local" || !strings.Contains(d.Error, "log-opts") {
		t.Errorf("%+v", d)
	}
}
