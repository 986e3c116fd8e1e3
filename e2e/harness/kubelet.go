package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelets that the tests build, each of a module of its own that names this version.
const (
	// KubeletCurrent is the one that tests get unless they ask for another.
	KubeletCurrent = "v1.37.2"
	// Kubelet122 is the newest that speaks nothing but runtime.v1alpha2; it has the in-tree dockershim.
	Kubelet122 = "v1.22.17"
	// Kubelet123 asks for runtime.v1 and takes runtime.v1alpha2 where there is no other.
	Kubelet123 = "v1.23.17"
)

// kubeletModules are their folders under e2e.
var kubeletModules = map[string]string{KubeletCurrent: "kubelet", Kubelet122: "kubelet122", Kubelet123: "kubelet123"}

// kubeletNode is the name of the kubelet's node; static pods carry it at the end of their names.
const kubeletNode = "e2e"

// KubeletOptions say how a kubelet is to be. The zero value is one without an API server that keeps small logs.
type KubeletOptions struct {
	// Version is KubeletCurrent where it is empty.
	Version string
	// Dockershim runs the pods by the in-tree dockershim of an old kubelet instead of the node's shim; see LeaveDockershim.
	Dockershim bool
	// Endpoint is the socket of a runtime between it and the node's shim, see StartCRIEndpoint; the shim's own where it is empty.
	Endpoint string
	// Cluster is the control plane whose node it is; nil where it has none and runs static pods.
	Cluster *Cluster
	// Config is merged over the harness's KubeletConfiguration (kubelet.config.k8s.io/v1beta1).
	Config map[string]any
}

// Kubelet is a real kubelet, which runs the pods of a folder of manifests, or of a Cluster, through a node's shim. It takes
// the whole runtime for its own and ends every pod that is not in the folder: while it runs, a test makes no pod by itself.
type Kubelet struct {
	*Process
	// RootDir is what it keeps of pods (volumes), PodLogs where their logs are.
	RootDir, PodLogs string

	t          T
	node       *Node
	options    KubeletOptions
	dir        string
	manifests  string
	configFile string
	binary     string
	cgroup     string
	address    string
	client     *http.Client
}

// KubeletPod is what a test asks of a v1.Pod.
type KubeletPod struct {
	Metadata struct{ Name, Namespace, UID string }
	Status   struct {
		Phase, PodIP, QOSClass, Reason, Message  string
		Conditions                               []struct{ Type, Status, Reason string }
		InitContainerStatuses, ContainerStatuses []KubeletContainer
	}
}

// KubeletContainer is what a test asks of a v1.ContainerStatus.
type KubeletContainer struct {
	Name, Image, ImageID, ContainerID string
	Ready                             bool
	Started                           *bool // nil where the kubelet does not know yet
	RestartCount                      int
	State, LastState                  struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *struct {
			ExitCode        int
			Reason, Message string
		}
	}
}

// Container is the status of one of the pod's containers; the zero value where the kubelet has not seen it yet.
func (p KubeletPod) Container(name string) KubeletContainer {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if c.Name == name {
			return c
		}
	}
	return KubeletContainer{Name: name}
}

// Ready says whether the pod's condition of that name is true.
func (p KubeletPod) Ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// ContainerIDs are the ids and restart counts of its containers by name: equal before and after means that none was restarted.
func (p KubeletPod) ContainerIDs() map[string]string {
	ids := map[string]string{}
	for _, c := range p.Status.ContainerStatuses {
		ids[c.Name] = fmt.Sprintf("%s, %d restarts", c.ContainerID, c.RestartCount)
	}
	return ids
}

