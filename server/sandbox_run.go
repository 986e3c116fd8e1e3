package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/engine"
	"crishim/internal/failpoint"
	"crishim/internal/undo"
	"crishim/state"
	"crishim/translator"
)

// parkedFor is how long a pod or container that was made for a caller who left waits for the retry.
var parkedFor = 2 * time.Minute

// RunPodSandbox makes and starts a pod sandbox and attaches its network. A repeated call with the same metadata joins
// the work in flight or gets the same id; see flights and reusePod.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	eng, handler, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	spec, err := s.podSpec(eng, handler, req)
	if err != nil {
		return nil, err
	}
	hash := translator.ConfigHash(req.GetConfig(), req.GetRuntimeHandler())
	id, err := s.podFlights.do(ctx, spec.Key, hash, func(ctx context.Context, awaited func() bool) (engine.PodID, error) {
		if id, err := s.reusePod(ctx, spec.Key, hash); id != "" || err != nil {
			return id, err
		}
		return s.runPod(ctx, eng, spec, hash, awaited)
	})
	if err != nil {
		return nil, err
	}
	if err := s.markPodReturned(id); err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

// podSpec decides and checks everything that can be checked before anything is made.
func (s *Server) podSpec(eng engine.Engine, handler Handler, req *runtimeapi.RunPodSandboxRequest) (*engine.PodSpec, error) {
	info := eng.Info()
	defaults := s.opts.Translation
	if info.CgroupDriver != "" {
		defaults.CgroupDriver = info.CgroupDriver
	}
	spec, err := translator.Pod(req.GetConfig(), req.GetRuntimeHandler(), defaults)
	if err != nil {
		return nil, err
	}
	spec.Handler = handler.Runtime
	if err := translator.CheckPod(spec, info.FeaturesOf(spec.Handler)); err != nil {
		return nil, err
	}
	return spec, s.loadSeccomp(&spec.Security.Seccomp)
}

// reusePod answers for a pod that is there already under the key: the same id for the same config, AlreadyExists for
// another one that its caller knows of. What nobody was given, or is half made, is taken back so that a new one can be
// made ("" and no error).
func (s *Server) reusePod(ctx context.Context, key engine.PodKey, hash string) (engine.PodID, error) {
	pod, ok := s.store.PodByKey(key)
	if !ok {
		return "", nil
	}
	complete := pod.Phase == state.PhaseRunning && pod.State == engine.PodReady
	switch {
	case complete && pod.ConfigHash == hash:
		return pod.ID, nil
	case !pod.Recorded && pod.Status.StartedAt.IsZero():
		// The engine made it although its answer was lost, and never started it: nobody was given it.
	case pod.Returned && pod.Phase != state.PhaseIntent:
		return "", fmt.Errorf("pod sandbox %s of %s/%s, attempt %d, exists already as %s with %s; remove it first: %w",
			key.Name, key.Namespace, key.Name, key.Attempt, pod.ID, differs(complete), errdefs.ErrAlreadyExists)
	}
	klog.InfoS("Removing a half-made pod sandbox whose id no caller got", "pod", klog.KRef(key.Namespace, key.Name), "id", pod.ID, "phase", pod.Phase)
	return "", s.removePod(ctx, pod)
}

func differs(complete bool) string {
	if complete {
		return "another config"
	}
	return "state NOTREADY"
}

