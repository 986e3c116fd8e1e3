package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// migrated is a pod of a node that changes its shim under it.
type migrated struct {
	spec string
	// serves are ports of its server, "pod:PORT" or "host:PORT", and what they answer with.
	serves []string
	want   string
	// log is a container that writes numbered lines and goes on.
	log string
	// ended pods are over before the node moves; crashing ones are restarted all the while.
	ended    string
	crashing bool
}

// simpleServer is a pod with a web server and whatever else its spec has.
func simpleServer(name, more, containers string, serves ...string) migrated {
	return migrated{
		spec: more + `
  terminationGracePeriodSeconds: 1
  containers:
  - name: server
    image: IMAGE
    command: [sh, -c, "mkdir -p /tmp/www && echo ` + name + ` > /tmp/www/index.html && exec httpd -f -p PORT -h /tmp/www"]
    readinessProbe: {tcpSocket: {port: PORT}, periodSeconds: 1}` + containers,
		serves: serves, want: name + "\n",
	}
}

// withPort is s with its server on a port, of which it says more.
func withPort(s migrated, port int, ports string) migrated {
	s.spec = strings.ReplaceAll(s.spec, "PORT", strconv.Itoa(port))
	if ports != "" {
		s.spec = strings.Replace(s.spec, "    readinessProbe:", "    ports: "+ports+"\n    readinessProbe:", 1)
	}
	return s
}

// kubeletToMigrate are pods of all kinds, which must not notice that another shim serves them.
func kubeletToMigrate(gateway string) map[string]migrated {
	pods := map[string]migrated{
		"web":    {spec: kubeletPods["web"], serves: []string{"pod:80", "host:18180"}, want: "one\ntwo\n"}, // init containers, probes, a volume
		"chatty": {spec: kubeletPods["chatty"], log: "slow"},
		"crash":  {spec: kubeletPods["crash"], crashing: true},
		"once":   {spec: kubeletPods["once"], ended: "Succeeded"},
		"flaky": {ended: "Succeeded", spec: `
  restartPolicy: OnFailure
  containers:
  - name: c
    image: IMAGE
    command: [sh, -c, "echo x >> /data/tries; [ $(wc -l < /data/tries) -ge 2 ]"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]`},
		"unprepared": {ended: "Failed", spec: `
  restartPolicy: Never
  initContainers: [{name: first, image: IMAGE, command: [sh, -c, "echo not to be; exit 4"]}]
  containers: [{name: c, image: IMAGE, command: ["true"]}]`},
		"terminal": {log: "c", spec: `
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: IMAGE, command: [testserver, log, "2"], tty: true, stdin: true}]`},
		"host": {spec: `
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: IMAGE, command: [testserver, on-term, "0"], tty: true}]`},
		"host-server": withPort(simpleServer("host-server", "\n  hostNetwork: true", "", "host:18190"), 18190, ""),
		"two-ports":   withPort(simpleServer("two-ports", "", "", "pod:80", "host:18192"), 80, "[{containerPort: 80, hostPort: 18192}, {containerPort: 53, hostPort: 18193, protocol: UDP}]"),
		"host-ip":     withPort(simpleServer("host-ip", "", "", "pod:80", "host:18194"), 80, "[{containerPort: 80, hostPort: 18194, hostIP: "+gateway+"}]"),
		"volumes": withPort(simpleServer("volumes", `
  volumes: [{name: host, hostPath: {path: DIR, type: Directory}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]`, `
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo started >> /host/post-start"]}}}
    volumeMounts: [{name: host, mountPath: /host}, {name: host, mountPath: /sub, subPath: sub}, {name: memory, mountPath: /memory}]`, "pod:80"), 80, ""),
		"probes": withPort(simpleServer("probes", "", `
    startupProbe: {exec: {command: [test, -e, /tmp/www/index.html]}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 60}
    livenessProbe: {httpGet: {port: 80, path: /}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 3}`, "pod:80"), 80, ""),
		"shared": withPort(simpleServer("shared", "\n  shareProcessNamespace: true", `
  - {name: beside, image: IMAGE, command: [testserver, on-term, "0"]}`, "pod:80"), 80, ""),
		"limited": withPort(simpleServer("limited", "", `
    resources: {limits: {cpu: 500m, memory: 64Mi}}`, "pod:80"), 80, ""),
		"user": withPort(simpleServer("user", "\n  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}", `
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}`, "pod:8080"), 8080, ""),
	}
	for i := range 20 - len(pods) {
		name := fmt.Sprintf("plain-%d", i)
		pods[name] = withPort(simpleServer(name, "", "", "pod:80"), 80, "")
	}
	return pods
}