// StartKubelet starts a kubelet on the node's shim and waits until it answers. The cleanup has it remove its pods, checks with
// the runtime that they are gone, and ends it; cgroups and mounts then are as before.
func StartKubelet(t T, node *Node, options KubeletOptions) *Kubelet {
	t.Helper()
	dir := WorkDir(t, "k")
	if options.Version == "" {
		options.Version = KubeletCurrent
	}
	if options.Endpoint == "" {
		options.Endpoint = node.Shim.Socket
	}
	k := &Kubelet{
		t: t, node: node, options: options, dir: dir, RootDir: node.Shim.kubeletDir(), PodLogs: filepath.Join(dir, "logs"), manifests: filepath.Join(dir, "manifests"),
		configFile: filepath.Join(dir, "kubelet.json"), binary: kubelet(t, options.Version), cgroup: "/" + filepath.Base(dir), address: freeAddress(t, "127.0.0.1"),
		client: &http.Client{Timeout: Call, Transport: &http.Transport{TLSClientConfig: selfSigned, DisableKeepAlives: true}},
	}
	if options.Cluster != nil {
		k.address = freeAddress(t, node.CNI.Gateway) // where the API server looks for it
	}
	if k.old() {
		k.PodLogs = "/var/log/pods" // it knows no other
	}
	k.ownFolders()
	for _, folder := range []string{k.manifests, k.PodLogs} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatalf("making a folder of the kubelet: %v", err)
		}
	}
	k.writeConfig()
	idleConnections(t, node)
	makeCgroup(t, k.cgroup)
	t.Cleanup(k.cleanFiles)
	t.Cleanup(k.cleanCgroups)
	k.launch()
	t.Cleanup(k.checkSysctls)
	t.Cleanup(func() {
		if err := k.Terminate(30 * time.Second); err != nil {
			t.Errorf("%v", err)
		}
	})
	t.Cleanup(k.removePods)
	return k
}

// writeConfig describes a kubelet that touches nothing of the machine but its own folders and cgroup, and that does on cgroup
// v1 and without CAP_SYS_RESOURCE.
func (k *Kubelet) writeConfig() {
	k.t.Helper()
	host, port, err := net.SplitHostPort(k.address)
	if err != nil {
		k.t.Fatalf("address of the kubelet: %v", err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		k.t.Fatalf("port of the kubelet: %v", err)
	}
	resolver := filepath.Join(k.dir, "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver 192.0.2.53\nsearch example.org\n"), 0o644); err != nil {
		k.t.Fatalf("writing the resolver of the pods: %v", err)
	}
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + k.options.Endpoint,
		"address":                  host, "port": number, "healthzPort": 0,
		"authentication":  map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":   map[string]any{"mode": "AlwaysAllow"},
		"staticPodPath":   k.manifests,
		"podLogsDir":      k.PodLogs,
		"volumePluginDir": filepath.Join(k.dir, "volume-plugins"),
		"resolvConf":      resolver,
		"podCIDR":         k.node.CNI.Subnet + ".0/24",

		"cgroupDriver": "cgroupfs", "cgroupRoot": k.cgroup, "enforceNodeAllocatable": []string{}, "failCgroupV1": false,
		"failSwapOn": false, "oomScoreAdj": 0, "makeIPTablesUtilChains": false,
		"evictionHard":                map[string]any{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,

		// Often enough to be waited for by a test.
		"fileCheckFrequency": "1s", "syncFrequency": "10s", "volumeStatsAggPeriod": "10s",
		"containerLogMaxSize": "128Ki", "containerLogMaxFiles": 10, "containerLogMonitorInterval": "3s",
	}
	if k.old() {
		for _, unknown := range sinceKubelet123 {
			delete(config, unknown)
		}
	}
	merge(config, k.options.Config)
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		k.t.Fatalf("describing the kubelet: %v", err)
	}
	if err := os.WriteFile(k.configFile, data, 0o644); err != nil {
		k.t.Fatalf("writing the kubelet's configuration: %v", err)
	}
}

