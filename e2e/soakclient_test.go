package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

type soakClient struct {
	*soak
	random *rand.Rand
}

// soakContainer is what all clients know of one container. Its state never goes back.
type soakContainer struct {
	id, pod, log string

	mu    sync.Mutex
	least runtimeapi.ContainerState // proven by a finished call: CREATED < RUNNING < EXITED
	gone  bool                      // removed
}

func (c *soakContainer) known() (runtimeapi.ContainerState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.least, c.gone
}

func (c *soakContainer) reached(state runtimeapi.ContainerState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.least = max(c.least, state)
}

// onePod runs a pod with two containers, does random things to them and to others', and removes the pod whatever happened.
func (s *soakClient) onePod() {
	config := s.n.PodConfig("soak-" + harness.ID())
	inDockersCgroup(s.n)(config)
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		s.t.Error(err)
		return
	}
	defer os.RemoveAll(config.LogDirectory)
	defer s.endAll(config.Labels["app"])
	r := s.n.Shim.Runtime
	var pod string
	if s.call("RunPodSandbox", 2*time.Minute, func(c context.Context) error {
		reply, err := r.RunPodSandbox(c, &runtimeapi.RunPodSandboxRequest{Config: config})
		pod = reply.GetPodSandboxId()
		return err
	}) != nil {
		return
	}
	var mine []*soakContainer
	for i := range 2 {
		template := (&harness.Pod{ID: pod, Config: config}).ContainerConfig(fmt.Sprintf("c%d", i), s.image, "/bin/testserver", "log", "50")
		template.LogPath = fmt.Sprintf("c%d.log", i)
		if err := s.call("CreateContainer", time.Minute, func(c context.Context) error {
			reply, err := r.CreateContainer(c, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: template, SandboxConfig: config})
			if err == nil {
				made := &soakContainer{id: reply.ContainerId, pod: pod, log: filepath.Join(config.LogDirectory, template.LogPath)}
				mine = append(mine, made)
				s.containers.Store(made.id, made)
			}
			return err
		}); err != nil {
			break
		}
	}
	defer func() {
		for _, c := range mine {
			s.containers.Delete(c.id)
		}
	}()
	for range 12 {
		if len(mine) == 0 || !time.Now().Before(s.end) {
			return
		}
		c := mine[s.random.IntN(len(mine))]
		if s.random.IntN(4) == 0 {
			s.containers.Range(func(_, other any) bool { // any one: the order of a sync.Map is not kept
				c = other.(*soakContainer)
				return s.random.IntN(3) != 0
			})
		}
		s.act(c)
	}
}

// endAll stops and removes the pods of a name, also one whose id nobody was told. While something is broken it goes on trying;
// once all is whole, three tries have to do.
func (s *soakClient) endAll(app string) {
	filter := &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": app}}
	for began, calm := time.Now(), 0; ; {
		disturbed := s.disturbed()
		err := s.endOnce(filter)
		if err == nil {
			return
		}
		if !disturbed && !s.disturbed() {
			calm++
		}
		if calm >= 3 || time.Since(began) > 5*time.Minute {
			s.t.Errorf("pod %s cannot be removed after %v: %v", app, time.Since(began).Round(time.Second), err)
			return
		}
		time.Sleep(time.Second)
	}
}

func (s *soakClient) endOnce(filter *runtimeapi.PodSandboxFilter) error {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := s.n.Shim.Runtime.ListPodSandbox(c, &runtimeapi.ListPodSandboxRequest{Filter: filter})
	for _, pod := range list.GetItems() {
		err = errors.Join(err, s.n.End(pod.Id, 1))
	}
	s.ops.Add(1)
	return err
}

