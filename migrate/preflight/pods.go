package preflight

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"crishim/engine/docker/survey"
)

// The labels of dockershim and cri-dockerd.
const (
	labelType      = "io.kubernetes.docker.type"
	labelSandbox   = "io.kubernetes.sandbox.id"
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
	labelLogPath   = "io.kubernetes.container.logpath"
	labelHash      = "annotation.io.kubernetes.container.hash"
	labelRestarts  = "annotation.io.kubernetes.container.restartCount"
)

// identity is what a name says: k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT, with 8 more digits after a conflict.
type identity struct {
	container, pod, namespace, uid string
	attempt                        uint32
}

func parseName(name string) (identity, error) {
	fields := strings.Split(name, "_")
	if len(fields) != 6 && len(fields) != 7 || fields[0] != "k8s" {
		return identity{}, fmt.Errorf("its name %q is not k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT", name)
	}
	attempt, err := strconv.ParseUint(fields[5], 10, 32)
	if err != nil {
		return identity{}, fmt.Errorf("its name %q does not end in an attempt", name)
	}
	return identity{container: fields[1], pod: fields[2], namespace: fields[3], uid: fields[4], attempt: uint32(attempt)}, nil
}

// agrees says whether name and labels are about the same pod: shims go by the one or the other.
func (i identity) agrees(labels map[string]string) error {
	for _, field := range []struct{ label, value string }{{labelPod, i.pod}, {labelNamespace, i.namespace}, {labelUID, i.uid}} {
		if labels[field.label] != field.value {
			return fmt.Errorf("its label %s is %q and its name says %q", field.label, labels[field.label], field.value)
		}
	}
	return nil
}

func (x *examination) pods() {
	if x.node.Docker == nil {
		return
	}
	var sandboxes []survey.Container
	containers := map[string][]survey.Container{} // sandbox id → containers
	for _, c := range x.node.Docker.Containers {
		switch c.Labels[labelType] {
		case "podsandbox":
			sandboxes = append(sandboxes, c)
		case "container":
			containers[c.Labels[labelSandbox]] = append(containers[c.Labels[labelSandbox]], c)
		default:
			x.report.Foreign++
			if strings.HasPrefix(c.Name, "k8s_") {
				x.find(Note, "no-labels", c.Name, "it is named like a pod's and has no labels of one (a kubelet before 1.6 made it): it is left alone", "docker rm it if nobody wants it")
			}
		}
	}
	for i := range sandboxes {
		x.report.Pods = append(x.report.Pods, x.pod(&sandboxes[i], containers[sandboxes[i].ID]))
		delete(containers, sandboxes[i].ID)
	}
	for _, orphans := range containers {
		for _, c := range orphans {
			x.find(Note, "orphan-container", c.Name, "its sandbox is gone: it is listed, and the kubelet removes it", "")
		}
	}
	slices.SortStableFunc(x.report.Pods, func(a, b Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name+"/"+a.UID, b.Namespace+"/"+b.Name+"/"+b.UID)
	})
	x.decide()
	for i := range x.report.Pods {
		x.podFindings(&x.report.Pods[i])
	}
}

func (x *examination) pod(sandbox *survey.Container, containers []survey.Container) Pod {
	p := Pod{ID: sandbox.ID, Ready: sandbox.State == "running", Created: sandbox.Created, Adoptable: true, Containers: []Container{},
		Namespace: sandbox.Labels[labelNamespace], Name: sandbox.Labels[labelPod], UID: sandbox.Labels[labelUID]}
	refuse := func(why string) { p.Adoptable, p.Why = false, append(p.Why, why) }
	warn := func(why string) { p.Why = append(p.Why, why) }
	id, err := parseName(sandbox.Name)
	if err == nil {
		p.Attempt = id.attempt
		err = id.agrees(sandbox.Labels)
	}
	if err != nil {
		refuse(err.Error())
	}
	x.podNetwork(&p, sandbox, refuse, warn)
	for _, c := range containers {
		p.Containers = append(p.Containers, x.container(&c))
	}
	return p
}

func (x *examination) podNetwork(p *Pod, sandbox *survey.Container, refuse, warn func(string)) {
	traces := x.node.Sandboxes[sandbox.ID]
	p.IPs = traces.IPs
	for _, port := range sandbox.Ports {
		if port.HostPort > 0 {
			p.Ports++
		}
	}
	if c := traces.Checkpoint; c != nil {
		if c.Namespace != p.Namespace || c.Name != p.Name {
			warn(fmt.Sprintf("its checkpoint is of another pod (%s/%s) and is not believed", c.Namespace, c.Name))
		} else {
			p.Ports = max(p.Ports, len(c.Ports))
			if c.HostNetwork != (sandbox.NetworkMode == "host") {
				warn("its checkpoint is wrong about the host's network and is not believed")
			}
		}
	}
	if traces.CheckpointError != "" {
		warn("its checkpoint cannot be read: " + traces.CheckpointError)
	}
	bridge := x.node.Own.NetworkMode == "docker-bridge"
	switch mode := sandbox.NetworkMode; {
	case mode == "host":
	case mode == "none" && bridge:
		refuse("it has a network by CNI, and crishim is set to docker-bridge")
	case mode == "none" && p.Ready && len(traces.IPs) == 0 && (x.node.CNI.File == "" || x.node.CNI.Missing != ""):
		refuse(x.noResult(&traces) + ", and there is no CNI configuration by which it could be taken down")
	case mode == "none" && p.Ready && len(traces.IPs) == 0:
		warn(x.noResult(&traces) + ": its address is read in its network namespace, and it is taken down by today's CNI configuration")
	case mode == "none":
	case (mode == "default" || mode == "bridge") && !bridge:
		refuse("it is on Docker's own bridge, and crishim is set to CNI")
	case mode == "default" || mode == "bridge":
	default:
		refuse("its network mode is " + mode + ", which no shim makes")
	}
}

