package translator

import (
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

func wantMessage(t *testing.T, got proto.Message, want string) {
	t.Helper()
	wanted := got.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal([]byte(want), wanted); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, wanted) {
		t.Errorf("got  %s\nwant %s", protojson.Format(got), protojson.Format(wanted))
	}
}

func podView() *PodView {
	return &PodView{
		ID: "p1", State: engine.PodReady, CreatedAt: time.Unix(1, 5), IPs: []string{"10.0.0.2", "fd00::2"},
		Spec: &engine.PodSpec{
			Key: engine.PodKey{Name: "n", Namespace: "ns", UID: "u", Attempt: 2}, RuntimeHandler: "crun", Handler: "crun-oci",
			Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"},
			Namespaces: engine.Namespaces{Network: engine.NamespacePod, PID: engine.NamespaceContainer, IPC: engine.NamespaceNode,
				User: &engine.UserNamespace{UIDs: []engine.IDMapping{{HostID: 5, Length: 9}}, GIDs: []engine.IDMapping{{HostID: 6, Length: 9}}}},
		},
	}
}

func TestPodReplies(t *testing.T) {
	v := podView()
	wantMessage(t, PodStatusReply(v), `{"id":"p1","metadata":{"name":"n","uid":"u","namespace":"ns","attempt":2},"state":"SANDBOX_READY","createdAt":"1000000005",
		"network":{"ip":"10.0.0.2","additionalIps":[{"ip":"fd00::2"}]},
		"linux":{"namespaces":{"options":{"network":"POD","pid":"CONTAINER","ipc":"NODE","usernsOptions":{"uids":[{"hostId":5,"length":9}],"gids":[{"hostId":6,"length":9}]}}}},
		"labels":{"l":"1"},"annotations":{"a":"2"},"runtimeHandler":"crun"}`)
	wantMessage(t, PodListItem(v), `{"id":"p1","metadata":{"name":"n","uid":"u","namespace":"ns","attempt":2},"state":"SANDBOX_READY","createdAt":"1000000005",
		"labels":{"l":"1"},"annotations":{"a":"2"},"runtimeHandler":"crun"}`)
	v.State, v.IPs = engine.PodNotReady, nil
	if s := PodStatusReply(v); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || s.Network == nil || s.Network.Ip != "" {
		t.Errorf("a stopped pod: %v", s)
	}
}

func containerView() *ContainerView {
	return &ContainerView{
		ID: "c1", PodID: "p1", ImageID: "sha256:a", ImageRef: "nginx@sha256:b", ImageName: "nginx:1", Resources: engine.Resources{CPUShares: 7},
		Spec: &engine.ContainerSpec{
			Key: engine.ContainerKey{Name: "n", Attempt: 3}, LogPath: "/l", StopSignal: "SIGINT",
			Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"},
			Image: engine.ImageRef{Ref: "sha256:a", Annotations: map[string]string{"i": "3"}, RuntimeHandler: "crun"},
			Mounts: []engine.Mount{
				{ContainerPath: "/m", HostPath: "/h", Readonly: true, RecursiveReadonly: true, SELinuxRelabel: true, Propagation: engine.PropagationHostToContainer,
					UIDMappings: []engine.IDMapping{{HostID: 1, ContainerID: 2, Length: 3}}, GIDMappings: []engine.IDMapping{{Length: 4}}, Options: []string{"nodev"}},
				{ContainerPath: "/i", Readonly: true, Propagation: engine.PropagationPrivate, Image: &engine.ImageRef{Ref: "x:1", ID: "sha256:x"}, ImageSubPath: "s"},
			},
		},
		Status: engine.ContainerStatus{
			State: engine.ContainerExited, CreatedAt: time.Unix(0, 1), StartedAt: time.Unix(0, 2), FinishedAt: time.Unix(0, 3), ExitCode: 137,
			Reason: engine.ReasonOOMKilled, Message: "m", StopSignal: "SIGQUIT", User: &engine.User{UID: 1, GID: 2, Groups: []int64{2, 3}},
		},
	}
}

