package translator

import (
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// Pod decides a pod sandbox. Handler and Security.Seccomp.Content are left for the server.
func Pod(cfg *runtimeapi.PodSandboxConfig, runtimeHandler string, d Defaults) (*engine.PodSpec, error) {
	var p problems
	linux := cfg.GetLinux()
	security := linux.GetSecurityContext()
	checkSize(&p, cfg, d.MaxLabelBytes, cfg.GetLabels(), cfg.GetAnnotations())
	checkKeys(&p, "labels", cfg.GetLabels())
	checkKeys(&p, "annotations", cfg.GetAnnotations())
	checkHostname(&p, cfg.GetHostname())
	checkHandler(&p, "runtime_handler", runtimeHandler)
	if cfg.GetWindows() != nil {
		p.add("windows", "is set, but this node runs Linux")
	}
	spec := &engine.PodSpec{
		Key:            podKey(&p, cfg.GetMetadata()),
		RuntimeHandler: runtimeHandler,
		Hostname:       cfg.GetHostname(),
		Labels:         cfg.GetLabels(),
		Annotations:    cfg.GetAnnotations(),
		LogDirectory:   logDirectory(&p, cfg.GetLogDirectory()),
		CgroupParent:   cgroupParent(&p, linux.GetCgroupParent(), d.CgroupDriver),
		DNS:            dns(&p, cfg.GetDnsConfig()),
		Ports:          ports(&p, cfg.GetPortMappings()),
		Namespaces:     podNamespaces(&p, security.GetNamespaceOptions()),
		Security:       podSecurity(&p, security, &d),
		PauseImage:     d.PauseImage,
		Overhead:       podResources(&p, "linux.overhead", linux.GetOverhead()),
		Resources:      podResources(&p, "linux.resources", linux.GetResources()),
	}
	spec.Sysctls, spec.InterfaceSysctls = sysctls(&p, linux.GetSysctls(), &spec.Namespaces)
	if spec.Namespaces.Network == engine.NamespaceNode {
		spec.Hostname = "" // the pod has the host's UTS namespace and with it the host's name
	}
	if err := p.err("pod sandbox"); err != nil {
		return nil, err
	}
	return spec, nil
}

// PodResources translates the sums of a pod's resources, as UpdatePodSandboxResources brings them. nil for nil.
func PodResources(overhead, resources *runtimeapi.LinuxContainerResources) (*engine.Resources, *engine.Resources, error) {
	var p problems
	o, r := podResources(&p, "overhead", overhead), podResources(&p, "resources", lessOverhead(resources))
	return o, r, p.err("resources of the pod sandbox")
}

// lessOverhead makes limits of what the kubelet sends of a pod with overhead: the difference of the two, also where there is no
// limit (-1) or hardly more than the overhead. An error would be the end of the kubelet's resize.
func lessOverhead(in *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	quota, memory := in.GetCpuQuota(), in.GetMemoryLimitInBytes()
	if quota >= minCFSMicros && memory >= 0 || in == nil {
		return in
	}
	out := proto.CloneOf(in)
	out.MemoryLimitInBytes = max(memory, unlimited)
	switch {
	case quota < 0:
		out.CpuQuota = unlimited
	case quota > 0:
		out.CpuQuota = max(quota, minCFSMicros)
	}
	return out
}

func podResources(p *problems, field string, in *runtimeapi.LinuxContainerResources) *engine.Resources {
	if in == nil {
		return nil
	}
	r := resources(p, field, in)
	return &r
}
