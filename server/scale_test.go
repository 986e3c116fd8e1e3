package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// R42's size.
const (
	manyPods = 500
	eachHas  = 3
)

// fill has the engine tell of R42's pods and containers.
func (f *fixture) fill() {
	// Nobody is to adopt what the engine does not have.
	f.server.found.mu.Lock()
	delete(f.server.found.open, f.engine.Name())
	f.server.found.mu.Unlock()
	sink := f.store.Sink(f.engine.Name())
	now := time.Now()
	for p := range manyPods {
		key := engine.PodKey{Name: fmt.Sprintf("p%d", p), Namespace: "default", UID: fmt.Sprintf("uid-%d", p)}
		pod := engine.PodID(fmt.Sprintf("%064x", p+1))
		sink.PodChanged(engine.PodStatus{ID: pod, Key: key, State: engine.PodReady, CreatedAt: now, StartedAt: now,
			Spec: &engine.PodSpec{Key: key, Labels: map[string]string{"app": key.Name}, Annotations: map[string]string{"a": "b"}}})
		for c := range eachHas {
			sink.ContainerChanged(engine.ContainerStatus{
				ID: engine.ContainerID(fmt.Sprintf("%064x", 1<<20+p*eachHas+c)), Pod: pod, PodKey: key, Key: engine.ContainerKey{Name: fmt.Sprintf("c%d", c)},
				State: engine.ContainerRunning, CreatedAt: now, StartedAt: now, Spec: &engine.ContainerSpec{Labels: map[string]string{"app": key.Name}}})
		}
	}
}

// R42: what the kubelet asks each second is answered from the index, and the engine is not asked. That it takes milliseconds
// is for BenchmarkR42, on a machine that does nothing else.
func TestR42ListsOfManyPodsAskTheEngineNothing(t *testing.T) {
	f := newFixture(t)
	f.fill()
	before := f.engine.AllCalls()
	one := fmt.Sprintf("%064x", 1<<20)
	for name, call := range map[string]func() (int, error){
		"ListPodSandbox": func() (int, error) {
			reply, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			return len(reply.GetItems()) - manyPods, err
		},
		"ListContainers": func() (int, error) {
			reply, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
			return len(reply.GetContainers()) - manyPods*eachHas, err
		},
		"ListContainers of one pod": func() (int, error) {
			reply, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: fmt.Sprintf("%064x", 1)}})
			return len(reply.GetContainers()) - eachHas, err
		},
		"ContainerStatus": func() (int, error) {
			_, err := f.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: one})
			return 0, err
		},
		"PodSandboxStatus": func() (int, error) {
			_, err := f.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: fmt.Sprintf("%064x", 1)})
			return 0, err
		},
	} {
		for range 3 {
			if off, err := call(); off != 0 || err != nil {
				t.Fatalf("%s: %d off, %v", name, off, err)
			}
		}
	}
	if n := f.engine.AllCalls() - before; n > 0 {
		t.Errorf("the engine was asked %d times", n)
	}
}

