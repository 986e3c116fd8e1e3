package kubeletfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	kubeadmUnit = "[Unit]\nDescription=kubelet\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\n"
	kubeadmConf = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
# This is a file that "kubeadm init" and "kubeadm join" generates at runtime
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`
	unitPath    = "lib/systemd/system/kubelet.service"
	kubeadmPath = "etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
	socket      = "unix:///run/crishim/crishim.sock"
)

// tree makes a node's files below a folder of the test.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		on := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(on), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(on, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, root string) *Files {
	t.Helper()
	f, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPlanEditsWhereTheSettingIs(t *testing.T) {
	for _, test := range []struct {
		name  string
		minor int
		files map[string]string
		want  map[string]string // path → new text; what is not named stays
	}{
		{"kubeadm with dockershim", 23, map[string]string{
			unitPath: kubeadmUnit, kubeadmPath: kubeadmConf, "var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\n",
			"var/lib/kubelet/kubeadm-flags.env": "# by kubeadm\nKUBELET_KUBEADM_ARGS=\"--network-plugin=cni --pod-infra-container-image=k8s.gcr.io/pause:3.6\"\n",
		}, map[string]string{
			KubeadmFlags: "# by kubeadm\nKUBELET_KUBEADM_ARGS=\"--pod-infra-container-image=k8s.gcr.io/pause:3.6 --container-runtime=remote --container-runtime-endpoint=" + socket + "\"\n",
		}},
		{"kubeadm with cri-dockerd", 26, map[string]string{
			unitPath: kubeadmUnit, kubeadmPath: kubeadmConf, "var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\n",
			"var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///var/run/cri-dockerd.sock --pod-infra-container-image=registry.k8s.io/pause:3.9\"",
		}, map[string]string{
			KubeadmFlags: "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=" + socket + " --pod-infra-container-image=registry.k8s.io/pause:3.9\"",
		}},
		{"kubeadm with an instance configuration", 34, map[string]string{
			unitPath: kubeadmUnit, kubeadmPath: kubeadmConf,
			"var/lib/kubelet/config.yaml":          "# ours\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"unix:///var/run/cri-dockerd.sock\" # old\ncgroupDriver: systemd\n",
			"var/lib/kubelet/instance-config.yaml": "containerRuntimeEndpoint: unix:///var/run/cri-dockerd.sock\n",
			"var/lib/kubelet/kubeadm-flags.env":    "KUBELET_KUBEADM_ARGS=\"--hostname-override=a\"\n",
		}, map[string]string{
			KubeadmConfig:  "# ours\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: " + socket + "\ncgroupDriver: systemd\n",
			InstanceConfig: "containerRuntimeEndpoint: " + socket + "\n",
		}},
		{"flags in the unit", 22, map[string]string{
			unitPath: "[Service]\nExecStart=/usr/bin/kubelet --config=/etc/kubelet.yaml \\\n  --network-plugin cni --cni-conf-dir=/etc/cni/net.d --v=2\n", "etc/kubelet.yaml": "kind: KubeletConfiguration\n",
		}, map[string]string{
			DropIn: "# Written by crishim adopt; crishim adopt --rollback takes it away.\n[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --config=/etc/kubelet.yaml --v=2 --container-runtime=remote --container-runtime-endpoint=" + socket + "\n",
		}},
		{"flags in variables of a unit", 23, map[string]string{
			unitPath: "[Service]\nEnvironment=\"NET=--network-plugin=cni --cni-bin-dir=/opt/cni/bin\" A=b\nExecStart=/usr/bin/kubelet $NET --v=2 --container-runtime-endpoint=unix:///var/run/dockershim.sock --container-runtime=docker\n",
		}, map[string]string{
			DropIn: "# Written by crishim adopt; crishim adopt --rollback takes it away.\n[Service]\nEnvironment=NET=\nExecStart=\nExecStart=/usr/bin/kubelet $NET --v=2 --container-runtime-endpoint=" + socket + " --container-runtime=remote\n",
		}},
		{"endpoint in a configuration of a plain unit", 30, map[string]string{
			unitPath: "[Service]\nExecStart=/usr/bin/kubelet --config /etc/kubelet.yaml\n", "etc/kubelet.yaml": "kind: KubeletConfiguration\nauthentication:\n  anonymous:\n    enabled: false\n",
		}, map[string]string{
			"/etc/kubelet.yaml": "kind: KubeletConfiguration\nauthentication:\n  anonymous:\n    enabled: false\ncontainerRuntimeEndpoint: " + socket + "\n",
		}},
		{"the word remote that newer kubelets do not know", 27, map[string]string{
			unitPath: "[Service]\nEnvironmentFile=/etc/default/kubelet\nExecStart=/usr/bin/kubelet $KUBELET_EXTRA_ARGS\n", "etc/default/kubelet": "KUBELET_EXTRA_ARGS='--container-runtime=remote --container-runtime-endpoint=/var/run/cri-dockerd.sock'\n",
		}, map[string]string{
			"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=\"--container-runtime-endpoint=" + socket + "\"\n",
		}},
		{"nothing to do", 30, map[string]string{
			unitPath: "[Service]\nExecStart=/usr/bin/kubelet --container-runtime-endpoint=" + socket + "\n",
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			edits, err := read(t, tree(t, test.files)).Plan(Target{Endpoint: socket, Minor: test.minor})
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, e := range edits {
				got[e.Path] = e.After
				if e.New != (e.Path == DropIn) || len(e.Why) == 0 {
					t.Errorf("%s: new %v, why %q", e.Path, e.New, e.Why)
				}
			}
			for path, text := range test.want {
				if got[path] != text {
					t.Errorf("%s is to be\n%s\nwant\n%s", path, got[path], text)
				}
				delete(got, path)
			}
			for path, text := range got {
				t.Errorf("%s is edited too:\n%s", path, text)
			}
		})
	}
}

func TestPlanRefusesWhatItCannotEdit(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		says  string
	}{
		{"no unit", nil, "by hand"},
		{"JSON", map[string]string{unitPath: "[Service]\nExecStart=/usr/bin/kubelet --config=/k.json\n", "k.json": `{"kind":"KubeletConfiguration"}`}, "by hand"},
		{"a drop-in after ours", map[string]string{
			unitPath: "[Service]\nExecStart=/usr/bin/kubelet --network-plugin=cni\n",
			"etc/systemd/system/kubelet.service.d/99-last.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --network-plugin=cni\n",
		}, "by hand"},
		// A flag behind the shell's script is the shell's: the kubelet would go on with the old endpoint.
		{"a shell", map[string]string{unitPath: "[Service]\nExecStart=/bin/sh -c 'exec /usr/bin/kubelet --container-runtime-endpoint=unix:///var/run/cri-dockerd.sock'\n"}, "a shell"},
		{"a shell with more", map[string]string{
			unitPath: "[Service]\nExecStart=-/usr/bin/bash -ec \"exec kubelet --config=/k.yaml >>/var/log/kubelet 2>&1\"\n", "var/lib/kubelet/config.yaml": "containerRuntimeEndpoint: unix:///var/run/cri-dockerd.sock\n",
		}, "a shell"},
		{"images of another runtime", map[string]string{unitPath: "[Service]\nExecStart=/usr/bin/kubelet --image-service-endpoint=unix:///x.sock\n"}, "image-service-endpoint"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := read(t, tree(t, test.files)).Plan(Target{Endpoint: socket, Minor: 30})
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("err = %v, want one that says %q", err, test.says)
			}
		})
	}
}

func TestSettingsAreThoseThatCount(t *testing.T) {
	f := read(t, tree(t, map[string]string{
		unitPath: kubeadmUnit, kubeadmPath: kubeadmConf,
		"var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--cgroup-driver=systemd --feature-gates A=true\"\n",
		"etc/default/kubelet":               "# more\nKUBELET_EXTRA_ARGS=--cgroup-driver=cgroupfs\n",
		"var/lib/kubelet/config.yaml":       "cgroupDriver: systemd\nhairpinMode: hairpin-veth\n",
		// A lower folder's file of the same name does not count.
		"lib/systemd/system/kubelet.service.d/10-kubeadm.conf": "[Service]\nExecStart=\nExecStart=/bin/false\n",
	}))
	if value, where := f.Setting("cgroup-driver", "cgroupDriver"); value != "cgroupfs" || where != "/etc/default/kubelet (KUBELET_EXTRA_ARGS)" {
		t.Errorf("cgroup driver %q in %q", value, where)
	}
	if value, where := f.Setting("hairpin-mode", "hairpinMode"); value != "hairpin-veth" || where != KubeadmConfig {
		t.Errorf("hairpin mode %q in %q", value, where)
	}
	if flag, _ := f.Flag("feature-gates"); flag.Value != "A=true" {
		t.Errorf("feature gates %q", flag.Value)
	}
	if flag, _ := f.Flag("kubeconfig"); flag.Value != "/etc/kubernetes/kubelet.conf" || flag.Variable != "KUBELET_KUBECONFIG_ARGS" {
		t.Errorf("kubeconfig %+v", flag)
	}
}

func TestWordsSurviveQuoting(t *testing.T) {
	for _, words := range [][]string{{"a", "b c", `d"e`, `f\g`, "h'i", ""}, {`--x={"a": "b"}`}} {
		got, err := splitWords(joinWords(words))
		if err != nil || strings.Join(got, "|") != strings.Join(words, "|") || len(got) != len(words) {
			t.Errorf("%q became %q, %v", words, got, err)
		}
		values, err := parseEnv(setEnv("X=1\n", "X", joinWords(words)))
		if err != nil || values["X"] != joinWords(words) {
			t.Errorf("%q became %q, %v", joinWords(words), values["X"], err)
		}
	}
	if _, err := splitWords(`a "b`); err == nil {
		t.Error("an open quote was accepted")
	}
}