// runPod makes the pod. On failure everything is taken back; what cannot be is kept in the record for the next Stop and
// Remove.
func (s *Server) runPod(ctx context.Context, eng engine.Engine, spec *engine.PodSpec, hash string, awaited func() bool) (_ engine.PodID, err error) {
	if err := s.ready(eng.Name()); err != nil {
		return "", err
	}
	attach := spec.Namespaces.Network == engine.NamespacePod && !s.opts.BridgeNetwork
	if attach {
		if err := s.network.Status(ctx); err != nil {
			return "", fmt.Errorf("attach the pod to the network: %w", err)
		}
	}
	record := state.Pod{Engine: eng.Name(), Spec: *spec, ConfigHash: hash, CreatedAt: time.Now(), Phase: state.PhaseIntent}
	if err := s.store.PutPod(record); err != nil {
		return "", fmt.Errorf("record the pod: %w", err)
	}
	var id engine.PodID
	var made undo.Stack
	defer func() {
		if err != nil {
			err = s.takeBackPod(ctx, eng, spec.Key, id, &made, err)
		}
	}()
	if err := failpoint.Hit("RunPodSandbox.recorded"); err != nil {
		return "", err
	}
	made.Push("pod sandbox", func(ctx context.Context) error {
		if id == "" {
			return nil
		}
		return dropPod(ctx, eng, id)
	})
	if id, err = eng.CreatePod(ctx, spec); err != nil {
		return "", fmt.Errorf("create the pod sandbox: %w", err)
	}
	if err := failpoint.Hit("RunPodSandbox.created"); err != nil {
		return "", err
	}
	// The id is recorded with the attachments, below, or at once where there are none to record: until then the intent,
	// by whose key the engine's object is found, is enough.
	status, err := eng.StartPod(ctx, id, spec)
	if err != nil {
		return "", fmt.Errorf("start the pod sandbox: %w", err)
	}
	if err := failpoint.Hit("RunPodSandbox.started"); err != nil {
		return "", err
	}
	network := state.Network{Done: true, IPs: status.IPs}
	if attach {
		if network, err = s.attach(ctx, spec, id, status, &made); err != nil {
			return "", err
		}
	}
	if len(spec.InterfaceSysctls) > 0 {
		if err := s.network.SetSysctls(status.NetNSPath, spec.InterfaceSysctls); err != nil {
			return "", fmt.Errorf("set sysctls of the pod's interfaces: %w", err)
		}
	}
	if networked, ok := eng.(engine.Networked); ok {
		if err := networked.PodNetworked(ctx, id, network.IPs); err != nil {
			return "", fmt.Errorf("run the pod sandbox: %w", err)
		}
	}
	s.store.ApplyPod(status)
	err = s.store.UpdatePodByKey(spec.Key, func(p *state.Pod) error {
		p.ID, p.Phase, p.Network, p.Returned = id, state.PhaseRunning, network, awaited()
		p.NetNSPath, p.PID, p.StartTicks = status.NetNSPath, status.PID, status.StartTicks
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("record the running pod: %w", err)
	}
	s.store.ApplyPod(status)
	if !awaited() {
		s.parkPod(ctx, spec.Key, id)
	}
	return id, nil
}

// attach records the attachments, then runs CNI ADD.
func (s *Server) attach(ctx context.Context, spec *engine.PodSpec, id engine.PodID, status engine.PodStatus, made *undo.Stack) (state.Network, error) {
	planned, err := s.network.Plan(cniPod(spec, id, status.NetNSPath))
	if err != nil {
		return state.Network{}, fmt.Errorf("plan the pod's network: %w", err)
	}
	raw, err := encodeAttachments(planned)
	if err != nil {
		return state.Network{}, err
	}
	err = s.store.UpdatePodByKey(spec.Key, func(p *state.Pod) error {
		p.ID, p.Phase, p.NetNSPath, p.PID, p.StartTicks = id, state.PhaseCreated, status.NetNSPath, status.PID, status.StartTicks
		p.Network = state.Network{Attachments: raw}
		return nil
	})
	// No power cut may forget what CNI is to do. The file is named before the disk is waited for, which is one wait less.
	if err == nil {
		err = s.store.SettlePod(spec.Key)
	}
	if err != nil {
		return state.Network{}, fmt.Errorf("record the pod's network: %w", err)
	}
	if err := failpoint.Hit("RunPodSandbox.planned"); err != nil {
		return state.Network{}, err
	}
	var attachments []cni.Attachment
	var ips []string
	err = s.timedCNI("ADD", func() (err error) {
		attachments, ips, err = s.network.Add(ctx, planned)
		return err
	})
	if err != nil {
		// Add has undone itself; where it could not, the attachments must outlive this call.
		var left *cni.UndoError
		if errors.As(err, &left) {
			made.Push("network", func(ctx context.Context) error { return s.network.Del(ctx, planned) })
		}
		return state.Network{}, fmt.Errorf("attach the pod to the network: %w", err)
	}
	made.Push("network", func(ctx context.Context) error { return s.network.Del(ctx, attachments) })
	if err := failpoint.Hit("RunPodSandbox.attached"); err != nil {
		return state.Network{}, err
	}
	if raw, err = encodeAttachments(attachments); err != nil {
		return state.Network{}, err
	}
	return state.Network{Attachments: raw, IPs: ips, Done: true}, nil
}

// takeBackPod undoes a pod whose making failed. Where the undo fails too, the record stays: the pod is listed NOTREADY and
// the next Stop and Remove finish it.
func (s *Server) takeBackPod(ctx context.Context, eng engine.Engine, key engine.PodKey, id engine.PodID, made *undo.Stack, cause error) error {
	undoErr := made.Run(ctx)
	if undoErr == nil && id == "" {
		told, err := s.store.DeletePodIntent(key)
		if err != nil {
			// It has no id by which anybody could remove it.
			s.takeBackPodLater(ctx, key, retryTakeBack)
			return errors.Join(cause, err)
		}
		if told == "" {
			return cause
		}
		// The engine has told of a pod although CreatePod failed.
		id = told
		made.Push("pod sandbox", func(ctx context.Context) error { return dropPod(ctx, eng, id) })
		undoErr = made.Run(ctx)
	}
	if undoErr == nil {
		s.store.Bury(string(id))
		err := s.store.DeletePodByKey(key)
		if err != nil {
			s.takeBackPodLater(ctx, key, retryTakeBack) // what was never returned is not listed: nobody else would
		}
		return errors.Join(cause, err)
	}
	if id == "" {
		// It has no id by which anybody could stop and remove it.
		s.takeBackPodLater(ctx, key, retryTakeBack)
		return fmt.Errorf("%w; and taking it back failed, which is tried again: %w", cause, undoErr)
	}
	err := fmt.Errorf("%w; and taking it back failed, StopPodSandbox and RemovePodSandbox will finish it: %w", cause, undoErr)
	return errors.Join(err, s.store.UpdatePodByKey(key, func(p *state.Pod) error {
		p.ID, p.Phase, p.Leftover = id, state.PhaseStopping, err.Error()
		return nil
	}))
}

// dropPod removes a pod of which nothing was told to a caller.
func dropPod(ctx context.Context, eng engine.Engine, id engine.PodID) error {
	return errors.Join(eng.StopPod(ctx, id), eng.ReleaseNetNS(ctx, id), eng.RemovePod(ctx, id))
}

// markPodReturned notes that a caller has the id. The record is written only if it does not say so already.
func (s *Server) markPodReturned(id engine.PodID) error {
	pod, ok := s.store.Pod(id)
	if !ok {
		return removedMeanwhile("pod sandbox", string(id))
	}
	if err := s.podIsUsed(&pod); !errdefs.IsNotFound(err) {
		return err
	}
	return removedMeanwhile("pod sandbox", string(id))
}

// removedMeanwhile is the answer of a creation whose object somebody has removed before it could be returned.
func removedMeanwhile(kind, id string) error {
	return fmt.Errorf("%s %s was removed before its caller got it; ask for it again: %w", kind, id, errdefs.ErrUnavailable)
}

// podIsUsed notes that a caller has the id, by which it has asked for something: a kubelet that was restarted, or that has
// given a RunPodSandbox up, goes on with the pod that it finds in the list, and does not ask for it again.
func (s *Server) podIsUsed(pod *state.PodView) error {
	if pod.Returned || !pod.Recorded {
		return nil
	}
	return s.store.UpdatePod(pod.ID, func(p *state.Pod) error {
		if p.Phase.Ending() {
			return fmt.Errorf("pod sandbox %s is being removed, as nobody had asked for it: %w", pod.ID, errdefs.ErrUnavailable)
		}
		p.Returned = true
		return nil
	})
}

// errUsed is why something that nobody was given is not taken back: a caller has come.
var errUsed = errors.New("a caller has it")

// parkPod takes back a pod that nobody comes for.
func (s *Server) parkPod(ctx context.Context, key engine.PodKey, id engine.PodID) {
	s.later(ctx, parkedFor, func(ctx context.Context) { s.takeBackParkedPod(ctx, key, id) })
}

func (s *Server) takeBackParkedPod(ctx context.Context, key engine.PodKey, id engine.PodID) {
	if err := s.podFlights.wait(ctx, key); err != nil {
		return
	}
	pod, ok := s.store.PodByKey(key)
	if !ok || len(s.store.ContainersOf(id)) > 0 { // a daemon before this one may not have noted who made them
		return
	}
	// Who comes from here on is told that it goes, and who came before keeps it.
	err := s.store.UpdatePodByKey(key, func(p *state.Pod) error {
		if p.ID != id || p.Returned {
			return errUsed
		}
		p.Phase = state.PhaseStopping
		return nil
	})
	if errors.Is(err, errUsed) {
		return
	}
	if err != nil {
		klog.ErrorS(err, "Could not record that an abandoned pod sandbox is removed; removing it all the same", "id", id)
	}
	klog.InfoS("Removing a pod sandbox whose caller never came back", "pod", klog.KRef(key.Namespace, key.Name), "id", id)
	if err := s.removePod(ctx, pod); err != nil {
		klog.ErrorS(err, "Could not remove an abandoned pod sandbox; RemovePodSandbox will", "id", id)
	}
}

// later runs work after a pause, unless the server ends first. It outlives the call that asks for it.
func (s *Server) later(ctx context.Context, pause time.Duration, work func(ctx context.Context)) {
	ctx = context.WithoutCancel(ctx)
	s.background.Go(func() {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-s.ended:
			return
		case <-timer.C:
		}
		ctx, cancel := context.WithTimeout(ctx, flightTimeout)
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				_ = panicError(p) // logged; the next start takes up what is left
			}
		}()
		work(ctx)
	})
}
