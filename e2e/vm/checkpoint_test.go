package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// count tells in /tmp/n and in its output how far it is; it changes its root in between, and so never counts from 1 again.
const count = `n=0; rm /bin/dd; echo was here >/etc/new; while :; do n=$((n+1)); echo $n >/tmp/t; mv /tmp/t /tmp/n 2>/dev/null || cat /tmp/t >/tmp/n; echo n=$n; sleep 0.2; done`

// mounted gives a container what the kubelet mounts into each: a file of hosts that cannot be written, and one for its last words.
// The files are another pod's each time.
func mounted(t *testing.T, config *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	t.Helper()
	dir := t.TempDir()
	hosts, words := filepath.Join(dir, "hosts"), filepath.Join(dir, "words")
	if err := errors.Join(os.WriteFile(hosts, []byte(dir), 0o644), os.WriteFile(words, nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: hosts, Readonly: true}, {ContainerPath: "/dev/termination-log", HostPath: words}}
	return config
}

// checkMounts checks that the files of a container are those of its config.
func (h *host) checkMounts(t *testing.T, id string, config *runtimeapi.ContainerConfig) {
	t.Helper()
	hosts, words := config.Mounts[0].HostPath, config.Mounts[1].HostPath
	if out, _ := h.exec(t, id, "cat /etc/hosts"); out != filepath.Dir(hosts) {
		t.Errorf("its /etc/hosts has %q", out)
	}
	if out, code := h.exec(t, id, "echo x >/etc/hosts"); code == 0 || !strings.Contains(out, "Read-only file system") {
		t.Errorf("its /etc/hosts can be written: %q, %d", out, code)
	}
	if out, code := h.exec(t, id, "echo bye >/dev/termination-log"); code != 0 || read(t, words) != "bye" {
		t.Errorf("its last words: %q, %d, %q", out, code, read(t, words))
	}
}

// counted is how far the container is, which counts on.
func (h *host) counted(t *testing.T, id string, more int) int {
	t.Helper()
	now := 0
	eventually(t, fmt.Sprintf("a count above %d", more), func() error {
		out, _ := h.exec(t, id, "cat /tmp/n")
		n, err := strconv.Atoi(out)
		if now = n; err != nil || n <= more {
			return fmt.Errorf("it is %q", out)
		}
		return nil
	})
	return now
}

// goesOn checks a container that was restored from one which had counted to n.
func (p *pod) goesOn(t *testing.T, id string, n int, config *runtimeapi.ContainerConfig) {
	t.Helper()
	p.checkMounts(t, id, config)
	now := p.counted(t, id, p.counted(t, id, n)) // the first that is seen may have been printed before the checkpoint
	if out, code := p.exec(t, id, "cat /etc/new; test ! -e /bin/dd"); out != "was here" || code != 0 {
		t.Errorf("its files: %q, %d", out, code)
	}
	if out, _ := p.exec(t, id, "cat /proc/1/attr/current"); out != "crishim-default (enforce)" {
		t.Errorf("it runs in %q", out)
	}
	eventually(t, "output in its log", func() error {
		log, err := os.ReadFile(filepath.Join(p.config.LogDirectory, p.status(t, id).Metadata.Name+".log"))
		if err == nil && (!strings.Contains(string(log), fmt.Sprintf(" stdout F n=%d\n", now)) || strings.Contains(string(log), " n=1\n")) {
			err = fmt.Errorf("the log has %.200q", log)
		}
		return err
	})
	if _, err := p.StopContainer(within(t), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if st := p.status(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("%v, %d", st.State, st.ExitCode)
	}
}

func TestAContainerGoesOnFromItsCheckpoint(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmcheckpoint.slice")
	config := mounted(t, p.container("c", nil, "sh", "-c", count))
	id, err := p.startAs(t, config)
	if err != nil {
		t.Fatal(err)
	}
	n := h.counted(t, id, 3)
	archive := filepath.Join(t.TempDir(), "c.tar")
	if _, err := h.CheckpointContainer(within(t), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive}); err != nil {
		t.Fatal(err)
	}
	h.counted(t, id, h.counted(t, id, n)) // it runs on
	h.checkMounts(t, id, config)
	content, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(archive)); err != nil || len(left) != 1 {
		t.Errorf("beside the archive: %v, %v", left, err)
	}
	image := h.pull(t, "checkpoint:1", content, map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "c"})
	for name, from := range map[string]string{"archive": archive, "image": image} {
		t.Run(name, func(t *testing.T) {
			p := h.pod(t, "vmrestore.slice")
			config := mounted(t, p.container("r", nil))
			config.Image.Image = from
			id, err := p.startAs(t, config)
			if err != nil {
				t.Fatal(err)
			}
			p.goesOn(t, id, n, config)
		})
	}
}

