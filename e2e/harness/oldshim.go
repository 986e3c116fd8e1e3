package harness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// OldShim makes pods through the Docker Engine's API and the plugins exactly as cri-dockerd does: its names, labels,
// checkpoints, its cache of libcni and its links to Docker's logs. Root and Cache are the folders that it would have.
type OldShim struct{ Root, Cache string }

// NewOldShim makes its folders.
func NewOldShim(t T) *OldShim {
	t.Helper()
	dir := WorkDir(t, "o")
	o := &OldShim{Root: filepath.Join(dir, "cri-dockerd"), Cache: filepath.Join(dir, "cache")}
	for _, folder := range []string{filepath.Join(o.Root, "sandbox"), o.Cache} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatalf("making a folder of the old shim: %v", err)
		}
	}
	return o
}

// Settings tell the daemon where the old shim's folders are.
func (o *OldShim) Settings() map[string]any {
	return map[string]any{"adopt": map[string]any{"roots": []string{o.Root}, "cni_cache_dirs": []string{o.Cache}}}
}

// Left are the files that it has left.
func (o *OldShim) Left() []string { return files(o.Root, o.Cache) }

// RunPod makes a pod with the checkpoint data and its checksum: {"data":…,"checksum":…}. "" leaves the checkpoint out.
func (o *OldShim) RunPod(t T, n *Node, config *runtimeapi.PodSandboxConfig, checkpoint string) *Pod {
	t.Helper()
	n.PreparePod(t, config)
	meta := config.Metadata
	labels := o.labels(config.Labels, config.Annotations, "podsandbox")
	labels["io.kubernetes.container.name"] = "POD"
	host := config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
	mode, ipc, hostname := "none", "shareable", config.Hostname
	if host {
		mode, ipc, hostname = "host", "host", ""
	}
	exposed, bindings := map[string]any{}, map[string]any{}
	var mappings []map[string]any
	for _, p := range config.PortMappings {
		protocol := strings.ToLower(p.Protocol.String())
		port := fmt.Sprintf("%d/%s", p.ContainerPort, protocol)
		exposed[port] = struct{}{}
		if p.HostPort > 0 {
			bindings[port] = []any{map[string]any{"HostIp": p.HostIp, "HostPort": strconv.Itoa(int(p.HostPort))}}
			mappings = append(mappings, map[string]any{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": protocol, "hostIP": p.HostIp})
		}
	}
	id := n.Docker.create(t, fmt.Sprintf("k8s_POD_%s_%s_%s_%d", meta.Name, meta.Namespace, meta.Uid, meta.Attempt), map[string]any{
		"Hostname": hostname, "Image": n.Registry.Ref(Pause), "Labels": labels, "ExposedPorts": exposed,
		"HostConfig": map[string]any{
			"NetworkMode": mode, "IpcMode": ipc, "CgroupParent": config.Linux.CgroupParent, "CpuShares": 2, "OomScoreAdj": -998,
			"SecurityOpt": []string{"no-new-privileges"}, "ShmSize": 64 << 20, "PortBindings": bindings,
		},
	})
	if checkpoint != "" {
		content := fmt.Sprintf(`{"version":"v1","name":%q,"namespace":%q,%s`, meta.Name, meta.Namespace, strings.TrimPrefix(checkpoint, "{"))
		if err := os.WriteFile(filepath.Join(o.Root, "sandbox", id), []byte(content), 0o600); err != nil {
			t.Fatalf("writing the old shim's checkpoint: %v", err)
		}
	}
	n.Docker.Post("/containers/" + id + "/start")
	pod := &Pod{ID: id, Config: config, node: n, t: t}
	if !host {
		o.attach(t, n, pod, mappings)
	}
	return pod
}

// attach adds the pod to the loopback's and to the node's network, as cri-dockerd's CNI plugin does.
func (o *OldShim) attach(t T, n *Node, pod *Pod, mappings []map[string]any) {
	t.Helper()
	plugins := libcni.NewCNIConfigWithCacheDir([]string{n.CNI.PluginDir, n.CNI.BinDir}, o.Cache, nil)
	loopback, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"0.2.0","name":"cni-loopback","plugins":[{"type":"loopback"}]}`))
	if err != nil {
		t.Fatalf("describing the loopback's network: %v", err)
	}
	data, err := os.ReadFile(n.CNI.ConfFile)
	if err != nil {
		t.Fatalf("reading the pod network: %v", err)
	}
	network, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		t.Fatalf("reading the pod network: %v", err)
	}
	meta := pod.Config.Metadata
	ctx, cancel := context.WithTimeout(context.Background(), Call)
	defer cancel()
	for _, list := range []*libcni.NetworkConfigList{loopback, network} {
		conf := &libcni.RuntimeConf{
			ContainerID: pod.ID, NetNS: fmt.Sprintf("/proc/%d/ns/net", n.HostPID(t, pod.ID)), IfName: "eth0", CacheDir: o.Cache,
			Args: [][2]string{
				{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", meta.Namespace}, {"K8S_POD_NAME", meta.Name}, {"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
			},
			CapabilityArgs: map[string]any{},
		}
		if list == network {
			conf.CapabilityArgs["portMappings"] = mappings
		}
		if _, err := plugins.AddNetworkList(ctx, list, conf); err != nil {
			t.Fatalf("adding pod %s to network %s: %v", meta.Name, list.Name, err)
		}
	}
}

// Run makes and starts an attempt at a container, with its link to Docker's log.
func (o *OldShim) Run(pod *Pod, config *runtimeapi.ContainerConfig) *Container {
	t, n, meta := pod.t, pod.node, pod.Config.Metadata
	t.Helper()
	log := filepath.Join(pod.Config.LogDirectory, config.LogPath)
	labels := o.labels(config.Labels, config.Annotations, "container")
	labels["io.kubernetes.sandbox.id"], labels["io.kubernetes.container.logpath"] = pod.ID, log
	id := n.Docker.create(t, fmt.Sprintf("k8s_%s_%s_%s_%s_%d", config.Metadata.Name, meta.Name, meta.Namespace, meta.Uid, config.Metadata.Attempt), map[string]any{
		"Image": config.Image.Image, "Entrypoint": config.Command, "Cmd": config.Args, "Labels": labels, "Tty": config.Tty,
		"OpenStdin": config.Stdin, "StdinOnce": config.StdinOnce, "Healthcheck": map[string]any{"Test": []string{"NONE"}},
		"HostConfig": map[string]any{
			"NetworkMode": "container:" + pod.ID, "IpcMode": "container:" + pod.ID, "CgroupParent": pod.Config.Linux.CgroupParent,
			"CpuShares": 2, "CpuPeriod": 100000, "OomScoreAdj": 1000, "SecurityOpt": []string{"seccomp=unconfined"},
			"RestartPolicy": map[string]any{"Name": "no"},
		},
	})
	n.Docker.Post("/containers/" + id + "/start")
	c := &Container{ID: id, Config: config, Log: log, pod: pod, t: t}
	o.Link(c)
	return c
}

// Link makes a container's log a link to Docker's, in the place of whatever is there, as both old shims do after a start.
func (o *OldShim) Link(c *Container) {
	c.t.Helper()
	var inspect struct{ LogPath string }
	c.pod.node.Docker.Get("/containers/"+c.ID+"/json", &inspect)
	if err := os.MkdirAll(filepath.Dir(c.Log), 0o755); err != nil {
		c.t.Fatalf("making the container's log directory: %v", err)
	}
	_ = os.Remove(c.Log) // most often there is none
	if err := os.Symlink(inspect.LogPath, c.Log); err != nil {
		c.t.Fatalf("linking the container's log: %v", err)
	}
}

// Attempt is a container's configuration for a later attempt.
func (p *Pod) Attempt(attempt uint32, config *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	config.Metadata.Attempt = attempt
	config.Annotations["io.kubernetes.container.restartCount"] = strconv.Itoa(int(attempt))
	config.LogPath = filepath.Join(config.Metadata.Name, strconv.Itoa(int(attempt))+".log")
	return config
}

// WatchChatty is a chatty container that runs already, RunChatty's command in it.
func WatchChatty(c *Container) *Chatty {
	watched := &Chatty{Container: c}
	watched.pid, watched.start = watched.process()
	return watched
}

func (o *OldShim) labels(labels, annotations map[string]string, kind string) map[string]string {
	all := maps.Clone(labels)
	for key, value := range annotations {
		all["annotation."+key] = value
	}
	all["io.kubernetes.docker.type"] = kind
	return all
}

// create makes a container behind the daemon's back.
func (d *Docker) create(t T, name string, body map[string]any) (id string) {
	t.Helper()
	var reply struct{ ID string }
	if err := d.call(http.MethodPost, "/containers/create?name="+url.QueryEscape(name), body, &reply); err != nil {
		t.Fatalf("creating a container: %v", err)
	}
	return reply.ID
}

// WaitStopped waits until a container of the engine has exited.
func (d *Docker) WaitStopped(t T, id string) {
	t.Helper()
	Eventually(t, 20*time.Second, "the end of container "+id, func() error {
		var inspect struct{ State struct{ Running bool } }
		if err := d.call(http.MethodGet, "/containers/"+id+"/json", nil, &inspect); err != nil {
			return err
		}
		if inspect.State.Running {
			return errors.New("it runs")
		}
		return nil
	})
}
