package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// Shim is one whose pods are taken over.
type Shim string

// The shims that are known. Both keep one checkpoint of each sandbox.
const (
	Dockershim Shim = "dockershim"
	CRIDockerd Shim = "cri-dockerd"
)

// Root is where the shim keeps its state, unless --experimental-dockershim-root-directory or --cri-dockerd-root-directory
// told it otherwise.
func (s Shim) Root() string { return "/var/lib/" + string(s) }

// CheckpointPath is the checkpoint of a sandbox below a shim's root. Files beside it whose names begin with "." are
// unfinished ones.
func CheckpointPath(root string, id engine.PodID) string {
	return filepath.Join(root, "sandbox", string(id))
}

// Checkpoint is what a shim wrote down of a sandbox. There is nothing of the pod's UID, its attempt or its addresses in it.
type Checkpoint struct {
	Name, Namespace string
	HostNetwork     bool
	// Ports are all ports of the pod's containers, those that map nothing (HostPort 0) included.
	Ports []engine.PortMapping
}

// The file's form; the order of the fields is that of the shims' structures.
type (
	checkpointFile struct {
		Version   string          `json:"version"`
		Name      string          `json:"name"`
		Namespace string          `json:"namespace"`
		Data      *checkpointData `json:"data,omitempty"`
		Checksum  uint64          `json:"checksum"`
	}
	checkpointData struct {
		PortMappings []*checkpointPort `json:"port_mappings,omitempty"`
		HostNetwork  bool              `json:"host_network,omitempty"`
	}
	checkpointPort struct {
		Protocol      *string `json:"protocol,omitempty"`
		ContainerPort *int32  `json:"container_port,omitempty"`
		HostPort      *int32  `json:"host_port,omitempty"`
		HostIP        string  `json:"host_ip,omitempty"`
	}
)

const checkpointVersion = "v1"

// Encode is the content of the file as the shim itself writes it, with the checksum that it will ask for.
func (c *Checkpoint) Encode(shim Shim) ([]byte, error) {
	var data checkpointData
	data.HostNetwork = c.HostNetwork
	for _, p := range c.Ports {
		data.PortMappings = append(data.PortMappings, &checkpointPort{
			Protocol: new(p.Protocol), ContainerPort: new(p.ContainerPort), HostPort: new(p.HostPort), HostIP: p.HostIP,
		})
	}
	return json.Marshal(checkpointFile{
		Version: checkpointVersion, Name: c.Name, Namespace: c.Namespace, Data: &data, Checksum: checksum(c, shim),
	})
}

// DecodeCheckpoint reads what either shim wrote. by is the one whose checksum it bears, "" where the checksum is neither's:
// of a kubelet before 1.19, or of a damaged file that can still be read.
func DecodeCheckpoint(content []byte) (c Checkpoint, by Shim, err error) {
	var file checkpointFile
	if err := json.Unmarshal(content, &file); err != nil {
		return Checkpoint{}, "", fmt.Errorf("a shim's checkpoint: %w", err)
	}
	if file.Version != checkpointVersion || file.Name == "" || file.Namespace == "" {
		return Checkpoint{}, "", fmt.Errorf("a shim's checkpoint of version %.20q for pod %.80q in namespace %.80q: version %q and both names are expected: %w",
			file.Version, file.Name, file.Namespace, checkpointVersion, errdefs.ErrInvalidArgument)
	}
	c = Checkpoint{Name: file.Name, Namespace: file.Namespace}
	if file.Data != nil {
		c.HostNetwork = file.Data.HostNetwork
		for _, p := range file.Data.PortMappings {
			if p == nil || p.Protocol == nil || p.ContainerPort == nil || p.HostPort == nil {
				return Checkpoint{}, "", fmt.Errorf("a shim's checkpoint with a port mapping that is not whole: %w", errdefs.ErrInvalidArgument)
			}
			c.Ports = append(c.Ports, engine.PortMapping{Protocol: *p.Protocol, ContainerPort: *p.ContainerPort, HostPort: *p.HostPort, HostIP: p.HostIP})
		}
	}
	for _, shim := range []Shim{Dockershim, CRIDockerd} {
		if file.Checksum == checksum(&c, shim) {
			by = shim
		}
	}
	return c, by, nil
}

// maxCheckpoint is far more than the ports of one pod take.
const maxCheckpoint = 1 << 20

// ReadCheckpoint reads a sandbox's checkpoint below a shim's root. ErrNotFound when there is none.
func ReadCheckpoint(root string, id engine.PodID) (c Checkpoint, by Shim, err error) {
	path := CheckpointPath(root, id)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return Checkpoint{}, "", fmt.Errorf("checkpoint %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return Checkpoint{}, "", err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxCheckpoint {
		return Checkpoint{}, "", errors.Join(fmt.Errorf("%s is no regular file of at most %d bytes: %w", path, maxCheckpoint, errdefs.ErrInvalidArgument), err)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxCheckpoint))
	if err != nil {
		return Checkpoint{}, "", err
	}
	if c, by, err = DecodeCheckpoint(content); err != nil {
		return Checkpoint{}, "", fmt.Errorf("%s: %w", path, err)
	}
	return c, by, nil
}

// checksum is FNV-1a over the text by which go-spew ("%#v", methods disabled) prints the shim's own structure: the names of
// the packages that it is declared in are part of the sum.
func checksum(c *Checkpoint, shim Shim) uint64 {
	data, ports := "dockershim", "dockershim"
	if shim == CRIDockerd {
		data, ports = "core", "config"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "(%s.CheckpointData){PortMappings:([]*%s.PortMapping)", data, ports)
	if len(c.Ports) == 0 {
		text.WriteString("<nil>")
	} else {
		for i, p := range c.Ports {
			text.WriteByte("[ "[min(i, 1)])
			fmt.Fprintf(&text, "<*>{Protocol:(*%s.Protocol)%s ContainerPort:(*int32)%d HostPort:(*int32)%d HostIP:(string)%s}",
				ports, p.Protocol, p.ContainerPort, p.HostPort, p.HostIP)
		}
		text.WriteByte(']')
	}
	fmt.Fprintf(&text, " HostNetwork:(bool)%t}", c.HostNetwork)
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(text.String()))
	return uint64(sum.Sum32())
}
