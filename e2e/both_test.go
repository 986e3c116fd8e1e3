package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// A Docker Engine and the native engine in one daemon: a node moves from one to the other pod by pod, without a drain and
// without a registry; then the Docker Engine is taken away and nothing native notices.
func TestBothEngines(t *testing.T) {
	harness.Require(t)
	harness.AboutDocker(t)
	n := harness.NewNode(t, harness.DockerOptions{}, harness.ShimOptions{Both: true})
	b := &bothEngines{T: t, n: n, image: n.Pull(t, harness.Web)}
	n.Pull(t, harness.Busybox)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", n.Shim.LogTail())
		}
	})
	b.handlers()
	b.moveOneByOne()
	b.withoutDocker()
	b.defaultSwitched()
	b.wholeStore()
	b.archives()
}

type bothEngines struct {
	*testing.T
	n     *harness.Node
	image string
	// moved are on the native engine.
	moved []*bothPod
}

type bothPod struct {
	*harness.Pod
	c       *harness.Container
	address string
}

// run runs a pod with a server on the engine of a runtime handler.
func (b *bothEngines) run(name, handler, engine string) *bothPod {
	b.Helper()
	pod := b.n.RunPodConfig(b, b.n.PodConfig(name), handler)
	p := &bothPod{Pod: pod, c: pod.Run("web", b.image, nil), address: pod.IP() + ":80"}
	if body := httpGet(b.T, p.address); body != "host="+name+" path=/\n" {
		b.Errorf("pod %s says %q", name, body)
	}
	b.wantEngine(p, engine)
	return p
}

// wantEngine: the record names the engine, which has the pod, and the other has not.
func (b *bothEngines) wantEngine(p *bothPod, engine string) {
	b.Helper()
	reply, err := b.n.Shim.Runtime.PodSandboxStatus(ctx(b.T), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if err != nil || !strings.Contains(reply.Info["info"], fmt.Sprintf("%q:%q", "engine", engine)) {
		b.Errorf("pod %s is not on engine %s: %s, %v", p.Config.Metadata.Name, engine, reply.GetInfo(), err)
	}
	if docker := engine == "docker"; b.n.Docker.Running() && (len(b.n.ObjectsOfPod(b, p.Config.Metadata.Uid)) > 0) != docker {
		b.Errorf("Docker has of pod %s: %v", p.Config.Metadata.Name, b.n.ObjectsOfPod(b, p.Config.Metadata.Uid))
	}
}

func (b *bothEngines) handlers() {
	reply, err := b.n.Shim.Runtime.Status(ctx(b.T), &runtimeapi.StatusRequest{})
	if err != nil {
		b.Fatal(err)
	}
	known := map[string]bool{}
	for _, h := range reply.RuntimeHandlers {
		known[h.Name] = true
	}
	for _, want := range []string{"", "docker", "native", "runc"} { // runc is Docker's
		if !known[want] {
			b.Errorf("runtime handler %q is not told: %v", want, reply.RuntimeHandlers)
		}
	}
	_, err = b.n.Shim.Runtime.RunPodSandbox(ctx(b.T), &runtimeapi.RunPodSandboxRequest{Config: b.n.PodConfig("unknown"), RuntimeHandler: "unknown"})
	wantCode(b.T, "an unknown handler", err, codes.InvalidArgument)
}

// moveOneByOne: what a Deployment does when its RuntimeClass changes, under requests to every pod all the time.
func (b *bothEngines) moveOneByOne() {
	const replicas = 3
	old := make([]*bothPod, replicas)
	serving := make([]atomic.Pointer[string], replicas)
	for i := range old {
		old[i] = b.run(fmt.Sprintf("web-%d", i), "", "docker")
		serving[i].Store(&old[i].address)
	}
	var asked, failed atomic.Int64
	var underWay [replicas]sync.RWMutex // held for reading by a request
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range serving {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				asked.Add(1)
				underWay[i].RLock()
				_, err := tryGet(*serving[i].Load())
				underWay[i].RUnlock()
				if err != nil {
					failed.Add(1)
					b.Logf("a request failed: %v", err)
				}
			}
		})
	}
	pulls := len(b.n.Registry.Requests())
	for i := range old {
		moved := b.run(fmt.Sprintf("web-%d", i), "native", "native")
		underWay[i].Lock() // requests under way to the old one end
		serving[i].Store(&moved.address)
		underWay[i].Unlock()
		b.spans(old[i], moved)
		old[i].Remove()
		b.moved = append(b.moved, moved)
	}
	close(stop)
	clients.Wait()
	if failed.Load() > 0 || asked.Load() < 10 {
		b.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	if now := b.n.Registry.Requests(); len(now) > pulls {
		b.Errorf("the registry was asked: %v", now[pulls:])
	}
	if log := b.n.Shim.LogFrom(0); !strings.Contains(log, "An image was carried to another engine") {
		b.Error("the log does not tell of the image that was carried")
	}
}