// migration is a node whose kubelet goes from one shim to another.
type migration struct {
	*kubeletRun
	pods     map[string]migrated
	was      map[string]harness.KubeletPod
	requests []*asker
	read     map[string]int // lines of a log that were seen
}

// begin takes down how a pod is before the node moves, and asks its server from now on.
func (m *migration) begin(t *testing.T, name string) {
	t.Helper()
	pod, p := m.pods[name], harness.KubeletPod{}
	switch {
	case pod.crashing:
		p = m.WaitPod(t, name, 3*time.Minute, "a restart", func(p harness.KubeletPod) error {
			if c := p.Status.ContainerStatuses; len(c) == 0 || c[0].RestartCount == 0 {
				return fmt.Errorf("its containers are %+v", c)
			}
			return nil
		})
	case pod.ended != "":
		p = m.WaitPod(t, name, 3*time.Minute, "its end", func(p harness.KubeletPod) error { return phase(p, pod.ended) })
	default:
		p = m.WaitPod(t, name, 3*time.Minute, "to be ready", func(p harness.KubeletPod) error {
			if !p.Ready() {
				return errors.New("it is not")
			}
			return nil
		})
	}
	m.was[name] = p
	for _, server := range pod.serves {
		where, port, _ := strings.Cut(server, ":")
		host := p.Status.PodIP
		if where == "host" {
			host = m.n.CNI.Gateway
		}
		m.requests = append(m.requests, askEvery(t, 200*time.Millisecond, net.JoinHostPort(host, port), pod.want))
	}
}

func phase(p harness.KubeletPod, want string) error {
	if p.Status.Phase != want {
		return fmt.Errorf("its phase is %s", p.Status.Phase)
	}
	return nil
}

// check compares every pod with what it was.
func (m *migration) check(t *testing.T, when string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(m.was)) {
		pod, was := m.pods[name], m.was[name]
		now := m.WaitPod(t, name, 3*time.Minute, "its state of before, "+when, func(p harness.KubeletPod) error {
			switch {
			case pod.ended != "":
				return phase(p, pod.ended)
			case pod.crashing:
				if p.Status.PodIP == "" || len(p.Status.ContainerStatuses) != len(was.Status.ContainerStatuses) {
					return errors.New("the kubelet has not looked at it yet")
				}
				for i, c := range p.Status.ContainerStatuses {
					if c.RestartCount < was.Status.ContainerStatuses[i].RestartCount {
						return fmt.Errorf("%d restarts, before %d", c.RestartCount, was.Status.ContainerStatuses[i].RestartCount)
					}
				}
				return nil
			case !p.Ready():
				return errors.New("it is not ready")
			}
			return nil
		})
		if now.Metadata.UID != was.Metadata.UID || pod.ended == "" && now.Status.PodIP != was.Status.PodIP {
			t.Errorf("%s pod %s is another one, at %s, before %s", when, name, now.Status.PodIP, was.Status.PodIP)
		}
		if !pod.crashing && !maps.Equal(now.ContainerIDs(), was.ContainerIDs()) {
			t.Errorf("%s pod %s has %v, before %v", when, name, now.ContainerIDs(), was.ContainerIDs())
		}
		if pod.log != "" {
			m.checkLog(t, when, name, pod.log)
		}
		if pod.crashing {
			m.was[name] = now
		}
	}
	m.Shell(t, "web", "web", "true")
	if got := m.Logs(t, "web", "second"); got != "one\n" {
		t.Errorf("%s the log of an init container is %q", when, got)
	}
	if got := m.Logs(t, "unprepared", "first"); got != "not to be\n" {
		t.Errorf("%s the log of an init container that failed is %q", when, got)
	}
}