// systemd passes over comments between the lines of one setting, in units as in its manual (systemd.syntax): people put flags
// out of use so. With them as words the kubelet would get flags that it has not, and a "#", with which it does not start.
func TestACommentWithinACommandLineIsNoPartOfIt(t *testing.T) {
	root := tree(t, map[string]string{unitPath: `[Service]
ExecStart=/usr/bin/kubelet \
  --container-runtime-endpoint=unix:///var/run/cri-dockerd.sock \
# --node-labels=old=1 \
  ; --v=9
  --config=/var/lib/kubelet/config.yaml \
  --v=2
Restart=always
`})
	f := read(t, root)
	var flags []string
	for _, flag := range f.Flags() {
		flags = append(flags, flag.Name+"="+flag.Value)
	}
	if got, want := strings.Join(flags, " "), "container-runtime-endpoint=unix:///var/run/cri-dockerd.sock config=/var/lib/kubelet/config.yaml v=2"; got != want {
		t.Errorf("flags %q, want %q", got, want)
	}
	edits, err := f.Plan(Target{Endpoint: socket, Minor: 26})
	if err != nil || len(edits) != 1 {
		t.Fatalf("%+v, %v", edits, err)
	}
	if want := "ExecStart=/usr/bin/kubelet --container-runtime-endpoint=" + socket + " --config=/var/lib/kubelet/config.yaml --v=2\n"; !strings.Contains(edits[0].After, want) {
		t.Errorf("the drop-in is %q, want it to have %q", edits[0].After, want)
	}
}

