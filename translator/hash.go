package translator

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// terminationMessagePath is the kubelet's annotation of a container: the container_path of the mount from whose host_path it
// reads the message, as the container's status names it.
const terminationMessagePath = "io.kubernetes.container.terminationMessagePath"

// messagePath is that container_path, "" where the kubelet reads no message: its annotation, which may be relative.
func messagePath(annotations map[string]string) string {
	asked := annotations[terminationMessagePath]
	if asked == "" || strings.HasPrefix(asked, "/") {
		return asked
	}
	return "/" + asked
}

// ContainerConfigHash is ConfigHash of a container, without the file for its termination message: the kubelet makes another one for
// each call, so that no repeated one would equal the first, and reads the one that the container was made with.
func ContainerConfigHash(config *runtimeapi.ContainerConfig) string {
	path := messagePath(config.GetAnnotations())
	at := slices.IndexFunc(config.GetMounts(), func(m *runtimeapi.Mount) bool { return path != "" && m.GetContainerPath() == path })
	if at >= 0 {
		config = proto.CloneOf(config)
		config.Mounts[at].HostPath = ""
	}
	return ConfigHash(config)
}

// ConfigHash identifies a request's config: equal for equal messages and extras, whatever the order of their maps. It
// is kept in records, to tell a repeated request from another one with the same key.
func ConfigHash(config proto.Message, extra ...string) string {
	// A message that came over the wire always marshals; one that does not has no hash and so equals nothing.
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(config)
	if err != nil {
		return ""
	}
	h := sha256.New()
	write := func(b []byte) {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	write(data)
	for _, s := range extra {
		write([]byte(s))
	}
	return hex.EncodeToString(h.Sum(nil))
}
