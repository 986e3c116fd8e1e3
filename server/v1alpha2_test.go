package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// oldAPI is runtime.v1alpha2 as cri-api v0.25.16 had it, the last version that did: the file descriptor of its api.pb.go,
// without options and comments.
func oldAPI(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	packed, err := os.ReadFile("testdata/v1alpha2.binpb.gz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var file descriptorpb.FileDescriptorProto
	if err := proto.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	descriptor, err := protodesc.NewFile(&file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return descriptor
}

// The handlers of v1 answer v1alpha2, which is right only while v1 keeps each of its fields.
func TestV1HasEveryFieldOfV1alpha2InItsPlace(t *testing.T) {
	old, now := oldAPI(t), runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	fields := 0
	for i := range old.Messages().Len() {
		was := old.Messages().Get(i)
		is := now.Messages().ByName(was.Name())
		if is == nil {
			t.Errorf("v1 has no message %s", was.Name())
			continue
		}
		for j := range was.Fields().Len() {
			fields++
			before := was.Fields().Get(j)
			after := is.Fields().ByNumber(before.Number())
			if after == nil {
				t.Errorf("v1 has no field %d of %s, which was %s", before.Number(), was.Name(), before.Name())
				continue
			}
			if form(before) != form(after) && form(after) != "2 value optional bytes " { // KeyValue.value was a string: the same on the wire
				t.Errorf("field of %s was %q, is %q", was.Name(), form(before), form(after))
			}
		}
	}
	for i := range old.Enums().Len() {
		was := old.Enums().Get(i)
		is := now.Enums().ByName(was.Name())
		for j := range was.Values().Len() {
			if v := was.Values().Get(j); is == nil || is.Values().ByNumber(v.Number()) == nil || is.Values().ByNumber(v.Number()).Name() != v.Name() {
				t.Errorf("v1 has no %s of enum %s", v.Name(), was.Name())
			}
		}
	}
	if fields < 300 {
		t.Errorf("only %d fields were compared", fields)
	}
}

func form(f protoreflect.FieldDescriptor) string {
	of := ""
	switch {
	case f.IsMap():
		of = form(f.MapKey()) + "→ " + form(f.MapValue())
	case f.Message() != nil:
		of = string(f.Message().Name())
	case f.Enum() != nil:
		of = string(f.Enum().Name())
	}
	return fmt.Sprintf("%d %s %s %s %s", f.Number(), f.Name(), f.Cardinality(), f.Kind(), of)
}

func TestV1alpha2HasTheMethodsThatItHad(t *testing.T) {
	f := newFixture(t)
	old := oldAPI(t)
	services := f.server.grpc.GetServiceInfo()
	for i := range old.Services().Len() {
		service := old.Services().Get(i)
		var want, got []string
		for j := range service.Methods().Len() {
			want = append(want, string(service.Methods().Get(j).Name()))
		}
		for _, m := range services[string(service.FullName())].Methods {
			got = append(got, m.Name)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s has\n%q, want\n%q", service.FullName(), got, want)
		}
	}
	// A later one is Unimplemented, which is what clients take for "the runtime has it not".
	later := 0
	for _, desc := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		service := "runtime.v1alpha2." + strings.TrimPrefix(desc.ServiceName, "runtime.v1.")
		var names []string
		for _, m := range desc.Methods {
			names = append(names, m.MethodName)
		}
		for _, m := range desc.Streams {
			names = append(names, m.StreamName)
		}
		for _, name := range names {
			if old.Services().ByName(protoreflect.FullName(service).Name()).Methods().ByName(protoreflect.Name(name)) != nil {
				continue
			}
			later++
			err := f.conn.Invoke(t.Context(), "/"+service+"/"+name, &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
			wantCode(t, service+"/"+name, err, codes.Unimplemented)
		}
	}
	if later != 14 {
		t.Errorf("%d methods are later than v1alpha2, 14 are known", later)
	}
}

// oldKubelet calls methods as a client that knows v1alpha2's messages only, and writes down what it gets.
type oldKubelet struct {
	f    *fixture
	api  protoreflect.FileDescriptor
	told []map[string]any
	// names stand for values that differ from run to run.
	names []string
}

// call sends a request in JSON, with NAME where learn has a value, and returns the reply.
func (k *oldKubelet) call(service, method, request string) map[string]any {
	k.f.t.Helper()
	m := k.api.Services().ByName(protoreflect.Name(service)).Methods().ByName(protoreflect.Name(method))
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	for i := 0; i < len(k.names); i += 2 {
		request = strings.ReplaceAll(request, k.names[i+1], k.names[i])
	}
	if err := protojson.Unmarshal([]byte(request), in); err != nil {
		k.f.t.Fatalf("%s: %v", method, err)
	}
	if err := k.f.conn.Invoke(k.f.t.Context(), "/runtime.v1alpha2."+service+"/"+method, in, out); err != nil {
		k.f.t.Fatalf("%s: %v", method, err)
	}
	// What v1 has beside v1alpha2 is unknown here, as in an old client, and not in the JSON.
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(out)
	if err != nil {
		k.f.t.Fatal(err)
	}
	var reply map[string]any
	if err := json.Unmarshal(text, &reply); err != nil {
		k.f.t.Fatal(err)
	}
	k.told = append(k.told, map[string]any{"call": service + "/" + method, "reply": reply})
	return reply
}

// learn gives a value of a reply a name.
func (k *oldKubelet) learn(value any, name string) { k.names = append(k.names, value.(string), name) }

func (k *oldKubelet) golden(path string) {
	k.f.t.Helper()
	var masked any = steady(k.told)
	text, err := json.MarshalIndent(masked, "", "  ")
	if err != nil {
		k.f.t.Fatal(err)
	}
	text = []byte(strings.NewReplacer(k.names...).Replace(string(text)) + "\n")
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			k.f.t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || !bytes.Equal(text, want) {
		k.f.t.Errorf("%s (%v) is not what was answered; with -update it is written anew:\n%s", path, err, text)
	}
}

// steady takes out what differs from run to run.
func steady(v any) any {
	switch v := v.(type) {
	case []map[string]any:
		for i := range v {
			steady(v[i])
		}
	case []any:
		for i := range v {
			v[i] = steady(v[i])
		}
	case map[string]any:
		for key := range v {
			if strings.HasSuffix(key, "_at") || key == "timestamp" || key == "used_bytes" || key == "inodes_used" {
				v[key] = "some"
				continue
			}
			v[key] = steady(v[key])
		}
	}
	return v
}

// The requests have what a kubelet 1.22 sets, and no more: profiles as text, no policy of supplemental groups, no resources
// of the pod, limits without swap.
func TestAKubeletOfV1alpha2RunsAPod(t *testing.T) {
	f := newFixture(t)
	profile := filepath.Join(f.root, "audit.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_LOG"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := &oldKubelet{f: f, api: oldAPI(t)}
	k.learn(f.root, "ROOT")

	const pod = `{
		"metadata": {"name": "web", "namespace": "default", "uid": "9f3c9c0a"}, "hostname": "web", "log_directory": "ROOT/logs/default_web_9f3c9c0a",
		"dns_config": {"servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local"], "options": ["ndots:5"]},
		"port_mappings": [{"container_port": 80}],
		"labels": {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "9f3c9c0a"},
		"annotations": {"kubernetes.io/config.source": "api"},
		"linux": {"cgroup_parent": "/kubepods/besteffort/pod9f3c9c0a", "security_context": {
			"seccomp_profile_path": "runtime/default", "seccomp": {"profile_type": "RuntimeDefault"}, "namespace_options": {"pid": "CONTAINER"}}}}`
	const container = `{
		"metadata": {"name": "c", "attempt": 2}, "image": {"image": "` + testImage + `"}, "command": ["sleep"], "args": ["1000"],
		"envs": [{"key": "GREETING", "value": "grüß"}], "mounts": [{"container_path": "/etc/hosts", "host_path": "ROOT/audit.json"}],
		"labels": {"io.kubernetes.container.name": "c"}, "annotations": {"io.kubernetes.container.hash": "1a2b"}, "log_path": "c/2.log",
		"linux": {"resources": {"cpu_period": "100000", "cpu_shares": "2", "oom_score_adj": "1000", "memory_limit_in_bytes": "67108864",
				"hugepage_limits": [{"page_size": "2MB"}]},
			"security_context": {"namespace_options": {"pid": "CONTAINER"}, "run_as_user": {"value": "1000"}, "seccomp_profile_path": "localhost/ROOT/audit.json",
				"apparmor_profile": "runtime/default", "no_new_privs": true,
				"masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys"]}}}`

	k.call("RuntimeService", "Version", `{"version": "0.1.0"}`)
	k.call("RuntimeService", "Status", `{}`)
	k.call("RuntimeService", "UpdateRuntimeConfig", `{"runtime_config": {"network_config": {"pod_cidr": "10.244.0.0/24"}}}`)
	k.call("ImageService", "ImageStatus", `{"image": {"image": "`+testImage+`"}}`)
	k.learn(k.call("RuntimeService", "RunPodSandbox", `{"config": `+pod+`}`)["pod_sandbox_id"], "POD")
	k.call("RuntimeService", "PodSandboxStatus", `{"pod_sandbox_id": "POD"}`)
	k.learn(k.call("RuntimeService", "CreateContainer", `{"pod_sandbox_id": "POD", "config": `+container+`, "sandbox_config": `+pod+`}`)["container_id"], "CONTAINER")
	k.call("RuntimeService", "StartContainer", `{"container_id": "CONTAINER"}`)
	k.call("RuntimeService", "ListPodSandbox", `{"filter": {"state": {"state": "SANDBOX_READY"}}}`)
	k.call("RuntimeService", "ListContainers", `{"filter": {"label_selector": {"io.kubernetes.container.name": "c"}}}`)
	k.call("RuntimeService", "ContainerStatus", `{"container_id": "CONTAINER"}`)
	k.call("RuntimeService", "UpdateContainerResources", `{"container_id": "CONTAINER", "linux": {"cpuset_cpus": "0"}}`)
	k.call("RuntimeService", "ExecSync", `{"container_id": "CONTAINER", "cmd": ["echo", "hello"], "timeout": "10"}`)
	k.call("RuntimeService", "ListContainerStats", `{}`)
	k.call("RuntimeService", "StopContainer", `{"container_id": "CONTAINER", "timeout": "1"}`)
	k.call("RuntimeService", "RemoveContainer", `{"container_id": "CONTAINER"}`)
	k.call("RuntimeService", "StopPodSandbox", `{"pod_sandbox_id": "POD"}`)
	k.call("RuntimeService", "RemovePodSandbox", `{"pod_sandbox_id": "POD"}`)
	k.call("ImageService", "ListImages", `{}`)
	k.golden("testdata/v1alpha2.json")
	f.nothingLeft()
}

// Kubelets up to 1.23 take the API version of a runtime called "docker" for that of Docker, by v1 as well.
func TestTheAPIVersionIsWhatAKubeletTakesItFor(t *testing.T) {
	for name, want := range map[string][2]string{"docker": {"1.41.0", "1.41.0"}, "crishim": {"v1", "v1alpha2"}} {
		f := newFixture(t)
		f.stop()
		f.options = func(o *Options) { o.RuntimeName = name }
		f.start()
		for i, version := range []string{"v1", "v1alpha2"} {
			var got runtimeapi.VersionResponse
			if err := f.conn.Invoke(t.Context(), "/runtime."+version+".RuntimeService/Version", &runtimeapi.VersionRequest{}, &got); err != nil || got.RuntimeApiVersion != want[i] || got.RuntimeName != name {
				t.Errorf("%s over %s: %v, %v; want %s", name, version, &got, err, want[i])
			}
		}
	}
}
