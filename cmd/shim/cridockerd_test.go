package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"crishim/config"
)

// execStart is the command line of a unit with its drop-ins, as systemd joins them.
func execStart(t *testing.T, files ...string) []string {
	t.Helper()
	var line string
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join("testdata/cridockerd", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(strings.ReplaceAll(string(data), "\\\n", " "), "\n") {
			if command, ok := strings.CutPrefix(l, "ExecStart="); ok {
				line = command
			}
		}
	}
	words := strings.Fields(line)
	if len(words) == 0 || filepath.Base(words[0]) != config.CRIDockerd {
		t.Fatalf("%q does not start cri-dockerd", line)
	}
	return words[1:]
}

// asCRIDockerd translates a command line and loads what came of it over a configuration file.
func asCRIDockerd(t *testing.T, file string, args []string, env ...string) (*config.Config, *dropIn, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &dropIn{
		getenv: func(name string) string {
			for _, e := range env {
				if value, ok := strings.CutPrefix(e, name+"="); ok {
					return value
				}
			}
			return ""
		},
		handed: func() ([]string, error) { return []string{"/run/cri-dockerd.sock"}, nil },
	}
	if err := d.parse(append(slices.Clone(args), "--config="+path)); err != nil {
		return nil, d, err
	}
	if err := d.translate(); err != nil {
		return nil, d, err
	}
	c, err := config.Load(d.settings)
	return c, d, err
}

func TestTheUnitsOfCRIDockerdStartUsUnchanged(t *testing.T) {
	activated := func(c *config.Config) {
		c.Engine, c.Compatibility, c.Listen = config.EngineDocker, config.CRIDockerd, []string{"unix:///run/cri-dockerd.sock"}
	}
	for _, row := range []struct {
		name   string
		files  []string
		want   func(c *config.Config)
		warned []string
	}{
		{"its own", []string{"cri-docker.service"}, func(*config.Config) {}, nil},
		{"minikube's drop-in", []string{"cri-docker.service", "minikube-10-cni.conf"}, func(c *config.Config) {
			c.Images.Pause = "registry.k8s.io/pause:3.9"
		}, []string{"--hairpin-mode=hairpin-veth does nothing"}},
		{"an older minikube's", []string{"cri-docker.service", "minikube-old-10-cni.conf"}, func(c *config.Config) {
			c.Network.ConfDir, c.Network.BinDirs, c.Network.CacheDir = "/etc/cni/net.mk", []string{"/opt/cni/bin"}, "/var/lib/cni/cache"
		}, []string{"--hairpin-mode=promiscuous-bridge does nothing"}},
		{"without a network plugin", []string{"cri-docker.service", "minikube-no-network.conf"}, func(c *config.Config) {
			c.Network.Mode = config.NetworkBridge
		}, []string{"--hairpin-mode=promiscuous-bridge does nothing"}},
		{"a kubeadm guide's", []string{"cri-docker.service", "kubeadm-guide.conf"}, func(c *config.Config) {
			c.Images.Pause, c.Log.Level = "registry.example.com/google_containers/pause:3.9", 0
			c.Network.BinDirs, c.Network.CacheDir = []string{"/opt/cni/bin"}, "/var/lib/cni/cache"
		}, nil},
		{"one with its own paths", []string{"own-paths.service"}, func(c *config.Config) {
			c.Listen, c.Docker.Endpoint, c.CompatibilityRoot = []string{"unix:///var/run/cri-dockerd.sock"}, "unix:///data/docker.sock", "/data/cri-dockerd"
			c.Network.BinDirs, c.Network.PodCIDRs = []string{"/opt/cni/bin", "/usr/local/lib/cni"}, []string{"10.244.1.0/24"}
			c.Streaming.Address, c.Images.PullNoProgress, c.Log.Level = "127.0.0.1:10010", config.Duration(600e9), 4
		}, []string{"--network-plugin-mtu=1450 does nothing", "--runtime-cgroups=/system.slice/docker.service does nothing", "--runtime-request-timeout=15m does nothing"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, d, err := asCRIDockerd(t, "", execStart(t, row.files...))
			if err != nil {
				t.Fatal(err)
			}
			want := config.Default()
			activated(want)
			row.want(want)
			if a, b := toml(t, got), toml(t, want); a != b {
				t.Errorf("settings\n%s\nwant\n%s", a, b)
			}
			if len(d.warned) != len(row.warned) {
				t.Errorf("warned of %q, want %q", d.warned, row.warned)
			}
			for i, warning := range row.warned {
				if i < len(d.warned) && !strings.HasPrefix(d.warned[i], warning) {
					t.Errorf("warned of %q, want %q", d.warned[i], warning)
				}
			}
			for _, word := range execStart(t, row.files...) {
				flag, _, _ := strings.Cut(word, "=")
				if told := strings.Join(append(slices.Clone(d.said), d.warned...), "\n"); strings.HasPrefix(flag, "--") && flag != "--ipv6-dual-stack" && !strings.Contains(told, flag+" ") && !strings.Contains(told, flag+"=") {
					t.Errorf("nothing is said of %s:\n%s", flag, told)
				}
			}
		})
	}
}

