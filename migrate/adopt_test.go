package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"crishim/cni"
	"crishim/engine"
	"crishim/state"
)

const conflist = `{"cniVersion":"0.4.0","name":"old","plugins":[{"type":"bridge","bridge":"old0","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]}`

// node is what dockershim or cri-dockerd left on a node: their root and the cache of libcni.
type node struct {
	t                *testing.T
	root, cache      string
	planned, looked  int
	inside           []string
	adopter          *Adopter
	id               engine.PodID
	key              engine.PodKey
	mappings         []engine.PortMapping
	planErr, lookErr error
}

func newNode(t *testing.T) *node {
	n := &node{
		t: t, root: t.TempDir(), cache: t.TempDir(), id: engine.PodID(strings.Repeat("5", 64)),
		key: engine.PodKey{Name: "web", Namespace: "default", UID: "u1"}, mappings: []engine.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}},
	}
	n.adopter = NewAdopter(AdoptOptions{Roots: []string{filepath.Join(n.root, "absent"), n.root}, CNICacheDirs: []string{n.cache}}, n)
	n.adopter.addresses = func(netns, ifName string) ([]string, error) {
		n.looked++
		if netns != "/pinned" || ifName != "eth0" {
			t.Errorf("looked at %s in %s", ifName, netns)
		}
		return n.inside, n.lookErr
	}
	return n
}

func (n *node) Plan(pod cni.Pod) ([]cni.Attachment, error) {
	n.planned++
	if n.planErr != nil {
		return nil, n.planErr
	}
	return []cni.Attachment{{PodID: pod.ID, Network: "today", IfName: cni.IfName, NetNSPath: pod.NetNSPath}}, nil
}

func (n *node) write(path, content string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) checkpoint(c Checkpoint, shim Shim) {
	n.t.Helper()
	content, err := c.Encode(shim)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(CheckpointPath(n.root, n.id), string(content))
}