// act does one random thing.
func (s *soakClient) act(c *soakContainer) {
	r, id := s.n.Shim.Runtime, c.id
	const notRunning, absent = codes.FailedPrecondition, codes.NotFound
	switch s.random.IntN(16) {
	case 0, 1, 2:
		_ = s.call("StartContainer", time.Minute, func(x context.Context) error {
			_, err := r.StartContainer(x, &runtimeapi.StartContainerRequest{ContainerId: id})
			if err == nil {
				c.reached(runtimeapi.ContainerState_CONTAINER_RUNNING)
			}
			return err
		}, notRunning, absent)
	case 3:
		ran, _ := c.known()
		_ = s.call("StopContainer", time.Minute, func(x context.Context) error {
			_, err := r.StopContainer(x, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(s.random.IntN(2))})
			if err == nil && ran >= runtimeapi.ContainerState_CONTAINER_RUNNING {
				c.reached(runtimeapi.ContainerState_CONTAINER_EXITED)
			}
			return err
		})
	case 4:
		_ = s.call("RemoveContainer", time.Minute, func(x context.Context) error {
			_, err := r.RemoveContainer(x, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			if err == nil {
				c.mu.Lock()
				c.gone = true
				c.mu.Unlock()
			}
			return err
		})
	case 5, 6, 7:
		s.status(c)
	case 8:
		_ = s.call("ExecSync", time.Minute, func(x context.Context) error {
			_, err := r.ExecSync(x, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 50})
			return err
		}, notRunning, absent)
	case 9:
		_ = s.call("ReopenContainerLog", 20*time.Second, func(x context.Context) error {
			_ = os.Rename(c.log, c.log+".1") // there is none before the start
			_, err := r.ReopenContainerLog(x, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		}, notRunning, absent)
	case 10:
		_ = s.call("ContainerStats", 20*time.Second, func(x context.Context) error {
			_, err := r.ContainerStats(x, &runtimeapi.ContainerStatsRequest{ContainerId: id})
			return err
		}, notRunning, absent)
	case 11:
		_ = s.call("ListPodSandboxStats", 20*time.Second, func(x context.Context) error {
			_, err := r.ListPodSandboxStats(x, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		})
	case 12:
		s.pullAndRemove()
	case 13, 14:
		s.vanish(c)
	case 15:
		// A subscriber that never reads, and one that leaves in the middle of a call.
		x, cancel := context.WithTimeout(context.Background(), time.Duration(s.random.IntN(300))*time.Millisecond)
		defer cancel()
		_, _ = r.GetContainerEvents(x, &runtimeapi.GetEventsRequest{})
		_, _ = r.ExecSync(x, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "60"}})
	}
}

// status checks that the container's state is not one that it had left before the call.
func (s *soakClient) status(c *soakContainer) {
	least, gone := c.known()
	var reply *runtimeapi.ContainerStatusResponse
	var absent bool
	err := s.call("ContainerStatus", 20*time.Second, func(x context.Context) (err error) {
		reply, err = s.n.Shim.Runtime.ContainerStatus(x, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		absent = harness.Code(err) == codes.NotFound
		return err
	}, codes.NotFound)
	if err != nil || absent {
		return
	}
	state := reply.Status.State
	switch {
	case gone:
		s.t.Errorf("container %s is %s, and was removed before", c.id, state)
	case state < least:
		s.t.Errorf("container %s is %s, and was %s before", c.id, state, least)
	case state != runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		c.reached(state)
	}
}

// pullAndRemove pulls or removes an image that no container has.
func (s *soakClient) pullAndRemove() {
	image := &runtimeapi.ImageSpec{Image: s.n.Registry.Ref(harness.Small)}
	_ = s.call("PullImage", time.Minute, func(x context.Context) error {
		_, err := s.n.Shim.Images.PullImage(x, &runtimeapi.PullImageRequest{Image: image})
		return err
	})
	_ = s.call("RemoveImage", time.Minute, func(x context.Context) error {
		_, err := s.n.Shim.Images.RemoveImage(x, &runtimeapi.RemoveImageRequest{Image: image})
		return err
	})
}

// vanish opens a stream and drops it in the middle: an exec that floods, an attach, a port-forward, or only the connection.
func (s *soakClient) vanish(c *soakContainer) {
	r := s.n.Shim.Runtime
	var address string
	kind := s.random.IntN(4)
	var absent bool
	err := s.call("asking for a stream", 20*time.Second, func(x context.Context) error {
		var err error
		switch kind {
		case 0, 1:
			var reply *runtimeapi.ExecResponse
			reply, err = r.Exec(x, &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"/bin/testserver", "log", "0"}, Stdout: true})
			address = reply.GetUrl()
		case 2:
			var reply *runtimeapi.AttachResponse
			reply, err = r.Attach(x, &runtimeapi.AttachRequest{ContainerId: c.id, Stdout: true})
			address = reply.GetUrl()
		case 3:
			var reply *runtimeapi.PortForwardResponse
			reply, err = r.PortForward(x, &runtimeapi.PortForwardRequest{PodSandboxId: c.pod})
			address = reply.GetUrl()
		}
		absent = address == ""
		return err
	}, codes.FailedPrecondition, codes.NotFound)
	if err != nil || absent {
		return
	}
	x, cancel := context.WithTimeout(context.Background(), time.Duration(s.random.IntN(400))*time.Millisecond)
	defer cancel()
	switch kind {
	case 0, 2:
		_ = harness.StreamSPDY(x, address, harness.Streams{Stdout: io.Discard}) // ends by the time, whatever it says
	case 1:
		if u, err := url.Parse(address); err == nil {
			if conn, err := net.Dial("tcp", u.Host); err == nil {
				_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", u.RequestURI(), u.Host)
				<-x.Done() // reads nothing
				_ = conn.Close()
			}
		}
	case 3:
		if f, err := harness.ForwardSPDY(address, 80); err == nil { // nobody listens there
			<-x.Done()
			f.End()
		}
	}
}