func (x *examination) noResult(t *Traces) string {
	switch {
	case t.CacheError != "":
		return "the result of CNI in its cache cannot be read: " + t.CacheError
	case len(t.Networks) == 0:
		return "the CNI cache " + x.node.Shim.CacheDir + " has nothing about it"
	}
	return "the result of CNI in its cache has no address"
}

func (x *examination) container(c *survey.Container) Container {
	row := Container{ID: c.ID, Name: c.Labels[labelContainer], State: c.State, LogDriver: c.LogDriver, Adoptable: true, Kubelet: Keep}
	id, err := parseName(c.Name)
	if err == nil {
		row.Attempt = id.attempt
		err = id.agrees(c.Labels)
	}
	if err != nil {
		row.Adoptable, row.Why = false, err.Error()
	}
	hash := c.Labels[labelHash]
	_, hashErr := strconv.ParseUint(hash, 16, 64)
	switch {
	case c.State == "exited" || c.State == "dead" || c.State == "created":
		row.Kubelet = Collect
	case !row.Adoptable:
		row.Kubelet = Restart
	case hashErr != nil:
		row.Kubelet, row.Why = Restart, fmt.Sprintf("its label %s is %q: the kubelet takes it for changed", labelHash, hash)
	}
	if row.Adoptable && row.Why == "" {
		switch {
		case c.Labels[labelLogPath] == "":
			row.Why = "no log path: kubectl logs has nothing, as before"
		case c.LogDriver == "json-file" || c.LogDriver == "local" || c.LogDriver == "journald":
		default:
			row.Why = "its log driver " + c.LogDriver + " cannot be read: kubectl logs is empty until its next start"
		}
	}
	if restarts, set := c.Labels[labelRestarts]; set && err == nil && restarts != strconv.FormatUint(uint64(row.Attempt), 10) {
		row.Why = strings.TrimPrefix(row.Why+"; its label says "+restarts+" restarts and its name "+strconv.FormatUint(uint64(row.Attempt), 10), "; ")
	}
	return row
}

// decide predicts what the kubelet does at its first look, as its kuberuntime does (podSandboxChanged, computePodActions):
// the newest sandbox of a pod counts, it must be the only READY one, and must have an address unless it is on the host's network.
func (x *examination) decide() {
	newest, ready := map[string]*Pod{}, map[string]int{}
	for i := range x.report.Pods {
		p := &x.report.Pods[i]
		if best := newest[p.UID]; best == nil || p.Created.After(best.Created) {
			newest[p.UID] = p
		}
		if p.Ready {
			ready[p.UID]++
		}
	}
	for i := range x.report.Pods {
		p := &x.report.Pods[i]
		switch {
		case !p.Ready:
			p.Kubelet = Collect
		case !p.Adoptable:
			p.Kubelet, p.KubeletWhy = Restart, "it is not adopted"
		case newest[p.UID] != p:
			p.Kubelet, p.KubeletWhy = Restart, "a newer sandbox of the same pod exists"
		case ready[p.UID] > 1:
			p.Kubelet, p.KubeletWhy = Restart, "the pod has more than one sandbox that is READY"
		default:
			p.Kubelet = Keep
		}
		if p.Kubelet != Restart {
			continue
		}
		for c := range p.Containers {
			if p.Containers[c].Kubelet == Keep {
				p.Containers[c].Kubelet = Restart
			}
		}
	}
}

func (x *examination) podFindings(p *Pod) {
	subject := p.Namespace + "/" + p.Name
	switch {
	case p.Kubelet == Restart && !p.Adoptable:
		x.find(Do, "pod-not-adopted", subject, strings.Join(p.Why, "; "), "move it away before, or accept that it is made anew")
	case p.Kubelet == Restart:
		x.find(Do, "pod-restarts", subject, p.KubeletWhy, "it is about to happen under the old shim too; wait for it")
	case len(p.Why) > 0:
		x.find(Note, "pod-note", subject, strings.Join(p.Why, "; "), "")
	}
	for _, c := range p.Containers {
		switch {
		case p.Kubelet == Keep && c.Kubelet == Restart:
			x.find(Do, "container-restarts", subject+" "+c.Name, c.Why, "move the pod away before, or accept that it is restarted")
		case c.Why != "" && c.Kubelet != Collect:
			x.find(Note, "container-note", subject+" "+c.Name, c.Why, "")
		}
	}
}

func (x *examination) images() {
	if x.node.Docker == nil {
		return
	}
	used := map[string]int{}
	for _, c := range x.node.Docker.Containers {
		used[c.ImageID]++
	}
	for _, i := range x.node.Docker.Images {
		name := "<none>"
		if len(i.Tags) > 0 {
			name = strings.Join(i.Tags, ", ")
		} else if len(i.Digests) > 0 {
			name = i.Digests[0]
		}
		x.report.Images = append(x.report.Images, ImageRow{Name: name, ID: i.ID, Size: i.Size, Used: used[i.ID]})
	}
}
