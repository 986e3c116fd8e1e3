package translator

import (
	"fmt"
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// Container decides a container of the pod. Image.ID and RepoDigest, those of image volumes, and Security.Seccomp.Content
// are left for the server.
func Container(pod *engine.PodSpec, podID engine.PodID, cfg *runtimeapi.ContainerConfig, d Defaults) (*engine.ContainerSpec, error) {
	var p problems
	linux := cfg.GetLinux()
	security := linux.GetSecurityContext()
	checkSize(&p, cfg, d.MaxLabelBytes, cfg.GetLabels(), cfg.GetAnnotations(), cfg.GetImage().GetAnnotations())
	checkKeys(&p, "labels", cfg.GetLabels())
	checkKeys(&p, "annotations", cfg.GetAnnotations())
	if cfg.GetWindows() != nil {
		p.add("windows", "is set, but this node runs Linux")
	}
	spec := &engine.ContainerSpec{
		Pod:          podID,
		PodKey:       pod.Key,
		Key:          containerKey(&p, cfg.GetMetadata()),
		Handler:      pod.Handler,
		Image:        imageRef(&p, "image", cfg.GetImage()),
		Command:      cfg.GetCommand(),
		Args:         cfg.GetArgs(),
		WorkingDir:   workingDir(&p, cfg.GetWorkingDir()),
		Env:          env(&p, cfg.GetEnvs()),
		Labels:       cfg.GetLabels(),
		Annotations:  cfg.GetAnnotations(),
		LogPath:      logPath(&p, pod.LogDirectory, cfg.GetLogPath()),
		Stdin:        cfg.GetStdin(),
		StdinOnce:    cfg.GetStdinOnce(),
		TTY:          cfg.GetTty(),
		StopSignal:   stopSignal(&p, cfg.GetStopSignal()),
		Mounts:       mounts(&p, cfg.GetMounts()),
		Devices:      devices(&p, cfg.GetDevices()),
		CDIDevices:   cdiDevices(&p, cfg.GetCDIDevices()),
		Namespaces:   containerNamespaces(&p, security.GetNamespaceOptions(), &pod.Namespaces),
		Security:     containerSecurity(&p, security, pod, &d),
		Resources:    resources(&p, "linux.resources", linux.GetResources()),
		CgroupParent: pod.CgroupParent,
		Sysctls:      pod.Sysctls,
	}
	checkArgs(&p, spec)
	if err := p.err("container"); err != nil {
		return nil, err
	}
	return spec, nil
}

// workingDir may be "", the image's. The way over /proc/PID/fd out of the root is closed here as well as in the OCI
// runtimes (runc CVE-2024-21626).
func workingDir(p *problems, s string) string {
	const field = "working_dir"
	if s == "" {
		return ""
	}
	dir := checkPath(p, field, s)
	if under("/dev/fd", dir) || under("/proc", dir) && slices.Contains(strings.Split(dir, "/"), "fd") {
		p.add(field, "%.80q is a process's open file", s)
	}
	return dir
}

// env keeps the last of several values of one name, as a shell would see it.
func env(p *problems, in []*runtimeapi.KeyValue) []engine.EnvVar {
	var out []engine.EnvVar
	at := make(map[string]int, len(in))
	for i, kv := range in {
		name := kv.GetKey()
		if name == "" || strings.Contains(name, "=") || hasControl(name) {
			p.add(fmt.Sprintf("envs[%d].key", i), "%.80q is no name of a variable", name)
			continue
		}
		if slices.Contains(kv.GetValue(), 0) {
			p.add(fmt.Sprintf("envs[%d].value", i), "of %s holds a NUL character", clip(name))
			continue
		}
		v := engine.EnvVar{Name: name, Value: kv.GetValue()}
		if j, ok := at[name]; ok {
			out[j] = v
			continue
		}
		at[name] = len(out)
		out = append(out, v)
	}
	return out
}

// The kernel's bounds for execve: one string, and all of them with their pointers (a quarter of the default stack limit).
const (
	maxArg  = 128 << 10
	maxArgs = 2 << 20
)

func checkArgs(p *problems, spec *engine.ContainerSpec) {
	const overhead = 1 + 8 // the closing NUL and a pointer
	total := 0
	count := func(field string, n int) {
		if n >= maxArg {
			p.add(field, "has a text of %d bytes, a program takes %d at most", n, maxArg-1)
		}
		total += n + overhead
	}
	for _, part := range []struct {
		field string
		list  []string
	}{{"command", spec.Command}, {"args", spec.Args}} {
		for _, arg := range part.list {
			if strings.ContainsRune(arg, 0) {
				p.add(part.field, "holds a NUL character")
			}
			count(part.field, len(arg))
		}
	}
	for _, v := range spec.Env {
		count("envs", len(v.Name)+1+len(v.Value))
	}
	if total > maxArgs {
		p.add("command, args and envs", "have %d bytes together, a program takes %d at most", total, maxArgs)
	}
}

func devices(p *problems, in []*runtimeapi.Device) []engine.Device {
	var out []engine.Device
	for i, d := range in {
		field := fmt.Sprintf("devices[%d]", i)
		out = append(out, engine.Device{
			ContainerPath: checkPath(p, field+".container_path", d.GetContainerPath()),
			HostPath:      checkPath(p, field+".host_path", d.GetHostPath()),
			Permissions:   permissions(p, field+".permissions", d.GetPermissions()),
		})
	}
	return out
}

// permissions brings them into the order r, w, m.
func permissions(p *problems, field, s string) string {
	const all = "rwm"
	if s == "" || strings.Trim(s, all) != "" {
		p.add(field, "%.80q must be one or more of r, w, m", s)
		return ""
	}
	var out strings.Builder
	for _, r := range all {
		if strings.ContainsRune(s, r) {
			out.WriteRune(r)
		}
	}
	return out.String()
}

// cdiDevices takes the field only: the annotations by which older kubelets name them too are not obeyed (docs/reliability.md S27).
func cdiDevices(p *problems, in []*runtimeapi.CDIDevice) []string {
	var out []string
	for i, d := range in {
		if !validCDIName(d.GetName()) {
			p.add(fmt.Sprintf("CDI_devices[%d].name", i), "%.80q is no qualified name such as \"vendor.com/class=device\"", d.GetName())
			continue
		}
		if !slices.Contains(out, d.GetName()) {
			out = append(out, d.GetName())
		}
	}
	return out
}

func validCDIName(s string) bool {
	kind, device, ok := strings.Cut(s, "=")
	vendor, class, ok2 := strings.Cut(kind, "/")
	if !ok || !ok2 || len(s) > maxName {
		return false
	}
	for _, word := range []string{vendor, class, device} {
		if word == "" || !isAlnum(rune(word[0])) || !onlyRunes(word, func(r rune) bool { return isNameRune(r) || r == '_' || r == ':' }) {
			return false
		}
	}
	return true
}

// depth is the number of elements of a clean absolute path.
func depth(p string) int { return strings.Count(strings.Trim(path.Clean(p), "/"), "/") }