// launch starts it and waits until it answers.
func (k *Kubelet) launch() {
	k.t.Helper()
	args := []string{"--config", k.configFile, "--root-dir", k.RootDir, "--cert-dir", filepath.Join(k.dir, "certificates"),
		"--hostname-override", kubeletNode, "--node-ip", k.node.CNI.Gateway, "--v", "2"}
	if k.old() {
		args = append(args, k.runtimeArgs()...)
	}
	if cluster := k.options.Cluster; cluster != nil {
		args = append(args, "--kubeconfig", filepath.Join(cluster.dir, "kubelet.kubeconfig"))
	}
	command, prefix := k.ownSysctls()
	k.Process = start(k.t, "kubelet", filepath.Join(k.dir, "kubelet.log"), nil, command, slices.Concat(prefix, []string{k.binary}, args)...)
	Eventually(k.t, time.Minute, "the kubelet to answer", func() error {
		if !k.Running() {
			k.t.Fatalf("the kubelet ended at its start:\n%s", k.LogTail())
		}
		_, err := k.request(http.MethodGet, "/healthz")
		return err
	})
}

// Restart ends the kubelet with SIGTERM and starts it again: its pods live on.
func (k *Kubelet) Restart() {
	k.t.Helper()
	if err := k.Terminate(30 * time.Second); err != nil {
		k.t.Errorf("%v", err)
	}
	k.launch()
}

// Apply gives the kubelet a pod, or a new form of it: name is both the file's and, in the manifest's metadata, the pod's.
func (k *Kubelet) Apply(t T, name, manifest string) {
	t.Helper()
	fresh := filepath.Join(k.dir, name+".yaml")
	if err := os.WriteFile(fresh, []byte(manifest), 0o644); err != nil {
		t.Fatalf("writing the manifest of pod %s: %v", name, err)
	}
	if err := os.Rename(fresh, filepath.Join(k.manifests, name+".yaml")); err != nil {
		t.Fatalf("giving the kubelet pod %s: %v", name, err)
	}
}

// Delete takes a pod from the kubelet, which then ends it and later removes it: see Sandboxes.
func (k *Kubelet) Delete(t T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(k.manifests, name+".yaml")); err != nil {
		t.Fatalf("taking pod %s from the kubelet: %v", name, err)
	}
}

// Sandboxes are the states of the runtime's pod sandboxes of a static pod. The kubelet itself forgets a pod the moment its
// manifest goes, long before it is ended; it removes sandboxes once a minute.
func (k *Kubelet) Sandboxes(name string) ([]runtimeapi.PodSandboxState, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Call)
	defer cancel()
	reply, err := k.node.Shim.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.name": name + "-" + kubeletNode},
	}})
	if err != nil {
		return nil, err
	}
	states := []runtimeapi.PodSandboxState{}
	for _, sandbox := range reply.Items {
		states = append(states, sandbox.State)
	}
	return states, nil
}

// Pods are those that the kubelet has, with their status.
func (k *Kubelet) Pods() ([]KubeletPod, error) {
	body, err := k.request(http.MethodGet, "/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []KubeletPod }
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return nil, fmt.Errorf("the kubelet's pods: %w", err)
	}
	return list.Items, nil
}

// WaitPod waits until a pod is as condition wants it, which says what it misses, and returns it. What stays of the kubelet's
// log about the pod is in the failure.
func (k *Kubelet) WaitPod(t T, name string, limit time.Duration, what string, condition func(KubeletPod) error) KubeletPod {
	t.Helper()
	var pod KubeletPod
	Eventually(t, limit, fmt.Sprintf("pod %s: %s", name, what), func() error {
		if !k.Running() {
			t.Fatalf("the kubelet ended:\n%s", k.LogTail())
		}
		pods, err := k.Pods()
		if err != nil {
			return err
		}
		at := slices.IndexFunc(pods, func(p KubeletPod) bool { return p.Metadata.Name == name+"-"+kubeletNode })
		if at < 0 {
			return errors.New("the kubelet does not have it")
		}
		pod = pods[at]
		if err := condition(pod); err != nil {
			status, _ := json.Marshal(pod.Status) // plain data
			return fmt.Errorf("%w; its status is %s; the kubelet says\n%s", err, status, k.logAbout(name))
		}
		return nil
	})
	return pod
}

