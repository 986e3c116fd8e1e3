package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// The operations of a pod's life, in their order. toRunning is from before RunPodSandbox until ContainerStatus says RUNNING,
// toGone what the stops and removals take together: a server may do in one of them what another does in the next.
const (
	opRunPod    = "RunPodSandbox"
	opCreate    = "CreateContainer"
	opStart     = "StartContainer"
	opToRunning = "pod to running"
	opExec      = "ExecSync true"
	opStop      = "StopContainer 0"
	opRemove    = "RemoveContainer"
	opStopPod   = "StopPodSandbox"
	opRemovePod = "RemovePodSandbox"
	opToGone    = "pod to gone"
)

var operations = []string{opRunPod, opCreate, opStart, opToRunning, opExec, opStop, opRemove, opStopPod, opRemovePod, opToGone}

// times are milliseconds by operation.
type times map[string]float64

// measure runs an operation and notes its time.
func (t times) measure(operation string, run func() error) error {
	start := time.Now()
	if err := run(); err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	t[operation] = ms(time.Since(start))
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// side does the work of a pod's life, once per pod, in three parts.
type side interface {
	start(t times) (pod any, err error)
	exec(pod any, t times) error
	end(pod any, t times) error
}

// criSide is a CRI server: crishim or a peer.
type criSide struct {
	b      *testing.B
	node   *harness.Node
	client *harness.Client
	// image is what containers are made of, files holds what they mount.
	image string
	files string
	// after is called after every operation, to count what it did; nil otherwise.
	after func(operation string)
}

type criPod struct {
	config         *runtimeapi.PodSandboxConfig
	pod, container string
}

// podConfig is a pod as the kubelet makes it; its cgroup and log folders are there when it returns.
func podConfig(b *testing.B, node *harness.Node) *runtimeapi.PodSandboxConfig {
	b.Helper()
	config := node.PodConfig("bench-" + harness.ID())
	node.PreparePod(b, config)
	if err := os.MkdirAll(filepath.Join(config.LogDirectory, "c"), 0o755); err != nil {
		b.Fatalf("making the container's log directory: %v", err)
	}
	return config
}

// containerConfig has limits, masked paths and a log, and mounts the two files that the kubelet mounts everywhere.
func (s *criSide) containerConfig(pod *runtimeapi.PodSandboxConfig, command ...string) *runtimeapi.ContainerConfig {
	config := (&harness.Pod{Config: pod}).ContainerConfig("c", s.image, command...)
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 999}
	for path, file := range map[string]string{"/etc/hosts": "hosts", "/dev/termination-log": "termination-log"} {
		config.Mounts = append(config.Mounts, &runtimeapi.Mount{ContainerPath: path, HostPath: filepath.Join(s.files, file)})
	}
	return config
}

// mountedFiles makes the files that all containers mount.
func mountedFiles(t harness.T) string {
	t.Helper()
	dir := harness.WorkDir(t, "f")
	for _, name := range []string{"hosts", "termination-log"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatalf("making what containers mount: %v", err)
		}
	}
	return dir
}

// call measures one CRI call.
func (s *criSide) call(t times, operation string, call func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.b.Context(), harness.Call)
	defer cancel()
	err := t.measure(operation, func() error { return call(ctx) })
	if s.after != nil {
		s.after(operation)
	}
	return err
}

func (s *criSide) start(t times) (any, error) {
	p := &criPod{config: podConfig(s.b, s.node)}
	return p, s.startConfig(t, p, s.containerConfig(p.config, "sleep", "1000000"))
}

func (s *criSide) startConfig(t times, p *criPod, container *runtimeapi.ContainerConfig) error {
	begin := time.Now()
	err := s.call(t, opRunPod, func(ctx context.Context) error {
		reply, err := s.client.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
		p.pod = reply.GetPodSandboxId()
		return err
	})
	if err != nil {
		return err
	}
	err = s.call(t, opCreate, func(ctx context.Context) error {
		reply, err := s.client.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.pod, Config: container, SandboxConfig: p.config})
		p.container = reply.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	err = s.call(t, opStart, func(ctx context.Context) error {
		_, err := s.client.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
		return err
	})
	if err != nil {
		return err
	}
	return s.awaitRunning(t, p, begin)
}

// awaitRunning polls each millisecond.
func (s *criSide) awaitRunning(t times, p *criPod, begin time.Time) error {
	for {
		ctx, cancel := context.WithTimeout(s.b.Context(), harness.Call)
		reply, err := s.client.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
		cancel()
		switch {
		case err != nil:
			return err
		case reply.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING:
			t[opToRunning] = ms(time.Since(begin))
			return nil
		case time.Since(begin) > harness.Call:
			return errors.New("the container never ran")
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *criSide) exec(pod any, t times) error {
	return s.call(t, opExec, func(ctx context.Context) error {
		reply, err := s.client.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: pod.(*criPod).container, Cmd: []string{"true"}, Timeout: 30})
		if err == nil && reply.ExitCode != 0 {
			err = fmt.Errorf("exit status %d: %s", reply.ExitCode, reply.Stderr)
		}
		return err
	})
}

func (s *criSide) end(pod any, t times) error {
	p := pod.(*criPod)
	err := s.call(t, opStop, func(ctx context.Context) error {
		_, err := s.client.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container})
		return err
	})
	if err != nil {
		return err
	}
	err = s.call(t, opRemove, func(ctx context.Context) error {
		_, err := s.client.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.container})
		return err
	})
	if err != nil {
		return err
	}
	err = s.call(t, opStopPod, func(ctx context.Context) error {
		_, err := s.client.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.pod})
		return err
	})
	if err != nil {
		return err
	}
	return s.call(t, opRemovePod, func(ctx context.Context) error {
		_, err := s.client.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.pod})
		return err
	})
}