func TestContainerReplies(t *testing.T) {
	v := containerView()
	wantMessage(t, ContainerStatusReply(v), `{"id":"c1","metadata":{"name":"n","attempt":3},"state":"CONTAINER_EXITED","createdAt":"1","startedAt":"2","finishedAt":"3","exitCode":137,
		"image":{"image":"nginx:1","annotations":{"i":"3"},"runtimeHandler":"crun"},"imageRef":"nginx@sha256:b","imageId":"sha256:a","reason":"OOMKilled","message":"m",
		"labels":{"l":"1"},"annotations":{"a":"2"},"logPath":"/l","resources":{"linux":{"cpuShares":"7"}},
		"mounts":[{"containerPath":"/m","hostPath":"/h","readonly":true,"recursiveReadOnly":true,"selinuxRelabel":true,"propagation":"PROPAGATION_HOST_TO_CONTAINER",
			"uidMappings":[{"hostId":1,"containerId":2,"length":3}],"gidMappings":[{"length":4}],"mountOptions":["nodev"]},
			{"containerPath":"/i","readonly":true,"image":{"image":"x:1","imageRef":"sha256:x"},"imageSubPath":"s"}],
		"user":{"linux":{"uid":"1","gid":"2","supplementalGroups":["2","3"]}},"stopSignal":"SIGNAL_SIGQUIT"}`)
	wantMessage(t, ContainerListItem(v), `{"id":"c1","podSandboxId":"p1","metadata":{"name":"n","attempt":3},"state":"CONTAINER_EXITED","createdAt":"1",
		"image":{"image":"nginx:1","annotations":{"i":"3"},"runtimeHandler":"crun"},"imageRef":"sha256:a","imageId":"sha256:a","labels":{"l":"1"},"annotations":{"a":"2"}}`)
}

// cri-client refuses a status without an image, an image_ref or a creation time.
func TestAContainerThatHasNeverRunIsAnsweredWhole(t *testing.T) {
	v := &ContainerView{ID: "c1", Spec: &engine.ContainerSpec{Image: engine.ImageRef{Ref: "nginx"}, StopSignal: "SIGINT"},
		Status: engine.ContainerStatus{State: engine.ContainerCreated, CreatedAt: time.Unix(0, 1)}}
	wantMessage(t, ContainerStatusReply(v), `{"id":"c1","metadata":{},"createdAt":"1","image":{"image":"nginx"},"imageRef":"nginx","resources":{"linux":{}},"stopSignal":"SIGNAL_SIGINT"}`)
	v.Spec.Image.UserSpecified, v.ImageName = "library/nginx", "nginx:1"
	if got := ContainerStatusReply(v).Image; got.Image != "library/nginx" || got.UserSpecifiedImage != "library/nginx" {
		t.Errorf("the user's name of the image: %v", got)
	}
	for state, want := range map[engine.ContainerState]runtimeapi.ContainerState{
		engine.ContainerRunning: runtimeapi.ContainerState_CONTAINER_RUNNING, engine.ContainerUnknown: runtimeapi.ContainerState_CONTAINER_UNKNOWN,
		"": runtimeapi.ContainerState_CONTAINER_UNKNOWN,
	} {
		v.Status.State = state
		if got := ContainerListItem(v).State; got != want {
			t.Errorf("state %q is %s", state, got)
		}
	}
}

func TestFilters(t *testing.T) {
	p, c := podView(), containerView()
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for _, f := range []struct {
		filter *runtimeapi.PodSandboxFilter
		want   bool
	}{
		{nil, true}, {&runtimeapi.PodSandboxFilter{}, true},
		{&runtimeapi.PodSandboxFilter{Id: "p1"}, true}, {&runtimeapi.PodSandboxFilter{Id: "p"}, true}, {&runtimeapi.PodSandboxFilter{Id: "p12"}, false},
		{&runtimeapi.PodSandboxFilter{State: ready}, true}, {&runtimeapi.PodSandboxFilter{State: notReady}, false},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"l": "1"}}, true},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"l": "2"}}, false},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"l": "1", "x": ""}}, false},
		{PodStatsFilter(nil), true}, {PodStatsFilter(&runtimeapi.PodSandboxStatsFilter{Id: "q"}), false},
		{PodStatsFilter(&runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"l": "2"}}), false},
	} {
		if got := PodMatches(f.filter, p); got != f.want {
			t.Errorf("%v: %v", f.filter, got)
		}
	}
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	for _, f := range []struct {
		filter *runtimeapi.ContainerFilter
		want   bool
	}{
		{nil, true}, {&runtimeapi.ContainerFilter{}, true},
		{&runtimeapi.ContainerFilter{Id: "c1", PodSandboxId: "p1"}, true}, {&runtimeapi.ContainerFilter{Id: "c1", PodSandboxId: "p2"}, false},
		{&runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED)}, true},
		{&runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, false},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"l": "2"}}, false},
		{ContainerStatsFilter(nil), true}, {ContainerStatsFilter(&runtimeapi.ContainerStatsFilter{PodSandboxId: "p2"}), false},
	} {
		if got := ContainerMatches(f.filter, c); got != f.want {
			t.Errorf("%v: %v", f.filter, got)
		}
	}
}