// spans: lists, statistics, images and exec are of both engines.
func (b *bothEngines) spans(pods ...*bothPod) {
	b.Helper()
	listed, err := b.n.Shim.Runtime.ListPodSandbox(ctx(b.T), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		b.Fatal(err)
	}
	stats, err := b.n.Shim.Runtime.ListContainerStats(ctx(b.T), &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range pods {
		found := false
		for _, item := range listed.Items {
			found = found || item.Id == p.ID && item.State == runtimeapi.PodSandboxState_SANDBOX_READY
		}
		if !found {
			b.Errorf("pod %s is not listed as ready", p.ID)
		}
		found = false
		for _, s := range stats.Stats {
			found = found || s.Attributes.Id == p.c.ID && s.Memory.GetWorkingSetBytes().GetValue() > 0
		}
		if !found {
			b.Errorf("container %s has no statistics", p.c.ID)
		}
		if reply := p.c.Exec("/bin/testserver", "identity"); reply.ExitCode != 0 {
			b.Errorf("exec: %s", reply.Stderr)
		}
	}
	images, err := b.n.Shim.Images.ListImages(ctx(b.T), &runtimeapi.ListImagesRequest{})
	if err != nil {
		b.Fatal(err)
	}
	times := 0
	for _, image := range images.Images {
		if strings.Contains(strings.Join(image.RepoTags, " "), b.image) {
			times++
			if p := pods[len(pods)-1]; p.c.Status().ImageId != image.Id {
				b.Errorf("the container's image is %s, the listed one %s", p.c.Status().ImageId, image.Id)
			}
		}
	}
	if times != 1 {
		b.Errorf("the image, which both engines have, is listed %d times", times)
	}
	_, err = b.n.Shim.Images.RemoveImage(ctx(b.T), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: b.image}})
	wantCode(b.T, "the removal of an image in use", err, codes.FailedPrecondition)
	harness.Eventually(b, time.Minute, "the usage of both engines' file systems", func() error {
		reply, err := b.n.Shim.Images.ImageFsInfo(ctx(b.T), &runtimeapi.ImageFsInfoRequest{})
		if err == nil && (len(reply.ImageFilesystems) != 2 || len(reply.ContainerFilesystems) != 2) {
			err = fmt.Errorf("%v", reply)
		}
		return err
	})
}

// withoutDocker: the Docker Engine ends, with its pods; the native ones are served by the same daemon, and by one that
// is started meanwhile.
func (b *bothEngines) withoutDocker() {
	lost := b.run("lost", "docker", "docker")
	pids := map[*bothPod]int{}
	for _, p := range b.moved {
		pids[p] = b.pid(p)
	}
	b.n.Docker.Stop()
	check := func(when string) {
		b.Helper()
		harness.Eventually(b, 30*time.Second, "the pod of the engine that is away "+when, func() error {
			reply, err := b.n.Shim.Runtime.ListPodSandbox(ctx(b.T), &runtimeapi.ListPodSandboxRequest{})
			if err != nil {
				return err
			}
			for _, item := range reply.Items {
				if want := item.Id != lost.ID; want != (item.State == runtimeapi.PodSandboxState_SANDBOX_READY) {
					return fmt.Errorf("pod %s is %v", item.Metadata.Name, item.State)
				}
			}
			if len(reply.Items) != len(b.moved)+1 {
				return fmt.Errorf("%d pods", len(reply.Items))
			}
			return b.dockerIsAway()
		})
		if status := lost.c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_UNKNOWN && status.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			b.Errorf("its container is %v", status)
		}
		for _, p := range b.moved {
			httpGet(b.T, p.address)
			if pid := b.pid(p); pid != pids[p] {
				b.Errorf("the native container's process was %d and is %d", pids[p], pid)
			}
			if reply := p.c.Exec("/bin/testserver", "identity"); reply.ExitCode != 0 {
				b.Errorf("exec: %s", reply.Stderr)
			}
		}
		_, err := b.n.Shim.Runtime.RunPodSandbox(ctx(b.T), &runtimeapi.RunPodSandboxRequest{Config: b.n.PodConfig("refused"), RuntimeHandler: "docker"})
		wantCode(b.T, "a pod for the engine that is away", err, codes.Unavailable)
		b.run("meanwhile", "native", "native").Remove()
	}
	check("in the same daemon")
	b.n.Shim.Stop()
	b.n.Shim.StartWithoutWaiting()
	check("in another daemon")
	b.n.Docker.Start()
	harness.Eventually(b, time.Minute, "the Docker Engine to be back", func() error {
		if err := b.dockerIsAway(); err == nil {
			return errors.New("it is still away")
		}
		if state := lost.c.Status().State; state != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("the container that ended with it is %v", state)
		}
		return nil
	})
	lost.Remove()
}

