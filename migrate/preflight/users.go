package preflight

import (
	"slices"
	"strings"

	"crishim/engine/docker/survey"
)

// sockets are those of the Docker Engine and of shims, by the finding that a user of one is.
var sockets = []struct{ path, finding string }{
	{"/var/run/docker.sock", "docker-socket"},
	{"/run/docker.sock", "docker-socket"},
	{"/var/run/dockershim.sock", "shim-socket"},
	{"/run/dockershim.sock", "shim-socket"},
	{"/var/run/cri-dockerd.sock", "shim-socket"},
	{"/run/cri-dockerd.sock", "shim-socket"},
}

// idReaders are agents that take the runtime's name from the ids in pod statuses, or know the form of Docker's cgroups, by a
// part of their images' names. It is a list of what is widely used, and no list is whole.
var idReaders = []string{
	"cadvisor", "cilium", "datadog", "dynatrace", "falco", "fluentd", "grafana/agent", "instana", "kube-state-metrics", "metricbeat", "filebeat", "newrelic",
	"node-problem-detector", "openkruise", "kruise-manager", "kruise-daemon", "pixie", "splunk", "sysdig", "twistlock", "prismacloud", "aquasec", "vector", "weave-scope", "weaveworks/scope", "amazon-k8s-cni",
}

// users are containers that look at the runtime behind the kubelet's back.
func (x *examination) users() {
	if x.node.Docker == nil {
		return
	}
	for i := range x.node.Docker.Containers {
		c := &x.node.Docker.Containers[i]
		if c.State != "running" || c.Labels[labelType] == "podsandbox" {
			continue
		}
		x.socketUser(c)
		x.logReader(c)
		if agent := idReader(c.Image + " " + x.tagOf(c.ImageID)); agent != "" {
			x.idReaderFinding(c, agent)
		}
	}
}

func (x *examination) idReaderFinding(c *survey.Container, agent string) {
	if x.node.Own.RuntimeName == "docker" {
		x.find(Note, "id-reader", c.Name, agent+" takes the runtime's name from container ids; they stay docker://…, so it goes on", "")
		return
	}
	x.find(Do, "id-reader", c.Name, agent+" takes the runtime's name from container ids, which would become "+x.node.Own.RuntimeName+"://…", `runtime_name = "docker", or set the agent to the new name`)
}

// tagOf names an image that a container knows by its id only, as those that kubelets make do.
func (x *examination) tagOf(id string) string {
	for _, i := range x.node.Docker.Images {
		if i.ID == id {
			return strings.Join(append(slices.Clone(i.Tags), i.Digests...), " ")
		}
	}
	return ""
}

func idReader(image string) string {
	for _, agent := range idReaders {
		if strings.Contains(image, agent) {
			return agent
		}
	}
	return ""
}

// socketUser finds the container's widest way to a socket: the socket itself, or a folder that it is in.
func (x *examination) socketUser(c *survey.Container) {
	found := map[string]string{} // finding → what is mounted
	for _, m := range c.Mounts {
		for _, s := range sockets {
			if m.Source == s.path {
				found[s.finding] = m.Source
			} else if found[s.finding] == "" && s.finding == "docker-socket" && inside(s.path, m.Source) {
				found[s.finding] = m.Source
			}
		}
	}
	if source := found["docker-socket"]; strings.HasSuffix(source, ".sock") {
		x.find(Note, "docker-socket", c.Name, "it talks to Docker by "+source+"; that goes on while Docker is there, and does not see pods of the native engine", "")
	} else if source != "" {
		x.find(Note, "docker-socket", c.Name, "it can reach Docker's socket by the folder "+source+" of the host", "")
	}
	source := found["shim-socket"]
	if source == "" || slices.Contains(x.node.Own.Listen, "unix://"+source) || slices.Contains(x.node.Own.Listen, "unix:///run/"+source[strings.LastIndexByte(source, '/')+1:]) {
		return
	}
	x.find(Do, "shim-socket", c.Name, "it talks to the old shim by "+source+", where nobody will answer", "listen: add unix://"+source+"; its pod must be restarted after the switch to get the new socket")
}

// wide are folders that are mounted for many reasons: they say nothing about logs.
var wide = []string{"/", "/var", "/var/lib"}

func inside(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// logReader finds agents that read Docker's own log files, of which CRI logs are no links any more.
func (x *examination) logReader(c *survey.Container) {
	reads, pods := "", false
	for _, m := range c.Mounts {
		if slices.Contains(wide, m.Source) {
			continue
		}
		if inside(x.node.Docker.RootDir+"/containers", m.Source) {
			reads = m.Source
		}
		pods = pods || inside("/var/log/pods", m.Source) || inside("/var/log/containers", m.Source)
	}
	switch {
	case x.node.Own.ContainerLog == "json-file":
	case reads != "":
		x.find(Do, "log-reader", c.Name, "it reads Docker's log files in "+reads+"; logs will be in /var/log/pods, in CRI's format",
			`set its parser to cri; or container_log = "json-file" keeps links to Docker's files`)
	case pods:
		x.find(Do, "log-reader", c.Name, "it reads the logs in /var/log, which will be in CRI's format instead of Docker's JSON", `set its parser to cri; or container_log = "json-file" keeps Docker's files`)
	}
}

func (x *examination) devices() {
	d := x.node.Docker
	if d == nil {
		return
	}
	var special []string
	for _, name := range d.Runtimes {
		if name != "runc" && name != "io.containerd.runc.v2" && name != "io.containerd.runtime.v1.linux" {
			special = append(special, name)
		}
	}
	if len(special) > 0 {
		x.find(Note, "runtimes", x.node.Daemon.Path, "further OCI runtimes: "+strings.Join(special, ", ")+"; each is a runtime handler of its name, and the default stays "+d.DefaultRuntime, "")
	}
	if len(x.node.GPUs) == 0 {
		return
	}
	message := "graphics processors: " + strings.Join(x.node.GPUs, ", ")
	switch {
	case slices.Contains(special, "nvidia"):
		x.find(Note, "gpu", "", message+"; containers get them by Docker's runtime nvidia, as before", "for the native engine: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
	case len(x.node.CDI) > 0:
		x.find(Note, "gpu", "", message+"; described for CDI in "+strings.Join(x.node.CDI, ", "), "")
	default:
		x.find(Note, "gpu", "", message+"; no runtime and no CDI file gives them to containers", "")
	}
}
