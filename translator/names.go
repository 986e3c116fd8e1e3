package translator

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

const (
	// maxName is the length of a DNS subdomain, which Kubernetes' names are.
	maxName = 253
	// maxHostname is the kernel's.
	maxHostname = 64
	// maxConfigSize bounds a whole PodSandboxConfig or ContainerConfig: records and replies are made of it.
	maxConfigSize = 4 << 20
)

func podKey(p *problems, m *runtimeapi.PodSandboxMetadata) engine.PodKey {
	if m == nil {
		p.add("metadata", "is required")
		return engine.PodKey{}
	}
	checkName(p, "metadata.name", m.GetName())
	checkName(p, "metadata.namespace", m.GetNamespace())
	checkName(p, "metadata.uid", m.GetUid())
	return engine.PodKey{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt()}
}

func containerKey(p *problems, m *runtimeapi.ContainerMetadata) engine.ContainerKey {
	if m == nil {
		p.add("metadata", "is required")
		return engine.ContainerKey{}
	}
	checkName(p, "metadata.name", m.GetName())
	return engine.ContainerKey{Name: m.GetName(), Attempt: m.GetAttempt()}
}

// checkName accepts what can be part of a file name, a cgroup's name, CNI_ARGS (";" and "=" separate there) and
// dockershim's container names ("_" separates there) without being encoded. Kubernetes' own names all are such.
func checkName(p *problems, field, s string) {
	switch {
	case s == "":
		p.add(field, "is required")
	case len(s) > maxName:
		p.add(field, "has %d characters, at most %d are allowed", len(s), maxName)
	case !onlyRunes(s, isNameRune), !isAlnum(rune(s[0])), strings.Contains(s, ".."):
		p.add(field, "%.80q may hold letters, digits, \"-\" and \".\" only (\"_\" separates the names of containers), begins with a letter or digit and has no \"..\"", s)
	}
}

func isNameRune(r rune) bool { return isAlnum(r) || r == '-' || r == '.' }

func checkHostname(p *problems, s string) {
	switch {
	case s == "":
	case len(s) > maxHostname:
		p.add("hostname", "has %d characters, at most %d are allowed", len(s), maxHostname)
	case !onlyRunes(s, func(r rune) bool { return isNameRune(r) || r == '_' }), !isAlnum(rune(s[0])), strings.Contains(s, ".."):
		p.add("hostname", "%.80q is no host name", s)
	}
}

// checkHandler is for names of runtime handlers; whether there is such a one the server knows.
func checkHandler(p *problems, field, s string) {
	if len(s) > maxName || !onlyRunes(s, func(r rune) bool { return isNameRune(r) || r == '_' }) {
		p.add(field, "%.80q is no name of a runtime handler", s)
	}
}

// checkSize bounds what a record and a List entry are made of (docs/reliability.md S52).
func checkSize(p *problems, cfg proto.Message, limit int, maps ...map[string]string) {
	if n := proto.Size(cfg); n > maxConfigSize {
		p.add("config", "has %d bytes, at most %d are allowed", n, maxConfigSize)
	}
	if limit == 0 {
		limit = DefaultMaxLabelBytes
	}
	total := 0
	for _, m := range maps {
		for key, value := range m {
			total += len(key) + len(value)
		}
	}
	if total > limit {
		p.add("labels and annotations", "have %d bytes together, at most %d are allowed", total, limit)
	}
}

func checkKeys(p *problems, field string, m map[string]string) {
	if _, ok := m[""]; ok {
		p.add(field, "has an empty key")
	}
	for key := range m {
		if strings.ContainsRune(key, 0) {
			p.add(field, "key %.80q holds a NUL character", key)
		}
	}
}

// imageRef translates an ImageSpec. Its image_ref is for replies only and is not looked at.
func imageRef(p *problems, field string, in *runtimeapi.ImageSpec) engine.ImageRef {
	const maxReference = 1024
	check := func(name, s string) {
		if len(s) > maxReference || strings.ContainsAny(s, " \t") || hasControl(s) {
			p.add(fmt.Sprintf("%s.%s", field, name), "%.80q is no image reference", s)
		}
	}
	if in.GetImage() == "" {
		p.add(field+".image", "is required")
	}
	check("image", in.GetImage())
	check("user_specified_image", in.GetUserSpecifiedImage())
	checkHandler(p, field+".runtime_handler", in.GetRuntimeHandler())
	return engine.ImageRef{
		Ref: in.GetImage(), UserSpecified: in.GetUserSpecifiedImage(), Annotations: in.GetAnnotations(), RuntimeHandler: in.GetRuntimeHandler(),
	}
}