func TestNodeReplies(t *testing.T) {
	handlers := RuntimeHandlers(map[string]engine.HandlerFeatures{"runc": {RecursiveReadonlyMounts: true}, "": {UserNamespaces: true}})
	if len(handlers) != 2 || handlers[0].Name != "" || !handlers[0].Features.UserNamespaces || !handlers[1].Features.RecursiveReadOnlyMounts {
		t.Errorf("handlers: %v", handlers)
	}
	wantMessage(t, RuntimeFeatures(engine.Info{Features: engine.Features{SupplementalGroupsPolicy: true, MountOptions: true}}), `{"supplementalGroupsPolicy":true,"mountOptions":true}`)
	if CgroupDriver(engine.SystemdDriver) != runtimeapi.CgroupDriver_SYSTEMD || CgroupDriver(engine.CgroupfsDriver) != runtimeapi.CgroupDriver_CGROUPFS {
		t.Error("cgroup drivers are mixed up")
	}
	cidrs := PodCIDRs(&runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.0/24, fd00::/64,"}}})
	if len(cidrs) != 2 || cidrs[1] != "fd00::/64" || PodCIDRs(nil) != nil {
		t.Errorf("pod CIDRs: %q", cidrs)
	}
	uid := int64(5)
	wantMessage(t, ImageReply(engine.Image{ID: "i", RepoTags: []string{"t"}, RepoDigests: []string{"d"}, Size: 7, UID: &uid, Pinned: true}),
		`{"id":"i","repoTags":["t"],"repoDigests":["d"],"size":"7","uid":{"value":"5"},"spec":{"image":"i"},"pinned":true}`)
	wantMessage(t, ImageReply(engine.Image{ID: "i", Username: "u"}), `{"id":"i","username":"u","spec":{"image":"i"}}`)
	wantMessage(t, ImageReply(engine.Image{ID: "i"}), `{"id":"i","uid":{},"spec":{"image":"i"}}`)
	event := EventReply(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, "c1", time.Unix(0, 9), podView(), []ContainerView{*containerView()})
	if event.ContainerId != "c1" || event.CreatedAt != 9 || event.PodSandboxStatus.Id != "p1" || event.ContainersStatuses[0].Id != "c1" {
		t.Errorf("event: %v", event)
	}
	if EventReply(0, "p1", time.Now(), nil, nil).PodSandboxStatus != nil {
		t.Error("a pod that is gone has a status")
	}
}

func TestAListEntryIsOneAllocation(t *testing.T) {
	p, c := podView(), containerView()
	if n := testing.AllocsPerRun(100, func() { PodListItem(p) }); n > 1 {
		t.Errorf("a pod takes %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { ContainerListItem(c) }); n > 1 {
		t.Errorf("a container takes %v allocations", n)
	}
}

func BenchmarkListOf500(b *testing.B) {
	p, c := podView(), containerView()
	b.ReportAllocs()
	for b.Loop() {
		for range 500 {
			if PodMatches(nil, p) {
				PodListItem(p)
			}
			if ContainerMatches(nil, c) {
				ContainerListItem(c)
			}
		}
	}
}

// The kubelet (getTerminationMessage) looks for the mount whose container_path is the very text of its annotation, or "/" and that
// where it is relative, and has no message where none is.
func TestTheTerminationMessageIsFoundWhateverItsPathLooksLike(t *testing.T) {
	for asked, mounted := range map[string]string{
		"/dev/termination-log": "/dev/termination-log", "/tmp//message": "/tmp//message", "/message/": "/message/", "./message": "/./message",
		"message": "/message",
	} {
		config := func(host string) *runtimeapi.ContainerConfig {
			cfg := containerConfig()
			cfg.Annotations = map[string]string{terminationMessagePath: asked}
			cfg.Mounts = []*runtimeapi.Mount{{HostPath: "/data", ContainerPath: "/data"}, {HostPath: host, ContainerPath: mounted}}
			return cfg
		}
		pod, err := Pod(podConfig(), "", testDefaults())
		if err != nil {
			t.Fatal(err)
		}
		spec, err := Container(pod, "0123456789abcdef", config("/host/1"), testDefaults())
		if err != nil {
			t.Fatal(err)
		}
		found := ""
		for _, m := range ContainerStatusReply(&ContainerView{Spec: spec}).Mounts {
			if m.ContainerPath == mounted {
				found = m.HostPath
			}
		}
		if found != "/host/1" {
			t.Errorf("%q: the file of the message is %q", asked, found)
		}
		if ContainerConfigHash(config("/host/1")) != ContainerConfigHash(config("/host/2")) {
			t.Errorf("%q: a repeated call is another one", asked)
		}
	}
}