func TestAPodGoesOnFromItsCheckpoint(t *testing.T) {
	h := onNode(t)
	p := h.pod(t, "vmpodcheckpoint.slice")
	var ids []string
	var configs []*runtimeapi.ContainerConfig
	for _, name := range []string{"a", "b"} {
		config := mounted(t, p.container(name, nil, "sh", "-c", count))
		id, err := p.startAs(t, config)
		if err != nil {
			t.Fatal(err)
		}
		ids, configs = append(ids, id), append(configs, config)
	}
	before := []int{h.counted(t, ids[0], 3), h.counted(t, ids[1], 3)}
	dir := t.TempDir()
	ask := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, ContainerIds: ids}
	for name, wrong := range map[string]*runtimeapi.CheckpointPodRequest{
		"no container":      {PodSandboxId: p.id, OutputPath: dir},
		"a container twice": {PodSandboxId: p.id, OutputPath: dir, ContainerIds: []string{ids[0], ids[0]}},
		"an option":         {PodSandboxId: p.id, OutputPath: dir, ContainerIds: ids, Options: map[string]string{"a": "b"}},
		"a full folder":     {PodSandboxId: p.id, OutputPath: "/etc", ContainerIds: ids},
	} {
		if _, err := h.CheckpointPod(within(t), wrong); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.CheckpointPod(within(t), ask); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		h.counted(t, id, h.counted(t, id, before[i])) // all run on
	}
	for _, config := range configs {
		mounted(t, config)
	}
	restore := &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: podConfig(t, "vmpodrestore.slice"), ContainerConfigs: configs}
	for name, wrong := range map[string]struct {
		configs []*runtimeapi.ContainerConfig
		code    codes.Code
	}{
		"a container less":  {configs[:1], codes.InvalidArgument},
		"another command":   {[]*runtimeapi.ContainerConfig{configs[0], p.container("b", nil, "sh", "-c", "true")}, codes.FailedPrecondition},
		"another name":      {[]*runtimeapi.ContainerConfig{configs[0], p.container("z", nil, "sh", "-c", count)}, codes.InvalidArgument},
		"no container here": {nil, codes.InvalidArgument},
	} {
		_, err := h.RestorePod(within(t), &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: restore.Config, ContainerConfigs: wrong.configs})
		if status.Code(err) != wrong.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	restored, err := h.RestorePod(within(t), restore)
	if err != nil {
		t.Fatal(err)
	}
	r := &pod{host: h, id: restored.PodSandboxId, config: restore.Config}
	r.removeAtEnd(t)
	if len(restored.RestoredContainers) != 2 {
		t.Fatalf("%v", restored)
	}
	for i, c := range restored.RestoredContainers {
		if st := h.status(t, c.ContainerId); st.State != runtimeapi.ContainerState_CONTAINER_CREATED || c.Name != configs[i].Metadata.Name {
			t.Errorf("%s is %v", c.Name, st.State)
		}
		if _, err := h.StartContainer(within(t), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			t.Fatal(err)
		}
		r.goesOn(t, c.ContainerId, before[i], configs[i])
	}
	if pods, err := h.ListPodSandbox(within(t), &runtimeapi.ListPodSandboxRequest{}); err != nil || len(pods.Items) != 2 {
		t.Errorf("%d pods, %v", len(pods.GetItems()), err)
	}
}