// The kubelet's configuration can have the endpoint of images too, since 1.27: it would ask the old shim, which is stopped, for them.
func TestAnEndpointForImagesInTheConfigurationIsNoticed(t *testing.T) {
	for endpoint, refused := range map[string]bool{"unix:///var/run/cri-dockerd.sock": true, socket: false, `""`: false} {
		f := read(t, tree(t, map[string]string{
			unitPath: kubeadmUnit, kubeadmPath: kubeadmConf, "var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///var/run/cri-dockerd.sock\"\n",
			"var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\nimageServiceEndpoint: " + endpoint + "\n",
		}))
		if _, err := f.Plan(Target{Endpoint: socket, Minor: 30}); errdefs.IsFailedPrecondition(err) != refused || err != nil && !strings.Contains(err.Error(), KubeadmConfig) {
			t.Errorf("imageServiceEndpoint: %s: %v", endpoint, err)
		}
	}
}

// The kubelet goes through the whole tree of its --config-dir: the last file counts, wherever in it.
func TestConfigurationsBelowTheFolderCount(t *testing.T) {
	root := tree(t, map[string]string{
		unitPath:                       "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml --config-dir=/k.d\n",
		"k.yaml":                       "cgroupDriver: systemd\n",
		"k.d/10-a.conf":                "containerRuntimeEndpoint: unix:///a.sock\n",
		"k.d/20-b/late.conf":           "containerRuntimeEndpoint: unix:///var/run/cri-dockerd.sock\n",
		"k.d/20-b/not-read.conf.saved": "containerRuntimeEndpoint: unix:///c.sock\n",
	})
	f := read(t, root)
	if value, where := f.Endpoint(); value != "unix:///var/run/cri-dockerd.sock" || where != "/k.d/20-b/late.conf" {
		t.Errorf("the endpoint is %q in %s", value, where)
	}
	edits, err := f.Plan(Target{Endpoint: socket, Minor: 34})
	if err != nil || len(edits) != 1 || edits[0].Path != "/k.d/20-b/late.conf" {
		t.Errorf("%+v, %v", edits, err)
	}
}

// A kubelet that is told of no configuration reads none, also where one of kubeadm's was left.
func TestAConfigurationThatTheKubeletIsNotGivenIsNotItsOwn(t *testing.T) {
	f := read(t, tree(t, map[string]string{
		unitPath:                      "[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/etc/kubelet.conf\n",
		"var/lib/kubelet/config.yaml": "containerRuntimeEndpoint: unix:///var/run/cri-dockerd.sock\n",
	}))
	if value, where := f.Setting("container-runtime-endpoint", "containerRuntimeEndpoint"); value != "" {
		t.Errorf("its endpoint is %s, of %s", value, where)
	}
	edits, err := f.Plan(Target{Endpoint: socket, Minor: 30})
	if err != nil {
		t.Fatal(err)
	}
	if len(edits) != 1 || edits[0].Path == KubeadmConfig || !strings.Contains(edits[0].After, "--container-runtime-endpoint="+socket) {
		t.Errorf("%+v", edits)
	}
}
