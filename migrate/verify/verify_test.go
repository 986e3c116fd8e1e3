package verify

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crishim/cni"
	"crishim/engine/docker/survey"
)

func id(n int) string { return fmt.Sprintf("%064x", n) }

// portmap's rules of one pod, as iptables-save prints them.
func rules(network, pod string) string {
	return fmt.Sprintf(`-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"%s\" id: \"%s\"" -m multiport --dports 18080 -j CNI-DN-00000000000000000000
`, network, pod)
}

const kubeRule = `-A KUBE-HOSTPORTS -p tcp -m comment --comment "web_default hostport 8080" -m tcp --dport 8080 -j KUBE-HP-ABCDEFGHIJKLMNOP`

func container(kind, pod, sandbox, state string) survey.Container {
	return survey.Container{ID: pod, Name: "k8s_x", State: state, Labels: map[string]string{labelType: kind, labelSandbox: sandbox, labelUID: "uid-" + pod}}
}

// Each row is a node with one thing on it.
func TestOnlyWhatIsProvedIsMended(t *testing.T) {
	for _, test := range []struct {
		name string
		node Node
		want string // KIND proved|left, "" for nothing
	}{
		{"a result of a dead pod", Node{Results: []Result{{ID: id(1), Pod: "default/web", Old: true}}}, "cni-result proved"},
		{"a result of a living pod", Node{Results: []Result{{ID: id(1), Pod: "default/web", Old: true}}, Live: map[string]bool{id(1): true}}, ""},
		{"a result of a moment ago", Node{Results: []Result{{ID: id(1), Pod: "default/web"}}}, ""},
		{"a result of no pod", Node{Results: []Result{{ID: id(1), Old: true}}}, ""},
		{"a result whose id is no pod's", Node{Results: []Result{{ID: "podman", Pod: "default/web", Old: true}}}, ""},
		{"a result of another runtime", Node{Results: []Result{{ID: id(1), Pod: "default/web", Old: true}}, Foreign: map[string]string{id(1): "/run/containerd"}}, "cni-result left"},
		{"an address of the pods' network", Node{Network: "net", Addresses: []Reservation{{Network: "net", ID: id(1), Old: true}}}, "address proved"},
		{"an address of a living pod", Node{Network: "net", Addresses: []Reservation{{Network: "net", ID: id(1), Old: true}}, Live: map[string]bool{id(1): true}}, ""},
		{"an address of another network", Node{Network: "net", Addresses: []Reservation{{Network: "podman", ID: id(1), Old: true}}}, "address left"},
		{"an address where no network is known", Node{Addresses: []Reservation{{Network: "net", ID: id(1), Old: true}}}, "address left"},
		{"an address of another runtime", Node{Network: "net", Addresses: []Reservation{{Network: "net", ID: id(1), Old: true}}, Foreign: map[string]string{id(1): "/x"}}, "address left"},
		{"an address that its result's DEL frees", Node{Network: "net", Results: []Result{{ID: id(1), Pod: "default/web", Old: true}}, Addresses: []Reservation{{Network: "net", ID: id(1), Old: true}}}, "cni-result proved"},
		{"rules of a dead pod", Node{Network: "net", NAT: map[string]string{"iptables": rules("net", id(1))}}, "dnat proved"},
		{"rules of a living pod", Node{Network: "net", NAT: map[string]string{"iptables": rules("net", id(1))}, Live: map[string]bool{id(1): true}}, ""},
		{"rules of another network", Node{Network: "net", NAT: map[string]string{"iptables": rules("other", id(1))}}, "dnat left"},
		{"rules of another runtime", Node{Network: "net", NAT: map[string]string{"iptables": rules("net", id(1))}, Foreign: map[string]string{id(1): "/x"}}, "dnat left"},
		{"dockershim's rule of a dead pod", Node{NAT: map[string]string{"iptables": kubeRule + "\n"}}, "host-port proved"},
		{"dockershim's rule of a living pod", Node{NAT: map[string]string{"iptables": kubeRule + "\n"}, Named: map[string]bool{"default/web": true}}, ""},
		{"a link to nothing", Node{BrokenLogs: []string{"/var/log/containers/x.log"}}, "log-link proved"},
		{"an orphan sandbox", Node{PodDirs: map[string]bool{"uid-" + id(2): true}, Containers: []survey.Container{container("podsandbox", id(1), "", "running"), container("podsandbox", id(2), "", "running")}}, "sandbox proved"},
		{"an orphan sandbox with life in it", Node{PodDirs: map[string]bool{"uid-" + id(2): true}, Containers: []survey.Container{container("podsandbox", id(1), "", "running"), container("container", id(3), id(1), "running"), container("podsandbox", id(2), "", "running")}}, "sandbox left"},
		{"a kubelet with other folders", Node{PodDirs: map[string]bool{"x": true}, Containers: []survey.Container{container("podsandbox", id(1), "", "running")}}, "sandbox left"},
		{"a kubelet without folders", Node{Containers: []survey.Container{container("podsandbox", id(1), "", "running")}}, ""},
		{"somebody's container", Node{PodDirs: map[string]bool{}, Containers: []survey.Container{{ID: id(1), Name: "k8s_POD_x"}}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			problems := Examine(&test.node)
			for _, p := range problems {
				verdict := " left"
				if p.Proved {
					verdict = " proved"
				}
				got = append(got, p.Kind+verdict)
				if p.Message == "" || p.Mend == "" || p.Subject == "" && p.Kind == LogLink {
					t.Errorf("it is not told in full: %+v", p)
				}
			}
			if strings.Join(got, ",") != test.want {
				t.Errorf("found %q, want %q", got, test.want)
			}
			// What is not proved is not touched.
			f := &Fixer{RemoveSandbox: func(context.Context, string) error { return errors.New("x") }, Network: failing{}, ChangeNAT: func(context.Context, string, string) error { return errors.New("x") }}
			f.Fix(t.Context(), problems)
			for _, p := range problems {
				if !p.Proved && (p.Mended || p.Failed != "") {
					t.Errorf("something was tried: %+v", p)
				}
			}
		})
	}
}