// checkLog reads a log of numbered lines: each is there once, and it goes on.
func (m *migration) checkLog(t *testing.T, when, pod, container string) {
	t.Helper()
	harness.Eventually(t, time.Minute, fmt.Sprintf("%s the log of pod %s to go on", when, pod), func() error {
		log := m.Logs(t, pod, container)
		lines := strings.Split(log[:strings.LastIndexByte(log, '\n')+1], "\n")
		lines = lines[:len(lines)-1]
		for i, line := range lines {
			if got, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "line ")), " "); got != strconv.Itoa(i) {
				t.Errorf("%s line %d of the log of pod %s is %q", when, i, pod, line)
				return nil
			}
		}
		if len(lines) <= m.read[pod] {
			return fmt.Errorf("it has %d lines, and had %d", len(lines), m.read[pod])
		}
		m.read[pod] = len(lines)
		return nil
	})
}

// compareShims has the daemon's own command ask the dockershim and an observing daemon about everything.
func (m *migration) compareShims(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, "the shims to tell the same", func() error {
		out, code := m.asThePageSays(t, "adopt --compare-only", "--old-endpoint", m.DockershimEndpoint())
		if code != 0 {
			return fmt.Errorf("status %d:\n%s", code, out)
		}
		if !strings.Contains(out, "20 pods") {
			t.Errorf("compared was\n%s", out)
		}
		return nil
	})
}

// asThePageSays runs a command that docs/migration.md has an operator run, with what it has to be told of this node.
func (m *migration) asThePageSays(t *testing.T, command string, own ...string) (out string, code int) {
	t.Helper()
	page, err := os.ReadFile("../docs/migration.md")
	if err != nil || !strings.Contains(string(page), "crishim "+command) {
		t.Errorf("the page does not tell of crishim %s, %v", command, err)
	}
	return m.n.Shim.Command(slices.Concat(strings.Fields(command), []string{"--config", m.n.Shim.ConfigFile}, own)...)
}

// adopt is the switch to crishim.
func (m *migration) adopt(t *testing.T, settings map[string]any) {
	t.Helper()
	m.LeaveDockershim(func() {
		m.n.Shim.Reconfigure(settings)
		m.n.Shim.Start()
		recovered(t, m.n)
	})
}

// goBack is the switch to the dockershim.
func (m *migration) goBack(t *testing.T) {
	t.Helper()
	m.ReturnToDockershim(func() {
		m.n.Shim.Stop()
		if out, code := m.asThePageSays(t, "adopt --rollback --logs-only --yes"); code != 0 {
			t.Errorf("giving the logs back: status %d:\n%s", code, out)
		}
	})
}

// remove has the kubelet remove pods, whoever serves it.
func (m *migration) remove(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		m.Delete(t, name)
		delete(m.was, name)
	}
	harness.Eventually(t, 6*time.Minute, "the kubelet to remove its pods", func() error {
		left, err := m.n.Docker.ContainerNames()
		for _, name := range names {
			if err == nil && slices.ContainsFunc(left, func(c string) bool { return strings.Contains(c, "_"+name+"-e2e_") }) {
				err = fmt.Errorf("pod %s is there", name)
			}
		}
		return err
	})
}

// A node leaves the dockershim of its kubelet for crishim, goes back, and leaves it again: no container of 20 pods is restarted,
// no request to a pod fails, no line of a log is lost or there twice, and when the pods are deleted nothing is left of them.
// Pods that crishim has made meanwhile are kept and removed by the dockershim.
//
// Rows: R29 (part), S63 (part)
func TestKubelet122MovesFromItsDockershimAndBack(t *testing.T) {
	harness.AboutDocker(t)
	wholeKubelet(t)
	movesFromItsDockershimAndBack(t, harness.Kubelet122)
}

// The same with the last kubelet that has a dockershim; over runtime.v1, where it asks crishim.
//
// Rows: R29 (part), S63 (part)
func TestKubelet123MovesFromItsDockershimAndBack(t *testing.T) {
	harness.AboutDocker(t)
	matrixKubelet(t)
	movesFromItsDockershimAndBack(t, harness.Kubelet123)
}