// pid is the host's number of the first process of a container on the native engine.
func (b *bothEngines) pid(p *bothPod) int {
	b.Helper()
	reply, err := b.n.Shim.Runtime.ContainerStatus(ctx(b.T), &runtimeapi.ContainerStatusRequest{ContainerId: p.c.ID, Verbose: true})
	if err != nil {
		b.Fatal(err)
	}
	var pid int
	_, rest, _ := strings.Cut(reply.Info["info"], `"pid":`)
	if _, err := fmt.Sscan(strings.SplitN(rest, ",", 2)[0], &pid); err != nil || pid == 0 {
		b.Errorf("no process of %s in %s", p.c.ID, reply.Info["info"])
	}
	return pid
}

// dockerIsAway: the node stays ready, with the reason.
func (b *bothEngines) dockerIsAway() error {
	reply, err := b.n.Shim.Runtime.Status(ctx(b.T), &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range reply.Status.Conditions {
		switch {
		case c.Type == runtimeapi.RuntimeReady && (!c.Status || !strings.Contains(c.Message, "engine docker is not ready")):
			return fmt.Errorf("%v", c)
		case c.Type == "EngineReady/docker" && c.Status, c.Type == "EngineReady/native" && !c.Status:
			return fmt.Errorf("%v", c)
		}
	}
	return nil
}

// defaultSwitched: new pods go to the other engine, and those on the old one go on until they end, also once it is not in
// the configuration any more.
func (b *bothEngines) defaultSwitched() {
	stays := b.run("stays", "", "docker")
	for _, engines := range [][]string{{"docker", "native"}, {}} {
		b.n.Shim.Reconfigure(map[string]any{"engine": "native", "engines": engines})
		b.n.Shim.Restart()
		httpGet(b.T, stays.address)
		b.wantEngine(stays, "docker")
		stays.c.Exec("/bin/testserver", "identity")
		b.run("new", "", "native").Remove()
	}
	_, err := b.n.Shim.Runtime.RunPodSandbox(ctx(b.T), &runtimeapi.RunPodSandboxRequest{Config: b.n.PodConfig("refused"), RuntimeHandler: "docker"})
	wantCode(b.T, "a new pod for the engine that only serves what it has", err, codes.InvalidArgument)
	stays.Remove()
	b.n.Shim.Restart()
	if log := b.n.Shim.Get("/metrics"); strings.Contains(log, `crishim_engine_ready{engine="docker"}`) {
		b.Error("the Docker Engine is still on although nothing is on it")
	}
}

// wholeStore: what is left in Docker's store is carried over at once, twice, and back, by a running daemon and without one.
func (b *bothEngines) wholeStore() {
	b.n.Shim.Reconfigure(map[string]any{"engine": "docker", "engines": []string{"docker", "native"}})
	b.n.Shim.Restart()
	images := func(want string, args ...string) {
		b.Helper()
		out, code := b.n.Shim.Command(append([]string{"images"}, append(args, "--config", b.n.Shim.ConfigFile)...)...)
		if code != 0 || !strings.Contains(out, want) {
			b.Errorf("crishim images %v: status %d, no %q in:\n%s", args, code, want, out)
		}
	}
	toNative, toDocker := []string{"--from", "docker", "--to", "native"}, []string{"--from", "native", "--to", "docker"}
	images("images are on engine native", append([]string{"copy"}, toNative...)...)
	images("(kept: ", append([]string{"move", b.image}, toDocker...)...) // its pods use it
	for _, p := range b.moved {
		httpGet(b.T, p.address)
		p.Remove()
	}
	b.n.Shim.Stop()
	images("images are on engine native", append([]string{"copy"}, toNative...)...)
	images("1 of 1 images are on engine native, ", append([]string{"move", b.image}, toNative...)...)
	images(b.image, "ls")
	images("1 of 1 images are on engine docker, ", append([]string{"move", b.image}, toDocker...)...)
	if _, code := b.n.Shim.Command("images", "ls", b.image, "--config", b.n.Shim.ConfigFile); code == 0 {
		b.Error("the image that was moved is still in the native store")
	}
	b.n.Shim.Start()
	b.run("back", "native", "native").Remove()
}