type failing struct{}

func (failing) Del(context.Context, []cni.Attachment) error { return errors.New("x") }

type recorder struct{ dels []string }

func (r *recorder) Del(_ context.Context, attachments []cni.Attachment) error {
	for _, a := range attachments {
		r.dels = append(r.dels, a.Network+" "+a.PodID)
	}
	return nil
}

func put(t *testing.T, path, text string, old bool) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if old {
		then := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
}

// A whole tree is read and mended; what lives, or is not a pod's, stays byte for byte.
func TestATreeIsMended(t *testing.T) {
	root := t.TempDir()
	cache := filepath.Join(root, "cache")
	entry := func(pod string) string {
		config := base64.StdEncoding.EncodeToString([]byte(`{"cniVersion":"0.4.0","name":"net","plugins":[{"type":"bridge"}]}`))
		return fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":%q,"ifName":"eth0","networkName":"net","cniArgs":[["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web"]],"result":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.9/24"}]}}`, pod, config)
	}
	result := filepath.Join(cache, "results", "net-"+id(1)+"-eth0")
	put(t, result, entry(id(1)), true)
	put(t, filepath.Join(cache, "results", "net-"+id(2)+"-eth0"), entry(id(2)), true)
	put(t, filepath.Join(cache, "results", "other"), "{}", true)
	dead := filepath.Join(root, "networks", "net", "10.1.0.3")
	put(t, dead, id(3)+"\r\neth0", true)
	kept := []string{filepath.Join(root, "networks", "net", "10.1.0.2"), filepath.Join(root, "networks", "net", "last_reserved_ip.0"), filepath.Join(root, "networks", "net", "10.1.0.4"), filepath.Join(root, "networks", "podman", "10.2.0.2")}
	put(t, kept[0], id(2)+"\r\neth0", true)
	put(t, kept[1], "10.1.0.3", true)
	put(t, kept[2], id(4)+"\r\neth0", false)
	put(t, kept[3], id(5)+"\r\neth0", true)
	put(t, filepath.Join(root, "logs", "good.txt"), "x", false)
	for name, target := range map[string]string{"broken.log": "nothing", "good.log": "good.txt", "broken": "nothing"} {
		if err := os.Symlink(target, filepath.Join(root, "logs", name)); err != nil {
			t.Fatal(err)
		}
	}
	places := Places{Root: root, CacheDirs: []string{cache}, PodDirs: "/pods", LogDirs: []string{"/logs", "/none"}, HostLocal: "/networks"}
	n, err := Leftovers(places, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n.Live, n.Network = map[string]bool{id(2): true}, "net"
	mounts(t, root)
	if err := n.LookElsewhere(root); err != nil {
		t.Fatal(err)
	}
	if err := n.ReadPodDirs(places); err != nil || n.PodDirs != nil {
		t.Fatalf("%v, %v", n.PodDirs, err)
	}
	problems := Examine(n)
	network := &recorder{}
	(&Fixer{Network: network}).Fix(t.Context(), problems)
	var kinds []string
	for _, p := range problems {
		kinds = append(kinds, p.Kind)
		if p.Mended != p.Proved || p.Failed != "" {
			t.Errorf("%+v", p)
		}
	}
	if want := []string{CNIResult, Address, Address, LogLink}; !slices.Equal(kinds, want) {
		t.Errorf("found %q, want %q", kinds, want)
	}
	if want := []string{"net " + id(1)}; !slices.Equal(network.dels, want) {
		t.Errorf("DELs %q", network.dels)
	}
	if _, err := os.Lstat(dead); !os.IsNotExist(err) {
		t.Errorf("the dead address: %v", err)
	}
	for _, path := range append(kept, filepath.Join(root, "logs", "good.log"), filepath.Join(root, "logs", "broken")) {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "logs", "broken.log")); !os.IsNotExist(err) {
		t.Errorf("the broken link: %v", err)
	}
}

// Between the look and the mending somebody else may have got the address, or the log.
func TestMendingLooksAgain(t *testing.T) {
	root := t.TempDir()
	address, link := filepath.Join(root, "10.1.0.3"), filepath.Join(root, "x.log")
	put(t, address, id(7), true)
	put(t, filepath.Join(root, "there"), "", false)
	if err := os.Symlink("there", link); err != nil {
		t.Fatal(err)
	}
	problems := []Problem{{Kind: Address, Proved: true, fix: fix{path: address, id: id(3)}}, {Kind: LogLink, Proved: true, fix: fix{path: link}}, {Kind: Sandbox, Proved: true}}
	(&Fixer{}).Fix(t.Context(), problems)
	for _, p := range problems {
		if p.Mended || p.Failed == "" {
			t.Errorf("%+v", p)
		}
	}
	for _, path := range []string{address, link} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestAnotherRuntimesContainersAreKnown(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "run/containerd/io.containerd.runtime.v2.task/k8s.io", id(1)), 0o755); err != nil {
		t.Fatal(err)
	}
	mounts(t, root)
	n := &Node{NAT: map[string]string{"iptables": rules("net", id(1))}, Addresses: []Reservation{{ID: id(2)}, {ID: "../*"}}}
	if err := n.LookElsewhere(root); err != nil || len(n.Foreign) != 1 || n.Foreign[id(1)] == "" {
		t.Errorf("foreign: %v, %v", n.Foreign, err)
	}
}

// mounts writes what the kernel says is mounted; each line is made of a pod's id.
func mounts(t *testing.T, root string, pods ...string) {
	t.Helper()
	table := "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
	for _, pod := range pods {
		table += "90 22 0:4 net:[4026532277] /run/crishim/native/ns/" + pod + "/net rw shared:1 - nsfs nsfs rw\n"
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "proc/self"), 0o755), os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), []byte(table), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// With another root_dir than the daemon's, nobody on a node without Docker says that a pod lives: its address would go to
// the next pod.
func TestPodsWhoseRecordsLieElsewhereAreLeftAlone(t *testing.T) {
	root := t.TempDir()
	mounts(t, root, id(1))
	n := &Node{Network: "net", Addresses: []Reservation{{Network: "net", ID: id(1), Old: true}, {Network: "net", ID: id(2), Old: true}}}
	if err := n.LookElsewhere(root); err != nil {
		t.Fatal(err)
	}
	problems := Examine(n)
	if len(problems) != 2 || problems[0].Proved || !strings.Contains(problems[0].Mend, "/ns/"+id(1)+"/net") || !problems[1].Proved {
		t.Errorf("%+v", problems)
	}
}
