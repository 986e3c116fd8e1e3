package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// The sums were computed by go-spew over the shims' own types; the third one of dockershim's is that of a kubelet 1.22.17.
var checkpointCases = []struct {
	name                   string
	data                   string
	hostNetwork            bool
	ports                  []engine.PortMapping
	dockershim, cridockerd uint64
}{
	{"no ports", `{}`, false, nil, 815459779, 2305795928},
	{"host network", `{"host_network":true}`, true, nil, 996107268, 12315789},
	{
		"one port", `{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18080}]}`, false,
		[]engine.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 18080}}, 51416962, 2344035810,
	},
	{
		"many ports",
		`{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":18080,"host_ip":"127.0.0.1"},{"protocol":"udp","container_port":53,"host_port":0},{"protocol":"sctp","container_port":9,"host_port":65535,"host_ip":"fd00::1"}]}`,
		false, []engine.PortMapping{
			{Protocol: "tcp", ContainerPort: 80, HostPort: 18080, HostIP: "127.0.0.1"},
			{Protocol: "udp", ContainerPort: 53},
			{Protocol: "sctp", ContainerPort: 9, HostPort: 65535, HostIP: "fd00::1"},
		}, 2943991858, 4163387326,
	},
	{
		"ports of the host's network", `{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":80}],"host_network":true}`, true,
		[]engine.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 80}}, 1323995062, 3282447254,
	},
}

func TestACheckpointIsWrittenAsEitherShimDoes(t *testing.T) {
	for _, c := range checkpointCases {
		for shim, sum := range map[Shim]uint64{Dockershim: c.dockershim, CRIDockerd: c.cridockerd} {
			t.Run(c.name+"/"+string(shim), func(t *testing.T) {
				want := fmt.Sprintf(`{"version":"v1","name":"web","namespace":"default","data":%s,"checksum":%d}`, c.data, sum)
				checkpoint := Checkpoint{Name: "web", Namespace: "default", HostNetwork: c.hostNetwork, Ports: c.ports}
				got, err := checkpoint.Encode(shim)
				if err != nil || string(got) != want {
					t.Errorf("written\n%s, %v; the shim writes\n%s", got, err, want)
				}
				read, by, err := DecodeCheckpoint([]byte(want))
				if err != nil || by != shim || !reflect.DeepEqual(read, checkpoint) {
					t.Errorf("read %+v by %q, %v", read, by, err)
				}
			})
		}
	}
}

func TestTheCheckpointOfAKubeletIsRead(t *testing.T) {
	content, err := os.ReadFile("testdata/dockershim-1.22.17-sandbox-checkpoint.json")
	if err != nil {
		t.Fatal(err)
	}
	c, by, err := DecodeCheckpoint(content)
	if err != nil || by != Dockershim || c.Name != "web-kubelet-test" || len(c.Ports) != 1 {
		t.Fatalf("%+v by %q, %v", c, by, err)
	}
	if again, err := c.Encode(Dockershim); err != nil || !bytes.Equal(again, content) {
		t.Errorf("written again it is %s, %v; the kubelet wrote %s", again, err, content)
	}
}

// A checksum is advice: a kubelet of another generation had another one.
func TestACheckpointWithAnotherSumIsReadAndSaysSo(t *testing.T) {
	c, by, err := DecodeCheckpoint([]byte(`{"version":"v1","name":"fluentd-gcp-v2.0-vmnqx","namespace":"kube-system","data":{},"checksum":1799154314}`))
	if err != nil || by != "" || c.Namespace != "kube-system" {
		t.Errorf("%+v by %q, %v", c, by, err)
	}
}

func TestABadCheckpointIsRefused(t *testing.T) {
	for name, content := range map[string]string{
		"empty":            ``,
		"cut":              `{"version":"v1","name":"web","names`,
		"another version":  `{"version":"v2","name":"web","namespace":"default","data":{},"checksum":815459779}`,
		"no name":          `{"version":"v1","namespace":"default","data":{},"checksum":815459779}`,
		"half a port":      `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[{"protocol":"tcp"}]},"checksum":1}`,
		"no port":          `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[null]},"checksum":1}`,
		"a port too great": `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":99999999999}]},"checksum":1}`,
	} {
		if c, by, err := DecodeCheckpoint([]byte(content)); err == nil {
			t.Errorf("%s: read as %+v by %q", name, c, by)
		}
	}
}

func TestReadCheckpointFollowsNoLinkAndTellsAbsence(t *testing.T) {
	root := t.TempDir()
	id := engine.PodID(strings.Repeat("a", 64))
	if _, _, err := ReadCheckpoint(root, id); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "sandbox"), 0o755); err != nil {
		t.Fatal(err)
	}
	content, err := (&Checkpoint{Name: "web", Namespace: "default"}).Encode(CRIDockerd)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(root, "elsewhere")
	if err := os.WriteFile(elsewhere, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, CheckpointPath(root, id)); err != nil {
		t.Fatal(err)
	}
	if c, _, err := ReadCheckpoint(root, id); err == nil {
		t.Errorf("a link was followed: %+v", c)
	}
	if err := os.Rename(elsewhere, CheckpointPath(root, id)); err != nil {
		t.Fatal(err)
	}
	if c, by, err := ReadCheckpoint(root, id); err != nil || by != CRIDockerd || c.Name != "web" {
		t.Errorf("%+v by %q, %v", c, by, err)
	}
}

func FuzzDecodeCheckpoint(f *testing.F) {
	for _, c := range checkpointCases {
		f.Add(fmt.Appendf(nil, `{"version":"v1","name":"web","namespace":"default","data":%s,"checksum":%d}`, c.data, c.dockershim))
	}
	f.Add([]byte(`{"version":"v1","name":"a","namespace":"b","data":{"port_mappings":[null,{}]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		c, by, err := DecodeCheckpoint(content)
		if err != nil {
			return
		}
		written, err := c.Encode(CRIDockerd)
		if err != nil {
			t.Fatal(err)
		}
		again, sum, err := DecodeCheckpoint(written)
		if err != nil || sum != CRIDockerd || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v by %q: written and read again it is %+v by %q, %v", c, by, again, sum, err)
		}
	})
}
