package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// R12: many callers at once, each with pods of its own and now and then with another's. No call takes long, no call fails in a
// way that is not in the contract, and in the end everything is gone. E2E_SOAK is the time (`make soak`), 5s without it.
//
// Rows: R12 (part), R45 (part)
func TestSoak(t *testing.T) {
	n := node(t)
	length := 5 * time.Second
	if text := os.Getenv("E2E_SOAK"); text != "" {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("E2E_SOAK: %v", err)
		}
		length = parsed
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	end := time.Now().Add(length)
	var ids sync.Map
	var clients sync.WaitGroup
	for i := range 4 {
		client := &soakClient{n: n, ids: &ids, random: rand.New(rand.NewPCG(seed, uint64(i))), image: n.Registry.Ref(harness.Busybox)}
		clients.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				if err := client.onePod(t); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			}
		})
	}
	clients.Wait()
}

type soakClient struct {
	n      *harness.Node
	ids    *sync.Map // container id → true, of all clients
	random *rand.Rand
	image  string
}

// onePod runs a pod, does random things to it and to others' containers, and removes it.
func (s *soakClient) onePod(t *testing.T) error {
	c, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	config := s.n.PodConfig("soak-" + harness.ID())
	config.Linux.CgroupParent = s.n.Docker.CgroupParent // no folder per pod that grows over hours
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(config.LogDirectory)
	reply, err := s.n.Shim.Runtime.RunPodSandbox(c, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	pod := reply.PodSandboxId
	template := (&harness.Pod{ID: pod, Config: config}).ContainerConfig("c", s.image, forever...)
	template.LogPath = "c.log"
	created, err := s.n.Shim.Runtime.CreateContainer(c, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: template, SandboxConfig: config})
	if err == nil {
		s.ids.Store(created.ContainerId, true)
		defer s.ids.Delete(created.ContainerId)
		for range 10 {
			if actErr := s.act(c, created.ContainerId); actErr != nil {
				err = errors.Join(err, actErr)
			}
			s.ids.Range(func(key, _ any) bool { // any one: the order of a sync.Map is not kept
				_, statusErr := s.n.Shim.Runtime.ContainerStatus(c, &runtimeapi.ContainerStatusRequest{ContainerId: key.(string)})
				err = errors.Join(err, unexpected(statusErr, codes.NotFound))
				return false
			})
		}
	}
	_, stopErr := s.n.Shim.Runtime.StopPodSandbox(c, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	_, removeErr := s.n.Shim.Runtime.RemovePodSandbox(c, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
	return errors.Join(err, stopErr, removeErr)
}

func (s *soakClient) act(c context.Context, id string) error {
	r := s.n.Shim.Runtime
	var err error
	switch s.random.IntN(8) {
	case 0, 1:
		_, err = r.StartContainer(c, &runtimeapi.StartContainerRequest{ContainerId: id})
	case 2:
		_, err = r.StopContainer(c, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
	case 3:
		_, err = r.ExecSync(c, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 20})
	case 4:
		_, err = r.ListContainers(c, &runtimeapi.ListContainersRequest{})
	case 5:
		_, err = r.ContainerStats(c, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	case 6:
		_, err = r.ReopenContainerLog(c, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	case 7:
		_, err = r.ListPodSandboxStats(c, &runtimeapi.ListPodSandboxStatsRequest{})
	}
	return unexpected(unexpected(err, codes.FailedPrecondition), codes.NotFound) // not running: nothing to start, or to read figures of
}

// unexpected lets an error of the given code pass.
func unexpected(err error, expected codes.Code) error {
	if harness.Code(err) == expected {
		return nil
	}
	return err
}
