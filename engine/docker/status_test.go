package docker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"crishim/engine"
)

func readInspect(t *testing.T, name string) *container.InspectResponse {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var all []container.InspectResponse
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || !complete(&all[0]) {
		t.Fatalf("%s is not one complete inspect", name)
	}
	return &all[0]
}

func TestDockershimSandboxIsRead(t *testing.T) {
	in := readInspect(t, "dockershim-1.22.17-sandbox-inspect.json")
	if kind := classify(in.Config.Labels, in.Name); kind != sandbox {
		t.Fatalf("kind %v", kind)
	}
	golden(t, "status-dockershim-sandbox", podStatus(in))
}

func TestDockershimContainerIsRead(t *testing.T) {
	in := readInspect(t, "dockershim-1.22.17-container-inspect.json")
	if kind := classify(in.Config.Labels, in.Name); kind != workload {
		t.Fatalf("kind %v", kind)
	}
	golden(t, "status-dockershim-container", containerStatus(in))
}

// Rows: R48 (part)
func TestStateComesFromFields(t *testing.T) {
	const started, finished, never = "2026-11-23T11:42:07.1Z", "2026-11-23T11:43:07.1Z", "0001-01-01T00:00:00Z"
	for name, test := range map[string]struct {
		state  container.State
		want   engine.ContainerState
		reason string
		code   int32
	}{
		"created":               {container.State{StartedAt: never, FinishedAt: never}, engine.ContainerCreated, "", 0},
		"running":               {container.State{Running: true, StartedAt: started, FinishedAt: never}, engine.ContainerRunning, "", 0},
		"running again":         {container.State{Running: true, StartedAt: finished, FinishedAt: started}, engine.ContainerRunning, "", 0},
		"paused":                {container.State{Running: true, Paused: true, StartedAt: started}, engine.ContainerRunning, "", 0},
		"completed":             {container.State{StartedAt: started, FinishedAt: finished}, engine.ContainerExited, engine.ReasonCompleted, 0},
		"failed":                {container.State{ExitCode: 3, StartedAt: started, FinishedAt: finished}, engine.ContainerExited, engine.ReasonError, 3},
		"killed":                {container.State{ExitCode: 137, StartedAt: started, FinishedAt: finished}, engine.ContainerExited, engine.ReasonError, 137},
		"out of memory":         {container.State{ExitCode: 137, OOMKilled: true, StartedAt: started, FinishedAt: finished}, engine.ContainerExited, engine.ReasonOOMKilled, 137},
		"a child out of memory": {container.State{ExitCode: 0, OOMKilled: true, StartedAt: started, FinishedAt: finished}, engine.ContainerExited, engine.ReasonCompleted, 0},
		"never started":         {container.State{ExitCode: 127, Error: "no such file", StartedAt: never, FinishedAt: never}, engine.ContainerExited, engine.ReasonStartError, 127},
		"dead":                  {container.State{Dead: true, StartedAt: never, FinishedAt: never}, engine.ContainerUnknown, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			in := readInspect(t, "dockershim-1.22.17-container-inspect.json")
			in.State = &test.state
			got := containerStatus(in)
			if got.State != test.want || got.Reason != test.reason || got.ExitCode != test.code {
				t.Errorf("%s %s %d, want %s %s %d", got.State, got.Reason, got.ExitCode, test.want, test.reason, test.code)
			}
			if exited := got.State == engine.ContainerExited; exited && (got.FinishedAt.IsZero() || got.StartedAt.IsZero()) {
				t.Error("an exited container without times")
			}
		})
	}
}

// Rows: S67 (part)
func TestForeignContainersAreNotOurs(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"/web":                    {labelType: typeContainer, labelSandbox: testPod},
		"/k8s_c_p_ns_uid_0":       {labelType: typeContainer, labelSandbox: "not an id"},
		"/k8s_POD_p_ns_uid_0":     {labelType: typeContainer, labelSandbox: testPod},
		"/k8s_c_other_ns_uid_0":   {labelType: typeSandbox},
		"/k8s_c_nothing_ns_uid_0": {},
	} {
		if classify(labels, name) != foreign {
			t.Errorf("%s with %v is taken for ours", name, labels)
		}
	}
}

func TestSpecSurvivesTheRoundTrip(t *testing.T) {
	spec := fullContainer()
	body, err := lowerContainer(spec, processUser{User: "1000:2000"}, testMounts, oldEngine())
	if err != nil {
		t.Fatal(err)
	}
	in := &container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: testContainer, Name: "/" + body.Name, Image: string(testImage), Created: "2026-11-23T11:42:07.1Z",
			State: &container.State{}, HostConfig: body.HostConfig,
		},
		Config: body.Config,
	}
	got := containerSpecOf(in, spec.PodKey, spec.Key)
	for what, pair := range map[string][2]any{
		"labels":      {got.Labels, spec.Labels},
		"annotations": {got.Annotations, spec.Annotations},
		"log path":    {[]string{got.LogPath, got.LogDirectory}, []string{spec.LogPath, spec.LogDirectory}},
		"env":         {got.Env, spec.Env},
		"command":     {append(got.Command, got.Args...), append(spec.Command, spec.Args...)},
		"security":    {[]any{got.Security.CapAdd, got.Security.NoNewPrivs, got.Security.Seccomp.Type, got.Security.SELinux}, []any{spec.Security.CapAdd, true, engine.ProfileLocalhost, spec.Security.SELinux}},
		"memory":      {got.Resources.MemoryLimit, spec.Resources.MemoryLimit},
	} {
		a, _ := json.Marshal(pair[0])
		b, _ := json.Marshal(pair[1])
		if string(a) != string(b) {
			t.Errorf("%s: %s, want %s", what, a, b)
		}
	}
}