// BenchmarkR42 is the time of R42's lists over the socket; the promise is 30 ms at the 99th percentile.
func BenchmarkR42(b *testing.B) {
	f := newFixture(b)
	f.fill()
	for name, call := range map[string]func(context.Context) error{
		"ListPodSandbox": func(ctx context.Context) error {
			_, err := f.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ListContainers": func(ctx context.Context) error {
			_, err := f.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := call(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// R46: the engine's clock jumps by hours and to the epoch while objects are made. The order of a list stays that of
// creation, no time is lost or negative, and an exit is not before its start.
// That the daemon's own clock jumps is for TestClockThatJumps (e2e).
//
// Rows: R46 (part)
func TestR46AClockThatJumps(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	sink := f.store.Sink(f.engine.Name())
	now := time.Now()
	id := func(i int) string { return fmt.Sprintf("%064x", i+1) }
	clock := []time.Time{now, now.Add(-time.Hour), now.Add(time.Hour), time.Unix(0, 0), {}, now}
	for i, at := range clock {
		sink.ContainerChanged(engine.ContainerStatus{ID: engine.ContainerID(id(i)), Pod: engine.PodID(pod), Key: engine.ContainerKey{Name: "c", Attempt: uint32(i)},
			State: engine.ContainerExited, CreatedAt: at, StartedAt: at, FinishedAt: at.Add(-time.Minute), Spec: &engine.ContainerSpec{}})
	}
	list, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != len(clock) {
		t.Fatalf("%v, %v", list, err)
	}
	for i, c := range list.Containers {
		if c.Id != id(i) {
			t.Errorf("container %d of the list is attempt %d", i, c.Metadata.Attempt)
		}
		st := f.containerStatus(c.Id)
		if c.CreatedAt <= 0 || st.CreatedAt <= 0 || st.FinishedAt <= 0 {
			t.Errorf("attempt %d, made at %s: createdAt %d and %d, finishedAt %d", i, clock[i], c.CreatedAt, st.CreatedAt, st.FinishedAt)
		}
	}
}

// R49: the daemon has no descriptor left. Calls fail with a code that says so, nothing half made stays, and as soon as there
// are some again everything works, without a restart.
// The other limits, and every call, are for TestLimitsThatAreHit (e2e).
//
// Rows: R49 (part)
func TestR49WithoutDescriptorsCallsFailCleanly(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod("web")
	running := f.startContainer(pod, "web", "main", "run")
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	highest := 0
	files, err := os.ReadDir("/proc/self/fd")
	for _, file := range files {
		var n int
		_, _ = fmt.Sscan(file.Name(), &n) // 0 where it is no number
		highest = max(highest, n)
	}
	if err := errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(highest + 1), Max: old.Max})); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	// The numbers below the limit that are free.
	var held []*os.File
	for {
		file, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		held = append(held, file)
	}
	_, err = f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("other")})
	wantCode(t, "RunPodSandbox", err, codes.ResourceExhausted)
	_, err = f.create(pod, "web", "second", "run")
	wantCode(t, "CreateContainer", err, codes.ResourceExhausted)
	if st := f.containerStatus(running); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", st.State)
	}
	if _, err := f.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: running}); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	for _, file := range held {
		_ = file.Close()
	}
	restore()
	if pods, containers := f.engine.PodIDs(), f.engine.ContainerIDs(); len(pods) != 1 || len(containers) != 1 {
		t.Errorf("left behind: %v %v", pods, containers)
	}
	f.startContainer(f.runPod("other"), "other", "main", "run")
	f.nothingLeft()
}

// R05: records of an earlier version, written by a real run of commit c8251f2, are served: every pod and container is
// listed with its end, the network is given back as it was attached, and all of it can be removed. One of a later version
// is kept as it is.
//
// Rows: R05
func TestR05RecordsOfAnEarlierVersionAreServed(t *testing.T) {
	f := newFixture(t)
	f.stop()
	if err := os.CopyFS(filepath.Join(f.root, "root-c8251f2"), os.DirFS("testdata/records-c8251f2")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(f.root, "root")), os.Rename(filepath.Join(f.root, "root-c8251f2"), filepath.Join(f.root, "root"))); err != nil {
		t.Fatal(err)
	}
	// One of a version to come is beside them: it is neither served nor touched.
	newer := filepath.Join(f.root, "root", "pods", strings.Repeat("ab", 20)+".json")
	future := fmt.Appendf(nil, `{"version":999,"kind":"pod","sha256":"%x","record":{"anything":true}}`, sha256.Sum256([]byte(`999 pod {"anything":true}`)))
	if err := os.WriteFile(newer, future, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var web string
	var names []string
	for _, p := range list.Items {
		names = append(names, p.Metadata.Name)
		if p.Metadata.Name == "web" {
			web = p.Id
		}
		if st := f.podStatus(p.Id); st.Metadata.Uid != "uid-"+p.Metadata.Name || st.Labels["app"] != p.Metadata.Name || p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("%v", st) // NOTREADY: the engine of that time is gone
		}
	}
	if want := []string{"web", "stopped", "host"}; !slices.Equal(names, want) {
		t.Errorf("pods %v, want %v", names, want)
	}
	containers, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.Containers) != 4 {
		t.Fatalf("%v, %v", containers, err)
	}
	for _, c := range containers.Containers {
		if c.Metadata.Name == "done" {
			if st := f.containerStatus(c.Id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 3 || st.FinishedAt == 0 {
				t.Errorf("%v", st)
			}
		}
	}
	for _, p := range list.Items {
		if err := errors.Join(f.stopPod(p.Id), f.removePod(p.Id)); err != nil {
			t.Error(err)
		}
	}
	if dels := f.network.dels; len(dels) != 1 || dels[0].PodID != web || len(dels[0].Result) == 0 {
		t.Errorf("DELs %+v, want that of %s as it was attached", dels, web)
	}
	if now, err := os.ReadFile(newer); err != nil || !bytes.Equal(now, future) {
		t.Errorf("the record of a newer version is %q, %v", now, err)
	}
	if err := os.Remove(newer); err != nil {
		t.Error(err)
	}
	f.nothingLeft()
}
