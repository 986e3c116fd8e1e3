package docker

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// The labels by which dockershim, cri-dockerd and this package mark their objects. They are never shown to CRI.
const (
	labelType      = "io.kubernetes.docker.type"
	labelSandbox   = "io.kubernetes.sandbox.id"
	labelLogPath   = "io.kubernetes.container.logpath"
	labelContainer = "io.kubernetes.container.name"

	typeSandbox   = "podsandbox"
	typeContainer = "container"

	// sandboxName stands for the container's name in a sandbox's name and label.
	sandboxName = "POD"
	// annotationPrefix turns a CRI annotation into a Docker label.
	annotationPrefix = "annotation."
	namePrefix       = "k8s"

	// labelProbe marks a container that is never started: it lets files of an image be read.
	labelProbe = "io.crishim.probe"
	// labelHolder marks a container that is never started: it keeps an image's layers while another container mounts them.
	labelHolder = "io.crishim.holder"
	// labelMounts names, on a container, the mounts that were prepared for it (hostMounts).
	labelMounts = "io.crishim.mounts"
	// labelLogDirectory is ContainerSpec.LogDirectory.
	labelLogDirectory = "io.crishim.logdirectory"
	// labelImage names the labels that are the image's, see hideImageLabels.
	labelImage = "io.crishim.image-labels"
	// labelPrivileged says, on a sandbox, whether the pod may have privileged containers. Its pause container never is one, so
	// that nothing else would tell where the pod's record is lost.
	labelPrivileged = "io.crishim.privileged"
)

// podName is k8s_POD_NAME_NAMESPACE_UID_ATTEMPT, dockershim's form, which it and cri-dockerd parse.
func podName(key engine.PodKey) (string, error) { return objectName(sandboxName, key, key.Attempt) }

// containerName is k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT with the container's attempt.
func containerName(pod engine.PodKey, key engine.ContainerKey) (string, error) {
	if key.Name == sandboxName {
		return "", fmt.Errorf("the container name %q is taken by the sandbox: %w", key.Name, errdefs.ErrInvalidArgument)
	}
	return objectName(key.Name, pod, key.Attempt)
}

func objectName(container string, pod engine.PodKey, attempt uint32) (string, error) {
	for _, field := range []struct{ what, value string }{
		{"container name", container}, {"pod name", pod.Name}, {"namespace", pod.Namespace}, {"pod uid", pod.UID},
	} {
		if !validField(field.value) {
			return "", fmt.Errorf("%s %.80q: Docker's names hold letters, digits, \".\" and \"-\" only (\"_\" separates their fields): %w",
				field.what, field.value, errdefs.ErrInvalidArgument)
		}
	}
	return strings.Join([]string{namePrefix, container, pod.Name, pod.Namespace, pod.UID, strconv.FormatUint(uint64(attempt), 10)}, "_"), nil
}

func validField(s string) bool {
	if s == "" || len(s) > 1024 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-':
		default:
			return false
		}
	}
	return true
}

// parseName is the inverse of podName and containerName. dockershim and cri-dockerd append "_" and 8 hexadecimal digits
// after a name conflict.
func parseName(name string) (container string, pod engine.PodKey, attempt uint32, ok bool) {
	fields := strings.Split(strings.TrimPrefix(name, "/"), "_")
	if (len(fields) != 6 && len(fields) != 7) || fields[0] != namePrefix {
		return "", engine.PodKey{}, 0, false
	}
	n, err := strconv.ParseUint(fields[5], 10, 32)
	if err != nil {
		return "", engine.PodKey{}, 0, false
	}
	return fields[1], engine.PodKey{Name: fields[2], Namespace: fields[3], UID: fields[4]}, uint32(n), true
}

// makeLabels joins CRI labels and annotations with our own. A label of the user that others obey as ours is refused
// (docs/reliability.md S26); labels of the image cannot override what is set here.
func makeLabels(labels, annotations, own map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(labels)+len(annotations)+len(own))
	for key, value := range labels {
		if reservedLabel(key) || own[key] != "" {
			return nil, fmt.Errorf("label %.80q is reserved for the container runtime: %w", key, errdefs.ErrInvalidArgument)
		}
		out[key] = value
	}
	for key, value := range annotations {
		out[annotationPrefix+key] = value
	}
	maps.Copy(out, own)
	return out, nil
}

func reservedLabel(key string) bool {
	switch key {
	case labelType, labelSandbox, labelLogPath, labelProbe, labelHolder, labelMounts, labelLogDirectory, labelImage, labelPrivileged:
		return true
	}
	return strings.HasPrefix(key, annotationPrefix)
}

// splitLabels is the inverse of makeLabels and hideImageLabels.
func splitLabels(in map[string]string, sandbox bool) (labels, annotations map[string]string) {
	labels, annotations = map[string]string{}, map[string]string{}
	hidden := hiddenLabels(in)
	for key, value := range in {
		if hidden[key] {
			continue
		}
		if annotation, ok := strings.CutPrefix(key, annotationPrefix); ok {
			annotations[annotation] = value
			continue
		}
		if reservedLabel(key) || (sandbox && key == labelContainer) {
			continue
		}
		labels[key] = value
	}
	return labels, annotations
}

// validID says whether id is a full Docker id. Ids become parts of paths: nothing else may.
func validID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func notFound(kind, id string) error {
	return fmt.Errorf("%s %.80q: %w", kind, id, errdefs.ErrNotFound)
}