// logAbout is the last of what the kubelet complained about a pod.
func (k *Kubelet) logAbout(name string) string {
	var lines []string
	for line := range strings.Lines(readString(k.LogFile)) {
		if strings.Contains(line, "/"+name+"-"+kubeletNode) && (strings.HasPrefix(line, "E") || strings.HasPrefix(line, "W")) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-5):], "")
}

// WaitReady waits until a pod is ready.
func (k *Kubelet) WaitReady(t T, name string) KubeletPod {
	t.Helper()
	return k.WaitPod(t, name, 90*time.Second, "to be ready", func(p KubeletPod) error {
		if !p.Ready() {
			return errors.New("it is not")
		}
		return nil
	})
}

// Logs is what the kubelet returns for `kubectl logs`; query are parameters such as "tailLines=2" or "previous=true".
func (k *Kubelet) Logs(t T, pod, container string, query ...string) string {
	t.Helper()
	body, err := k.request(http.MethodGet, "/containerLogs/"+target(pod, container)+"?"+strings.Join(query, "&"))
	if err != nil {
		t.Fatalf("logs of %s in pod %s: %v", container, pod, err)
	}
	return body
}

// FollowLogs is `kubectl logs -f`: what the container wrote and what it writes, until the reader is closed.
func (k *Kubelet) FollowLogs(t T, pod, container string) io.ReadCloser {
	t.Helper()
	reply, err := k.client.Get("https://" + k.address + "/containerLogs/" + target(pod, container) + "?follow=true")
	if err != nil {
		t.Fatalf("following the log of %s in pod %s: %v", container, pod, err)
	}
	return reply.Body
}

// Get is the body of another page of the kubelet.
func (k *Kubelet) Get(t T, path string) string {
	t.Helper()
	body, err := k.request(http.MethodGet, path)
	if err != nil {
		t.Fatalf("asking the kubelet: %v", err)
	}
	return body
}

// Cgroup ("/name") is the kubelet's own, above those of its pods.
func (k *Kubelet) Cgroup() string { return k.cgroup }

// Run runs a command in a container through the kubelet's /run, which is ExecSync, and returns all of its output.
func (k *Kubelet) Run(pod, container string, command ...string) (string, error) {
	query := url.Values{"cmd": {strings.Join(command, " ")}} // which the kubelet splits at blanks
	return k.request(http.MethodPost, "/run/"+target(pod, container)+"?"+query.Encode())
}

// Exec is `kubectl exec`, over SPDY, until the command ends: its exit status other than 0 is an ExitError.
func (k *Kubelet) Exec(ctx context.Context, pod, container string, streams Streams, command ...string) error {
	return StreamSPDY(ctx, k.ExecURL(pod, container, streams, command...), streams)
}

// ExecURL is where a command is run in a container, for StreamSPDY or StreamWebSocket.
func (k *Kubelet) ExecURL(pod, container string, streams Streams, command ...string) string {
	query := streamQuery(streams)
	query["command"] = command
	return "https://" + k.address + "/exec/" + target(pod, container) + "?" + query.Encode()
}

// AttachURL is where a container's own streams are, for StreamSPDY or StreamWebSocket.
func (k *Kubelet) AttachURL(pod, container string, streams Streams) string {
	return "https://" + k.address + "/attach/" + target(pod, container) + "?" + streamQuery(streams).Encode()
}

// streamQuery asks for streams in the words of the kubelet.
func streamQuery(streams Streams) url.Values {
	query := url.Values{}
	for name, wanted := range map[string]bool{"input": streams.Stdin != nil, "output": streams.Stdout != nil, "error": streams.Stderr != nil, "tty": streams.TTY} {
		if wanted {
			query.Set(name, "1")
		}
	}
	return query
}