// cached writes what libcni keeps of the shims' ADDs: of the loopback, then of the network.
func (n *node) cached() {
	n.t.Helper()
	entry := func(network, ifName, config, capabilities, result string) {
		data, err := json.Marshal(map[string]any{
			"kind": "cniCacheV1", "containerId": n.id, "config": []byte(config), "ifName": ifName, "networkName": network,
			"cniArgs":        [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", n.key.Namespace}, {"K8S_POD_NAME", n.key.Name}, {"K8S_POD_INFRA_CONTAINER_ID", string(n.id)}},
			"capabilityArgs": json.RawMessage(capabilities), "result": json.RawMessage(result),
		})
		if err != nil {
			n.t.Fatal(err)
		}
		n.write(filepath.Join(n.cache, "results", network+"-"+string(n.id)+"-"+ifName), string(data))
	}
	entry("cni-loopback", "lo", `{"cniVersion":"0.2.0","name":"cni-loopback","plugins":[{"type":"loopback"}]}`, `null`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"127.0.0.1/8"},"dns":{}}`)
	entry("old", "eth0", conflist, `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}]}`,
		`{"cniVersion":"0.4.0","interfaces":[{"name":"old0"},{"name":"veth1"},{"name":"eth0","sandbox":"/proc/7/ns/net"}],"ips":[{"version":"4","interface":2,"address":"10.9.0.7/24","gateway":"10.9.0.1"}],"dns":{}}`)
}

// pod is what the engine says: cri-dockerd and dockershim give every sandbox PortBindings.
func (n *node) pod() *state.Pod {
	return &state.Pod{
		ID: n.id, Engine: "docker", Phase: state.PhaseRunning, NetNSPath: "/pinned",
		Spec: engine.PodSpec{Key: n.key, Ports: n.mappings, Namespaces: engine.Namespaces{Network: engine.NamespacePod}},
	}
}

func (n *node) adopt(pod *state.Pod) []cni.Attachment {
	n.t.Helper()
	if err := n.adopter.Adopt(context.Background(), pod); err != nil {
		n.t.Errorf("adopt: %v", err)
	}
	if !pod.Adopted || !pod.Network.Done {
		n.t.Errorf("adopted as %+v", pod)
	}
	var attachments []cni.Attachment
	for _, raw := range pod.Network.Attachments {
		var a cni.Attachment
		if err := json.Unmarshal(raw, &a); err != nil {
			n.t.Fatal(err)
		}
		attachments = append(attachments, a)
	}
	return attachments
}

func TestAPodIsAdoptedWithItsCheckpointAndItsCachedNetwork(t *testing.T) {
	n := newNode(t)
	n.cached()
	all := []engine.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}, {Protocol: "udp", ContainerPort: 53}}
	n.checkpoint(Checkpoint{Name: "web", Namespace: "default", Ports: all}, Dockershim)
	pod := n.pod()
	attachments := n.adopt(pod)
	if !slices.Equal(pod.Network.IPs, []string{"10.9.0.7"}) || !slices.Equal(pod.Spec.Ports, all) {
		t.Errorf("addresses %v, ports %v", pod.Network.IPs, pod.Spec.Ports)
	}
	if len(attachments) != 2 || n.planned+n.looked > 0 {
		t.Fatalf("attachments %+v, planned %d times, looked %d times", attachments, n.planned, n.looked)
	}
	for _, a := range attachments {
		if a.NetNSPath != "/pinned" || a.CacheDir != n.cache {
			t.Errorf("attachment %+v", a)
		}
	}
	network := attachments[1]
	if network.Network != "old" || string(network.Config) != conflist || len(network.HostPorts()) != 1 {
		t.Errorf("attachment %+v", network)
	}
	if want := []cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}; !slices.Equal(network.KubeHostPorts, want) {
		t.Errorf("host ports of dockershim %v", network.KubeHostPorts)
	}
}

func TestHostPortsComeFromTheNextSourceWhereOneIsMissing(t *testing.T) {
	n := newNode(t)
	n.cached()
	n.mappings = nil
	pod := n.pod()
	n.adopt(pod)
	if want := []engine.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}}; !slices.Equal(pod.Spec.Ports, want) {
		t.Errorf("from the plugins' results: %v", pod.Spec.Ports)
	}

	n = newNode(t) // neither checkpoint nor cache
	n.inside = []string{"10.9.0.7", "fd00::7"}
	pod = n.pod()
	attachments := n.adopt(pod)
	if !slices.Equal(pod.Spec.Ports, n.mappings) || !slices.Equal(pod.Network.IPs, n.inside) {
		t.Errorf("from the engine: ports %v, addresses %v", pod.Spec.Ports, pod.Network.IPs)
	}
	if len(attachments) != 1 || attachments[0].Network != "today" || attachments[0].CacheDir != n.cache || n.planned != 1 {
		t.Errorf("attachments %+v", attachments)
	}
}

func TestACheckpointThatIsNotBelievedIsLeftOutAndLeftAlone(t *testing.T) {
	for name, content := range map[string]string{
		"another pod's":         `{"version":"v1","name":"other","namespace":"default","data":{"port_mappings":[{"protocol":"tcp","container_port":1,"host_port":2}]},"checksum":1}`,
		"of the host's network": `{"version":"v1","name":"web","namespace":"default","data":{"host_network":true},"checksum":996107268}`,
		"changed":               `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":9999}]},"checksum":51416962}`,
		"torn":                  `{"version":"v1","name":"we`,
		"empty":                 ``,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.cached()
			path := CheckpointPath(n.root, n.id)
			n.write(path, content)
			pod := n.pod()
			if err := n.adopter.Adopt(context.Background(), pod); err == nil {
				t.Error("nobody is told")
			}
			if !slices.Equal(pod.Spec.Ports, n.mappings) || !slices.Equal(pod.Network.IPs, []string{"10.9.0.7"}) || !pod.Network.Done {
				t.Errorf("adopted as %+v", pod)
			}
			if left, err := os.ReadFile(path); err != nil || string(left) != content {
				t.Errorf("the file is now %q, %v", left, err)
			}
		})
	}
	n := newNode(t) // of an older kubelet, whose sum is another, and right
	n.write(CheckpointPath(n.root, n.id), `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":8080},{"protocol":"tcp","container_port":81,"host_port":0}]},"checksum":7}`)
	n.cached()
	pod := n.pod()
	n.adopt(pod)
	if len(pod.Spec.Ports) != 2 {
		t.Errorf("ports %v", pod.Spec.Ports)
	}
}