// What the containers of a pod are made by is read back of its sandbox: its record may be lost.
// Rows: R21 (part)
func TestPodSpecSurvivesTheRoundTrip(t *testing.T) {
	for _, privileged := range []bool{true, false} {
		spec := fullPod()
		spec.Security.Privileged = privileged
		body, err := lowerPod(spec, oldEngine())
		if err != nil {
			t.Fatal(err)
		}
		if body.HostConfig.Privileged {
			t.Error("the pause container is privileged")
		}
		in := &container.InspectResponse{
			ContainerJSONBase: &container.ContainerJSONBase{Name: "/" + body.Name, State: &container.State{}, HostConfig: body.HostConfig}, Config: body.Config,
		}
		got := podStatus(in)
		for what, pair := range map[string][2]any{
			"key":         {got.Key, spec.Key},
			"handler":     {got.Spec.Handler, spec.Handler},
			"labels":      {got.Spec.Labels, spec.Labels},
			"annotations": {got.Spec.Annotations, spec.Annotations},
			"cgroup":      {got.Spec.CgroupParent, spec.CgroupParent},
			"network":     {got.Spec.Namespaces.Network, spec.Namespaces.Network},
			"ipc":         {got.Spec.Namespaces.IPC, spec.Namespaces.IPC},
			"sysctls":     {got.Spec.Sysctls, spec.Sysctls},
			"privileged":  {got.Spec.Security.Privileged, privileged},
		} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Errorf("%s: %v, want %v", what, pair[0], pair[1])
			}
		}
	}
	in := readInspect(t, "dockershim-1.22.17-sandbox-inspect.json")
	in.HostConfig.Privileged = true // dockershim's own word for it
	if !podStatus(in).Spec.Security.Privileged {
		t.Error("a privileged pod of dockershim's is not")
	}
}

func TestRemovedLimitIsNone(t *testing.T) {
	none, err := lowerUpdate(&engine.Resources{}, &container.Resources{}, "", oldEngine())
	if err != nil {
		t.Fatal(err)
	}
	if got := resourcesOf(&container.HostConfig{Resources: none}); got.MemoryLimit != 0 || got.MemorySwap != 0 || got.CPUQuota != 0 {
		t.Errorf("read back as %+v", got)
	}
}

func TestUserIsReadFromProc(t *testing.T) {
	got := parseUser("Name:\tsh\nUid:\t0\t1000\t1000\t1000\nGid:\t0\t50000\t0\t0\nGroups:\t5 50000 7 \n")
	if got == nil || got.UID != 1000 || got.GID != 50000 || len(got.Groups) != 3 {
		t.Errorf("%+v", got)
	}
	if parseUser("Name: x\n") != nil {
		t.Error("a user out of nothing")
	}
}

func TestDockersYearOneIsTheZeroTime(t *testing.T) {
	if !parseTime("0001-01-01T00:00:00Z").IsZero() || !parseTime("").IsZero() || parseTime("2026-11-23T11:42:07.1Z").Equal(time.Time{}) {
		t.Error("times")
	}
}

// Rows: S67 (part)
func TestARenamedContainerOfOursStaysOurs(t *testing.T) {
	in := readInspect(t, "dockershim-1.22.17-container-inspect.json")
	pod := readInspect(t, "dockershim-1.22.17-sandbox-inspect.json")
	for _, recorded := range []bool{true, false} {
		s := &session{recorded: func(string) bool { return recorded }}
		for what, test := range map[string]struct {
			in   *container.InspectResponse
			want object
		}{"container": {in, workload}, "pod": {pod, sandbox}} {
			want := foreign
			if recorded {
				want = test.want
			}
			if kind := s.kindOf(test.in.ID, test.in.Config.Labels, "/mine"); kind != want {
				t.Errorf("renamed %s, recorded %v: kind %v, want %v", what, recorded, kind, want)
			}
		}
	}
}

// CRI's user of a container is the one that its first process began as. An entrypoint that gives up root, as those of most databases
// do, has done so by the time of the look.
func TestTheUserIsTheOneThatTheContainerBeganAs(t *testing.T) {
	dropped := &engine.User{UID: 999, GID: 998, Groups: []int64{998}}
	for _, c := range []struct {
		user       string
		seen, want *engine.User
	}{
		{"1000:1001", dropped, &engine.User{UID: 1000, GID: 1001, Groups: []int64{5, 1001}}},
		{"999:998", &engine.User{UID: 999, GID: 998, Groups: []int64{7, 998}}, &engine.User{UID: 999, GID: 998, Groups: []int64{7, 998}}},
		{"0", dropped, nil}, // its groups are in the image
		{"0", &engine.User{Groups: []int64{0, 5}}, &engine.User{Groups: []int64{0, 5}}},
		{"redis", dropped, dropped}, // another shim's
		{"", dropped, dropped},
		{"0", nil, nil},
	} {
		in := &container.InspectResponse{
			ContainerJSONBase: &container.ContainerJSONBase{HostConfig: &container.HostConfig{GroupAdd: []string{"5", "audio"}}},
			Config:            &container.Config{User: c.user},
		}
		if got := beganAs(in, c.seen); !reflect.DeepEqual(got, c.want) {
			t.Errorf("asked for %q, seen %+v: %+v, want %+v", c.user, c.seen, got, c.want)
		}
	}
}
