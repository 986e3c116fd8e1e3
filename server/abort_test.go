package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What hangs in the engine or in the network while it is made or started does not hold up its end: the work is aborted, and
// nothing of it is left or runs.
//
// Rows: R07 (part), R36 (part)
func TestAStopEndsWhatHangs(t *testing.T) {
	type scene struct {
		*fixture
		pod, container string
	}
	start := func(s *scene) error {
		_, err := s.runtime.StartContainer(s.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: s.container})
		return err
	}
	create := func(s *scene) error { _, err := s.create(s.pod, "web", "other", "run"); return err }
	rows := []struct {
		name, step string
		hang, end  func(*scene) error
	}{
		{"a start, StopContainer", "StartContainer", start, func(s *scene) error {
			_, err := s.runtime.StopContainer(s.t.Context(), &runtimeapi.StopContainerRequest{ContainerId: s.container, Timeout: 30})
			return err
		}},
		{"a start, RemoveContainer", "StartContainer", start, func(s *scene) error {
			_, err := s.runtime.RemoveContainer(s.t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: s.container})
			return err
		}},
		{"a start, StopPodSandbox", "StartContainer", start, func(s *scene) error { return s.stopPod(s.pod) }},
		{"a start, RemovePodSandbox", "StartContainer", start, func(s *scene) error { return s.removePod(s.pod) }},
		{"a creation, StopPodSandbox", "CreateContainer", create, func(s *scene) error { return s.stopPod(s.pod) }},
		{"a creation, RemovePodSandbox", "CreateContainer", create, func(s *scene) error { return s.removePod(s.pod) }},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			f := newFixture(t)
			s := &scene{fixture: f, pod: f.runPod("web")}
			var err error
			if s.container, err = f.create(s.pod, "web", "main", "run"); err != nil {
				t.Fatal(err)
			}
			before := f.engine.Calls(row.step)
			release := f.engine.Block(row.step)
			defer release()
			hung := make(chan error, 1)
			go func() { hung <- row.hang(s) }()
			eventually(t, "the call reaches the engine", func() error {
				if f.engine.Calls(row.step) == before {
					return errors.New("not yet")
				}
				return nil
			})
			if err := row.end(s); err != nil {
				t.Errorf("the end: %v", err)
			}
			wantCode(t, "what hung", <-hung, codes.FailedPrecondition)
			release()
			list, err := f.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range list.Containers {
				if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("%s runs", c.Metadata.Name)
				}
			}
			f.nothingLeft()
		})
	}
}

// Rows: R36 (part)
func TestAStopEndsTheMakingOfAPod(t *testing.T) {
	for _, remove := range []bool{false, true} {
		f := newFixture(t)
		f.network.slow = make(chan struct{}) // ADD hangs, by which time the pod is listed
		hung := make(chan error, 1)
		go func() {
			_, err := f.runtime.RunPodSandbox(context.WithoutCancel(t.Context()), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")})
			hung <- err
		}()
		id := ""
		eventually(t, "ADD is reached", func() error {
			list := f.store.Pods()
			if f.network.adds.Load() == 0 || len(list) == 0 || list[0].ID == "" {
				return errors.New("not yet")
			}
			id = string(list[0].ID)
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var err error
		if remove {
			_, err = f.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		} else {
			_, err = f.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		}
		if err != nil {
			t.Errorf("the end: %v", err)
		}
		wantCode(t, "the making of the pod", <-hung, codes.FailedPrecondition)
		f.nothingLeft()
	}
}

// A stop that finds its pod removed and another one of the same name in the making lets that one be.
//
// Rows: R12 (part)
func TestALateStopDoesNotEndThePodsSuccessor(t *testing.T) {
	f := newFixture(t)
	old, err := f.store.FindPod(f.runPod("web"))
	if err := errors.Join(err, f.removePod(string(old.ID))); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	before := f.engine.Calls("CreatePod")
	release := f.engine.Block("CreatePod")
	defer release()
	go func() {
		_, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")})
		made <- err
	}()
	eventually(t, "the successor reaches the engine", func() error {
		if f.engine.Calls("CreatePod") == before {
			return errors.New("not yet")
		}
		return nil
	})
	// What StopPodSandbox does once it has found the pod, which is removed just then.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.server.abortPod(ctx, old); err != nil {
		t.Errorf("the stop: %v", err)
	}
	release()
	if err := <-made; err != nil {
		t.Errorf("the successor: %v", err)
	}
}