// The old shim was killed in the middle of an ADD, or is not through with it: it keeps the loopback's result, and none of the network whose
// first plugins have given an address and made rules. The pod's DEL must be for that network too.
func TestAnAddThatWasCutOffIsUndoneByTodaysConfiguration(t *testing.T) {
	cutOff := func() *node {
		n := newNode(t)
		n.cached()
		if err := os.Remove(filepath.Join(n.cache, "results", "old-"+string(n.id)+"-eth0")); err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := cutOff()
	n.inside = []string{"10.9.0.7"}
	pod := n.pod()
	attachments := n.adopt(pod)
	if len(attachments) != 2 || attachments[0].Network != loopbackNetwork || attachments[1].Network != "today" || attachments[1].NetNSPath != "/pinned" {
		t.Errorf("attachments %+v", attachments)
	}
	if len(attachments) > 1 && attachments[1].CacheDir != n.cache {
		t.Errorf("what the old shim writes yet is looked for in %q", attachments[1].CacheDir)
	}
	if len(attachments) > 1 && len(attachments[1].KubeHostPorts) != 1 || !slices.Equal(pod.Network.IPs, n.inside) {
		t.Errorf("adopted as %+v", pod)
	}

	n = cutOff() // and its pause container has ended
	pod = n.pod()
	pod.Phase, pod.NetNSPath = state.PhaseStopped, ""
	if attachments := n.adopt(pod); len(attachments) != 2 || pod.Phase != state.PhaseStopping {
		t.Errorf("attachments %+v, phase %s", attachments, pod.Phase)
	}

	n = cutOff()
	n.inside, n.planErr = []string{"10.9.0.7"}, errors.New("no configuration")
	pod = n.pod()
	if err := n.adopter.Adopt(context.Background(), pod); !errors.Is(err, n.planErr) || pod.Network.Done {
		t.Errorf("no configuration: %v, %+v; its network is not known", err, pod.Network)
	}
}

func TestPodsWithoutPluginsOfTheirOwn(t *testing.T) {
	n := newNode(t)
	n.checkpoint(Checkpoint{Name: "web", Namespace: "default", HostNetwork: true}, CRIDockerd)
	pod := n.pod()
	pod.Spec.Namespaces.Network, pod.NetNSPath = engine.NamespaceNode, ""
	if attachments := n.adopt(pod); len(attachments) > 0 || len(pod.Network.IPs) > 0 {
		t.Errorf("on the host's network: %+v", pod.Network)
	}

	n = newNode(t)
	pod = n.pod()
	pod.Network.IPs = []string{"172.17.0.2"} // Docker's own network
	if attachments := n.adopt(pod); len(attachments) > 0 || !slices.Equal(pod.Network.IPs, []string{"172.17.0.2"}) || n.planned+n.looked > 0 {
		t.Errorf("on Docker's bridge: %+v", pod.Network)
	}
}

// A pod that has ended while the old shim was there keeps its address and its rules until somebody takes them down.
func TestAnEndedPodWhoseNetworkIsLeftIsStillToBeStopped(t *testing.T) {
	n := newNode(t)
	n.cached()
	pod := n.pod()
	pod.Phase, pod.NetNSPath = state.PhaseStopped, ""
	if attachments := n.adopt(pod); len(attachments) != 2 || pod.Phase != state.PhaseStopping {
		t.Errorf("%d attachments, phase %s", len(attachments), pod.Phase)
	}
	n = newNode(t)
	pod = n.pod()
	pod.Phase, pod.NetNSPath = state.PhaseStopped, ""
	if attachments := n.adopt(pod); len(attachments) > 0 || pod.Phase != state.PhaseStopped {
		t.Errorf("without a network: %d attachments, phase %s", len(attachments), pod.Phase)
	}
}

func TestWhatCannotBeFoundOutIsToldAndTheRestKept(t *testing.T) {
	n := newNode(t)
	n.lookErr = errors.New("no eth0")
	pod := n.pod()
	if err := n.adopter.Adopt(context.Background(), pod); !errors.Is(err, n.lookErr) {
		t.Errorf("no address: %v", err)
	}
	n.lookErr, n.inside, n.planErr = nil, []string{"10.9.0.7"}, errors.New("no configuration")
	pod = n.pod()
	if err := n.adopter.Adopt(context.Background(), pod); !errors.Is(err, n.planErr) || !reflect.DeepEqual(pod.Network.IPs, n.inside) || pod.Network.Done {
		t.Errorf("no configuration: %v, %+v; its network is not known", err, pod.Network)
	}
}

func TestWhatAShimKeptOfAPodGoesWithIt(t *testing.T) {
	n := newNode(t)
	n.checkpoint(Checkpoint{Name: "web", Namespace: "default"}, CRIDockerd)
	other := CheckpointPath(n.root, engine.PodID(strings.Repeat("6", 64)))
	n.write(other, "{}")
	for range 2 {
		if err := n.adopter.Removed(n.id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(CheckpointPath(n.root, n.id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the checkpoint: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("another pod's: %v", err)
	}
}