// Shell is the standard output of a shell command in a container, by Exec; it must succeed.
func (k *Kubelet) Shell(t T, pod, container, script string) string {
	t.Helper()
	var stdout, stderr Buffer
	if err := k.Exec(within(t, Call), pod, container, Streams{Stdout: &stdout, Stderr: &stderr}, "sh", "-c", script); err != nil {
		t.Fatalf("%q in %s of pod %s: %v: %s", script, container, pod, err, stderr.String())
	}
	return stdout.String()
}

// PortForward is one connection to a port of a pod as `kubectl port-forward` makes it.
func (k *Kubelet) PortForward(pod string, port int) (*Forward, error) {
	return ForwardSPDY(k.PortForwardURL(pod), port)
}

// PortForwardURL is where the ports of a pod are, for ForwardSPDY, ForwardTunnel or ForwardWebSocket.
func (k *Kubelet) PortForwardURL(pod string) string {
	return "https://" + k.address + "/portForward/default/" + pod + "-" + kubeletNode
}

// KubeletStats is what a test asks of /stats/summary about one pod.
type KubeletStats struct {
	PodRef  struct{ Name string }
	CPU     struct{ UsageCoreNanoSeconds uint64 }
	Memory  struct{ WorkingSetBytes uint64 }
	Network struct{ RxBytes, TxBytes uint64 }

	Containers []struct {
		Name   string
		CPU    struct{ UsageCoreNanoSeconds uint64 }
		Memory struct{ WorkingSetBytes uint64 }
		RootFS struct{ UsedBytes *uint64 }
		Logs   struct{ UsedBytes *uint64 }
	}
}

// StatsSummary is what the kubelet tells a metrics server about a pod.
func (k *Kubelet) StatsSummary(pod string) (KubeletStats, error) {
	var summary struct{ Pods []KubeletStats }
	body, err := k.request(http.MethodGet, "/stats/summary")
	if err != nil {
		return KubeletStats{}, err
	}
	if err := json.Unmarshal([]byte(body), &summary); err != nil {
		return KubeletStats{}, fmt.Errorf("the kubelet's summary: %w", err)
	}
	for _, stats := range summary.Pods {
		if stats.PodRef.Name == pod+"-"+kubeletNode {
			return stats, nil
		}
	}
	return KubeletStats{}, fmt.Errorf("pod %s is not among the %d of the summary", pod, len(summary.Pods))
}

func target(pod, container string) string {
	return "default/" + pod + "-" + kubeletNode + "/" + container
}

// request asks the kubelet and returns the body of its answer.
func (k *Kubelet) request(method, path string) (string, error) {
	request, err := http.NewRequest(method, "https://"+k.address+path, nil)
	if err != nil {
		return "", err
	}
	reply, err := k.client.Do(request)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, reply.Status, bytes.TrimSpace(data))
	}
	return string(data), err
}