func toml(t *testing.T, c *config.Config) string {
	t.Helper()
	var b strings.Builder
	if err := c.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhatTheNameSaysIsADefaultAndWhatAFlagSaysIsNot(t *testing.T) {
	file := "compatibility = \"\"\nlisten = [\"unix:///elsewhere.sock\"]\n[images]\npause = \"example.com/pause:1\"\n[metrics]\nlisten = \"\"\n"
	c, _, err := asCRIDockerd(t, file, []string{"--pod-infra-container-image=example.com/pause:2"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Compatibility != "" || c.Metrics.Listen != "" {
		t.Errorf("the file does not count: %+v", c)
	}
	if c.Images.Pause != "example.com/pause:2" || !slices.Equal(c.Listen, []string{"unix:///var/run/cri-dockerd.sock"}) || c.Engine != config.EngineDocker {
		t.Errorf("the flags, and the socket by which the kubelet knows the shim, do not count: %+v", c)
	}
}

func TestFlagsThatCannotBeObeyedFailAndSayWhy(t *testing.T) {
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"--network-plugin=kubenet"}, "use --network-plugin=cni"},
		{execStart(t, "cri-docker.service", "installers-kubenet.conf"), "there is no kubenet here"},
		{[]string{"--network-plugin=weave"}, "no such network plugin"},
		{[]string{"--docker-endpoint=tcp://10.0.0.1:2375"}, "must run on this host"},
		{[]string{"--container-runtime-endpoint=tcp://0.0.0.0:1"}, "unix:///PATH"},
		{[]string{"--container-runtime-endpoint=npipe:////./pipe/x"}, "unix:///PATH"},
		{[]string{"--streaming-bind-addr=localhost:http"}, "neither an IP address"},
		{[]string{"--hairpin-mode=maybe"}, "promiscuous-bridge"},
		{[]string{"--log-level=loud"}, "trace"},
		{[]string{"--pod-cidr=ten"}, "pod_cidrs"},
		{[]string{"--network-plugin-mtu=big"}, "no number"},
		{[]string{"--image-pull-progress-deadline=soon"}, "duration"},
		{[]string{"--cgroup-driver=systemd"}, "unknown flag: --cgroup-driver"},
		{[]string{"serve"}, "unknown command"},
	} {
		if _, _, err := asCRIDockerd(t, "", row.args); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: %v; want %q", row.args, err, row.want)
		}
	}
	_, _, err := asCRIDockerd(t, "", []string{"--network-plugin=kubenet", "--log-level=loud"})
	if err == nil || !strings.Contains(err.Error(), "kubenet") || !strings.Contains(err.Error(), "loud") {
		t.Errorf("not all faults at once: %v", err)
	}
}

func TestSpecialValuesOfCRIDockerdsFlags(t *testing.T) {
	c, d, err := asCRIDockerd(t, "", []string{"--docker-endpoint=", "--container-runtime-endpoint=/run/a.sock", "--streaming-bind-addr=192.0.2.1"}, "DOCKER_HOST=unix:///run/user.sock")
	if err != nil {
		t.Fatal(err)
	}
	if c.Docker.Endpoint != "unix:///run/user.sock" || c.Listen[0] != "unix:///run/a.sock" || c.Streaming.Address != "192.0.2.1:0" || !c.Streaming.AllowRemote {
		t.Errorf("got %+v", c)
	}
	if len(d.warned) != 1 || !strings.Contains(d.warned[0], "other hosts") {
		t.Errorf("warned %q of an open address", d.warned)
	}
	d = &dropIn{getenv: os.Getenv, handed: func() ([]string, error) { return nil, nil }}
	if err := errors.Join(d.parse([]string{"--container-runtime-endpoint", "fd://"}), d.translate()); err == nil || !strings.Contains(err.Error(), "cri-docker.socket") {
		t.Errorf("fd:// without systemd: %v", err)
	}
	if err := (&dropIn{}).parse([]string{"--help"}); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}
