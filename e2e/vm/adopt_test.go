package vm

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The program is the node's kubelet too: it says its version and runs, and that is all that the switch needs of it.
func TestMain(m *testing.M) {
	// The switch asks a running kubelet by /proc/PID/exe.
	if program, err := os.Executable(); err != nil || filepath.Base(program) != "kubelet" {
		os.Exit(m.Run())
	}
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		fmt.Println("Kubernetes v1.30.2")
		return
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
}

const (
	oldSocket   = "unix:///run/cri-dockerd.sock"
	flagsFile   = "/var/lib/kubelet/kubeadm-flags.env"
	kubeletUnit = `[Service]
EnvironmentFile=` + flagsFile + `
ExecStart=/usr/local/bin/kubelet --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS
[Install]
WantedBy=multi-user.target
`
	// Another crishim, which knows of nothing but Docker's labels, stands in for the old shim.
	oldShimUnit = `[Service]
Type=notify
ExecStart=/usr/bin/crishim serve --config=/etc/old-shim.toml
KillMode=process
[Install]
WantedBy=multi-user.target
`
	oldShimConfig = `
listen = ["` + oldSocket + `"]
engine = "docker"
root_dir = "/var/lib/old-shim"
run_dir = "/run/old-shim"
`
)

// A node of systemd is switched from an old shim to crishim and back: what ran in Docker runs on.
//
// Rows: R29 (part)
func TestAdoptSwitchesANodeAndBack(t *testing.T) {
	h := onNode(t)
	run(t, "systemctl", "stop", "crishim")
	run(t, "systemctl", "disable", "crishim")
	if err := os.RemoveAll("/var/lib/crishim"); err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(t.TempDir(), "layer.tar")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kubelet, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	flags := "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=" + oldSocket + " --pod-infra-container-image=pause\"\n"
	for path, content := range map[string]string{
		layer: string(busyboxLayer(t)), "/usr/local/bin/kubelet": string(kubelet), flagsFile: flags, "/etc/old-shim.toml": oldShimConfig,
		"/etc/crishim/config.toml": "engine = \"docker\"\n", "/var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\ncgroupDriver: systemd\n",
		"/etc/systemd/system/kubelet.service": kubeletUnit, "/etc/systemd/system/cri-docker.service": oldShimUnit,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", "docker")
	run(t, "docker", "import", layer, "busybox:1")
	sandbox := dockerRun(t, "k8s_POD_web_default_uid-1_0", "podsandbox", "--network=host", "--ipc=host", "--label=io.kubernetes.container.name=POD")
	container := dockerRun(t, "k8s_c_web_default_uid-1_0", "container", "--network=container:"+sandbox, "--ipc=container:"+sandbox,
		"--label=io.kubernetes.container.name=c", "--label=io.kubernetes.sandbox.id="+sandbox, "--label=io.kubernetes.container.logpath=/var/log/pods/c/0.log",
		"--label=annotation.io.kubernetes.container.restartCount=0", "--label=annotation.io.kubernetes.container.hash=1234abcd")
	pid := run(t, "docker", "inspect", "-f", "{{.State.Pid}}", container)
	run(t, "systemctl", "enable", "--now", "cri-docker", "kubelet")
	// Whoever connects to it starts crishim, which the way back has to stop.
	run(t, "systemctl", "start", "crishim.socket")

	t.Log(adopt(t, "--yes", "--accept-findings"))
	check := func(when, endpoint string, units map[string]string) {
		t.Helper()
		for unit, want := range units {
			if got := property(t, unit, "ActiveState") + " " + property(t, unit, "UnitFileState"); got != want {
				t.Errorf("%s: %s is %s, want %s", when, unit, got, want)
			}
		}
		arguments, err := os.ReadFile("/proc/" + property(t, "kubelet", "MainPID") + "/cmdline")
		if err != nil || !strings.Contains(string(arguments), "\x00--container-runtime-endpoint="+endpoint+"\x00") {
			t.Errorf("%s: the kubelet runs with %q, %v", when, arguments, err)
		}
		if now := run(t, "docker", "inspect", "-f", "{{.State.Pid}}", container); now != pid {
			t.Errorf("%s: the container's process is %q, was %q", when, now, pid)
		}
	}
	check("after the switch", "unix:///run/crishim/crishim.sock", map[string]string{"kubelet": "active enabled", "crishim": "active enabled", "cri-docker": "inactive disabled"})
	if st := h.status(t, container); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.Metadata.Name != "c" {
		t.Errorf("crishim says of the container: %v, %v", st.State, st.Metadata)
	}
	if out, code := h.exec(t, container, "echo here"); out != "here" || code != 0 {
		t.Errorf("exec: %q, %d", out, code)
	}

	t.Log(adopt(t, "--rollback", "--yes"))
	check("after the way back", oldSocket, map[string]string{"kubelet": "active enabled", "crishim": "inactive disabled", "crishim.socket": "active disabled", "cri-docker": "active enabled"})
	if now, err := os.ReadFile(flagsFile); err != nil || string(now) != flags {
		t.Errorf("the kubelet's file is %q, was %q, %v", now, flags, err)
	}
}

func adopt(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "crishim", append([]string{"adopt"}, args...)...)
}

// dockerRun makes what the old shim would have made: a container that sleeps.
func dockerRun(t *testing.T, name, kind string, args ...string) string {
	t.Helper()
	all := append([]string{"run", "-d", "--name=" + name, "--label=io.kubernetes.docker.type=" + kind, "--label=io.kubernetes.pod.name=web",
		"--label=io.kubernetes.pod.namespace=default", "--label=io.kubernetes.pod.uid=uid-1"}, args...)
	cmd := exec.CommandContext(within(t), "docker", append(all, "busybox:1", "sleep", "100000")...)
	cmd.Stderr = io.Discard
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker run %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}