// removePods has the kubelet remove its pods, which it does once a minute. It has to live until they are gone: what it did not
// end would stay, with its mounts and addresses.
func (k *Kubelet) removePods() {
	k.t.Helper()
	files, err := filepath.Glob(filepath.Join(k.manifests, "*"))
	if err != nil {
		k.t.Errorf("looking for manifests: %v", err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			k.t.Errorf("taking a pod from the kubelet: %v", err)
		}
	}
	if !k.Running() {
		k.t.Errorf("the kubelet ended:\n%s", k.LogTail())
		k.node.Shim.removePods()
		return
	}
	if k.options.Cluster != nil {
		k.options.Cluster.clear()
	}
	Eventually(k.t, 3*time.Minute, "the kubelet to remove its pods", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), Call)
		defer cancel()
		pods, err1 := k.node.Shim.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		containers, err2 := k.node.Shim.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if len(pods.Items)+len(containers.Containers) > 0 {
			return fmt.Errorf("%d pods and %d containers are left: %v\nthe kubelet said at last:\n%s", len(pods.Items), len(containers.Containers), pods.Items, k.LogTail())
		}
		return nil
	})
	// An old kubelet does not know the unified hierarchy, in which OCI runtimes make cgroups too, and leaves those of its pods there.
	Eventually(k.t, 30*time.Second, "the kubelet to remove the cgroups and volumes of its pods", func() error {
		hierarchies := slices.DeleteFunc(cgroupRoots(), func(root string) bool { return k.old() && strings.HasSuffix(root, "/unified") })
		left := slices.DeleteFunc(cgroupsIn(hierarchies, k.cgroup), func(name string) bool {
			return slices.Contains([]string{"/kubepods", "/kubepods/besteffort", "/kubepods/burstable"}, name)
		})
		volumes, err := os.ReadDir(filepath.Join(k.RootDir, "pods"))
		// An old kubelet that was restarted while a pod waited to be tried again forgets its volumes, and then complains of their
		// folder for ever.
		volumes = slices.DeleteFunc(volumes, func(pod os.DirEntry) bool {
			return k.old() && strings.Contains(readString(k.LogFile), `orphaned pod \"`+pod.Name()+`\" found, but failed to rmdir() volume`)
		})
		if err == nil && len(left)+len(volumes)+len(mountsUnder(k.RootDir)) > 0 {
			err = fmt.Errorf("cgroups %v, folders %v, mounts %v", left, volumes, mountsUnder(k.RootDir))
		}
		return err
	})
}

// idleConnections has the cleanup wait until the daemon has no more idle connections to the engine than now, give or take a
// few. A kubelet that removes all pods at once makes it open many, which it keeps for half a minute: longer than the gate LEAK0
// looks.
func idleConnections(t T, node *Node) {
	t.Helper()
	idle := func() int {
		stacks, _ := node.Shim.profile("goroutine?debug=1", "total ")
		return pooled(stacks)
	}
	before := idle()
	t.Cleanup(func() {
		Eventually(t, 45*time.Second, "the daemon to close idle connections", func() error {
			if now := idle(); now > before+8 {
				return fmt.Errorf("%d goroutines serve them, before %d", now, before)
			}
			return nil
		})
	})
}

// cleanCgroups removes the kubelet's own cgroups; those of pods would have been reported before.
func (k *Kubelet) cleanCgroups() { removeCgroup(k.cgroup) }

// cleanFiles removes what is left of its volumes.
func (k *Kubelet) cleanFiles() {
	k.t.Helper()
	for _, dir := range []string{k.dir, k.RootDir} {
		unmountAll(dir)
	}
	if err := os.RemoveAll(k.RootDir); err != nil {
		k.t.Errorf("removing the kubelet's folder: %v", err)
	}
}

// kubelet builds a kubelet, on the host's network: its modules are fetched only where a test wants them.
func kubelet(t T, version string) string {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	binary := filepath.Join(cacheDir(), "kubelet-"+version)
	if builds[binary] {
		return binary
	}
	err := onHostNetwork(func() error {
		return goTool(filepath.Join(root(), "e2e", kubeletModules[version]), nil, "build", "-trimpath", "-buildvcs=false",
			"-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+version, "-o", binary, ".")
	})
	if err != nil {
		t.Fatalf("building the kubelet: %v", err)
	}
	builds[binary] = true
	return binary
}

// freeAddress is an address on a host where nobody listens.
func freeAddress(t T, host string) string {
	t.Helper()
	listener, err := net.Listen("tcp4", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatalf("looking for a free port: %v", err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// selfSigned accepts the certificate that a kubelet without an API server signs for itself; it is asked on loopback only.
var selfSigned = &tls.Config{InsecureSkipVerify: true}
