package survey

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// The engine below answers with what real engines sent; the inspects are of pods that dockershim made.
func TestReadTellsEverythingWithoutChangingAnything(t *testing.T) {
	var mu sync.Mutex
	var changes []string
	inspects := map[string]json.RawMessage{}
	var list []map[string]any
	for _, name := range []string{"sandbox", "container"} {
		data, err := os.ReadFile("testdata/dockershim-1.22.17-" + name + "-inspect.json")
		if err != nil {
			t.Fatal(err)
		}
		var all []json.RawMessage
		if err := json.Unmarshal(data, &all); err != nil {
			t.Fatal(err)
		}
		var id struct{ ID string }
		if err := json.Unmarshal(all[0], &id); err != nil {
			t.Fatal(err)
		}
		inspects[id.ID] = all[0]
		list = append(list, map[string]any{"Id": id.ID})
	}
	list = append(list, map[string]any{"Id": strings.Repeat("0", 64)}) // goes while we look
	answers := map[string]any{
		"/version": map[string]string{"ApiVersion": "1.41", "MinAPIVersion": "1.12"},
		"/info": map[string]any{
			"ServerVersion": "20.10.24", "CgroupDriver": "systemd", "CgroupVersion": "2", "DockerRootDir": "/var/lib/docker", "Driver": "overlay2",
			"LoggingDriver": "json-file", "LiveRestoreEnabled": true, "Runtimes": map[string]any{"runc": map[string]any{}, "nvidia": map[string]any{}},
			"SecurityOptions": []string{"name=seccomp,profile=default"},
			"RegistryConfig": map[string]any{
				"Mirrors": []string{"https://mirror.example/"}, "InsecureRegistryCIDRs": []string{"127.0.0.0/8", "10.0.0.0/8"},
				"IndexConfigs": map[string]any{"reg.example:5000": map[string]any{"Name": "reg.example:5000", "Secure": false}, "docker.io": map[string]any{"Name": "docker.io", "Secure": true}},
			},
		},
		"/containers/json": list,
		"/images/json": []map[string]any{
			{"Id": "sha256:b", "RepoTags": []string{"b:1"}, "Size": 5}, {"Id": "sha256:a", "RepoTags": []string{"<none>:<none>"}},
			// As Docker 29 lists one that was pulled by tag and by digest, one by digest alone, and one of another platform.
			{"Id": "sha256:c", "RepoTags": []string{"c:1", "c@sha256:c"}, "RepoDigests": []string{"c@sha256:c"}},
			{"Id": "sha256:d", "RepoTags": []string{"d@sha256:d"}, "RepoDigests": []string{"d@sha256:d"}},
			{"Id": "sha256:e", "RepoTags": []string{"e:1"}, "RepoDigests": []string{"sha256:e"}},
		},
	}
	socket := filepath.Join(t.TempDir(), "d.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if rest, ok := strings.CutPrefix(path, "/v1.41"); ok {
			path = rest
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			mu.Lock()
			changes = append(changes, r.Method+" "+path)
			mu.Unlock()
		}
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		if id, ok := strings.CutPrefix(path, "/containers/"); ok && path != "/containers/json" {
			id, _, _ = strings.Cut(id, "/")
			if in, ok := inspects[id]; ok {
				_, _ = w.Write(in)
				return
			}
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"message":"No such container"}`))
			return
		}
		_ = json.NewEncoder(w).Encode(answers[path])
	})}
	go func() { _ = server.Serve(listener) }()
	defer func() { _ = server.Close() }()

	e, err := Read(context.Background(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) > 0 {
		t.Fatalf("it changed something: %v", changes)
	}
	if len(e.Containers) != 2 || e.Containers[0].Name != "k8s_POD_web-kubelet-test_default_47af9bf59e4756c6a2c693edfdfc7864_0" {
		t.Fatalf("containers: %+v", e.Containers)
	}
	if sandbox := e.Containers[0]; sandbox.NetworkMode != "none" || len(sandbox.Ports) != 1 || sandbox.Ports[0] != (Port{Protocol: "tcp", ContainerPort: 80, HostPort: 18080}) || sandbox.State != "running" {
		t.Errorf("sandbox: %+v", sandbox)
	}
	if web := e.Containers[1]; web.LogDriver != "json-file" || web.LogPath == "" || len(web.Mounts) != 2 || web.Labels["annotation.io.kubernetes.container.hash"] != "76a0db39" {
		t.Errorf("container: %+v", web)
	}
	got, _ := json.Marshal(Engine{APIVersion: e.APIVersion, CgroupDriver: e.CgroupDriver, LiveRestore: e.LiveRestore, Runtimes: e.Runtimes, Security: e.Security,
		Mirrors: e.Mirrors, InsecureRegistries: e.InsecureRegistries, Images: e.Images})
	want, _ := json.Marshal(Engine{APIVersion: "1.41", CgroupDriver: "systemd", LiveRestore: true, Runtimes: []string{"nvidia", "runc"}, Security: []string{"seccomp"},
		Mirrors: []string{"https://mirror.example/"}, InsecureRegistries: []string{"10.0.0.0/8", "reg.example:5000"},
		Images: []Image{
			{ID: "sha256:a"}, {ID: "sha256:d", Digests: []string{"d@sha256:d"}}, {ID: "sha256:b", Tags: []string{"b:1"}, Size: 5},
			{ID: "sha256:c", Tags: []string{"c:1"}, Digests: []string{"c@sha256:c"}}, {ID: "sha256:e", Tags: []string{"e:1"}},
		}})
	if string(got) != string(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestReadSaysThatNobodyAnswers(t *testing.T) {
	socket := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	if _, err := Read(context.Background(), socket); err == nil || !strings.Contains(err.Error(), socket) {
		t.Fatalf("err = %v, want one that names %s", err, socket)
	}
}

func TestAContainerWithoutANetworkIsTold(t *testing.T) {
	for _, disabled := range []bool{true, false} {
		in := &container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{}, Config: &container.Config{NetworkDisabled: disabled}}
		if got := fromInspect(in).NetworkDisabled; got != disabled {
			t.Errorf("%v, want %v", got, disabled)
		}
	}
}

// The survey is what `crishim preflight --output node` prints, for a bug report. Annotations of pods are labels in Docker: kubectl apply
// writes whole manifests into one, with the values of environment variables, and the kubelet the commands of hooks.
func TestAnnotationsOfPodsAreNotRead(t *testing.T) {
	labels := map[string]string{
		"io.kubernetes.pod.name": "web", "io.crishim.logdirectory": "/var/log/pods/x", "annotation.io.kubernetes.container.hash": "76a0db39", "annotation.io.kubernetes.container.restartCount": "2",
		"annotation.kubectl.kubernetes.io/last-applied-configuration": `{"env":[{"name":"PASSWORD","value":"secret"}]}`,
		"annotation.io.kubernetes.container.preStopHandler":           `{"exec":{"command":["stop","--password=secret"]}}`,
		"com.example.token": "secret",
	}
	got := fromInspect(&container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{}, Config: &container.Config{Labels: labels}}).Labels
	want := map[string]string{"io.kubernetes.pod.name": "web", "io.crishim.logdirectory": "/var/log/pods/x", "annotation.io.kubernetes.container.hash": "76a0db39", "annotation.io.kubernetes.container.restartCount": "2"}
	if !maps.Equal(got, want) {
		t.Errorf("labels: %v", got)
	}
}