func movesFromItsDockershimAndBack(t *testing.T, version string) {
	t.Helper()
	recordKubelet(t, version, 1)
	n := harness.NewNodeOn(t, harness.CNIOptions{Version: "0.4.0"}, harness.DockerOptions{}, harness.ShimOptions{})
	n.Pull(t, harness.Busybox)
	n.Pull(t, harness.Pause)
	n.Shim.Stop()
	r := &kubeletRun{n: n, host: t.TempDir()}
	if err := os.Mkdir(filepath.Join(r.host, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.Kubelet = harness.StartKubelet(t, n, harness.KubeletOptions{Version: version, Dockershim: true})
	m := &migration{kubeletRun: r, pods: kubeletToMigrate(n.CNI.Gateway), was: map[string]harness.KubeletPod{}, read: map[string]int{}}
	for name, pod := range m.pods {
		r.apply(t, name, pod.spec)
	}
	for _, name := range slices.Sorted(maps.Keys(m.pods)) {
		m.begin(t, name)
	}
	m.check(t, "on the dockershim")

	adopted := map[string]any{"adopt": map[string]any{"roots": []string{r.DockershimDir()}, "cni_cache_dirs": []string{r.DockershimCNICache()}}}
	n.Shim.Reconfigure(adopted)
	m.compareShims(t)
	m.adopt(t, adopted)
	m.check(t, "after the adoption")
	m.goBack(t)
	m.check(t, "back on the dockershim")

	m.adopt(t, map[string]any{"compatibility": "dockershim", "compatibility_root": r.DockershimDir(), "network": map[string]any{"cache_dir": r.DockershimCNICache()}})
	m.pods["made"] = withPort(simpleServer("made", "", "\n  - {name: log, image: IMAGE, command: [testserver, log, \"4\"]}", "pod:80", "host:18195"), 80, "[{containerPort: 80, hostPort: 18195}]")
	m.pods["made-briefly"] = withPort(simpleServer("made-briefly", "", "", "pod:80"), 80, "[{containerPort: 80, hostPort: 18196}]")
	m.pods["made-on-host"] = migrated{spec: m.pods["host"].spec}
	made := m.pods["made"]
	made.log = "log"
	m.pods["made"] = made
	for _, name := range []string{"made", "made-briefly", "made-on-host"} {
		r.apply(t, name, m.pods[name].spec)
		m.begin(t, name)
	}
	m.check(t, "after the second adoption")
	m.goBack(t)
	m.check(t, "back on the dockershim with pods of crishim")
	last := m.requests[len(m.requests)-1] // of made-briefly
	last.check(t)
	m.requests = m.requests[:len(m.requests)-1]
	m.remove(t, "made-briefly")
	if !refused(net.JoinHostPort(n.CNI.Gateway, "18196")) {
		t.Error("the dockershim left the host port of a pod that crishim had made")
	}

	m.adopt(t, map[string]any{})
	m.check(t, "after the third adoption")
	for _, requests := range m.requests {
		requests.check(t)
	}
	m.remove(t, slices.Collect(maps.Keys(m.was))...)
	m.nothingLeft(t)
}

// nothingLeft looks for what pods leave on a node.
func (m *migration) nothingLeft(t *testing.T) {
	t.Helper()
	for what, dir := range map[string]string{"checkpoints": filepath.Join(m.DockershimDir(), "sandbox"), "results of plugins": filepath.Join(m.DockershimCNICache(), "results")} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("the dockershim's %s are %v, %v", what, left, err)
		}
	}
	if left := m.n.CNI.Addresses(); len(left) > 0 {
		t.Errorf("addresses %v are left", left)
	}
	if left, err := m.n.CNI.Links(); err != nil || len(left) > 0 {
		t.Errorf("links are left on the bridge: %v, %v", left, err)
	}
	rules, err := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
	if err != nil || strings.Contains(string(rules), m.n.CNI.Subnet) {
		t.Errorf("rules are left, %v:\n%s", err, rules)
	}
	for _, port := range []string{"18180", "18190", "18192", "18193", "18194", "18195", "18196"} {
		if strings.Contains(string(rules), port) || !refused(net.JoinHostPort(m.n.CNI.Gateway, port)) {
			t.Errorf("host port %s is left:\n%s", port, rules)
		}
	}
}
