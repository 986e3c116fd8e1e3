// Package nri owns the Node Resource Interface of the native engine: the socket that plugins connect to, the plugins that
// the operator installed, and the translation of pods, containers, adjustments and updates between NRI's words and ours.
//
// The protocol itself is github.com/containerd/nri's adaptation, as containerd and CRI-O use it: who answers with an error
// forbids what he was asked about; who does not answer in time is disconnected, and the call goes on without him unless his
// failure policy (or required_plugins) says otherwise. A plugin may change any container on the node.
package nri

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/native/hook"
)

// Options say where plugins are. All but RequiredPlugins are required.
type Options struct {
	// RuntimeName and Version are what plugins are told of us.
	RuntimeName, Version string
	// SocketPath is what plugins connect to; PluginPath holds executables that are started, named INDEX-NAME, with their
	// configuration in PluginConfigPath/INDEX-NAME.conf or NAME.conf.
	SocketPath, PluginPath, PluginConfigPath string
	// RegistrationTimeout bounds the time from the start of a plugin to its registration, RequestTimeout each answer.
	RegistrationTimeout, RequestTimeout time.Duration
	// RequiredPlugins are names without which no container is created.
	RequiredPlugins []string
}

// Plugins is the adaptation. Make it with New.
type Plugins struct {
	adaptation *adaptation.Adaptation
	opts       Options
	runtime    hook.Runtime
}

var _ hook.Plugins = (*Plugins)(nil)

// New prepares; nothing is listened to or started before Start. The time-outs are the process's: there is one Plugins in a
// daemon.
func New(opts Options) (*Plugins, error) {
	setLog()
	adaptation.SetPluginRegistrationTimeout(opts.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(opts.RequestTimeout)
	p := &Plugins{opts: opts}
	var err error
	p.adaptation, err = adaptation.New(opts.RuntimeName, opts.Version, p.synchronize, p.updateUnasked,
		adaptation.WithSocketPath(opts.SocketPath), adaptation.WithPluginPath(opts.PluginPath), adaptation.WithPluginConfigPath(opts.PluginConfigPath),
		adaptation.WithDefaultValidator(&validator.DefaultValidatorConfig{Enable: len(opts.RequiredPlugins) > 0, RequiredPlugins: opts.RequiredPlugins}))
	if err != nil {
		return nil, fmt.Errorf("NRI: %w", err)
	}
	return p, nil
}

// Start implements hook.Plugins. ErrFailedPrecondition where another runtime serves the socket or there is something else, ErrUnavailable where it cannot
// be made or the plugins' folder not be read.
func (p *Plugins) Start(r hook.Runtime) error {
	// The adaptation would take it away: plugins that are meant for the other would come to us.
	if conn, err := net.DialTimeout("unix", p.opts.SocketPath, time.Second); err == nil {
		_ = conn.Close()
		return fmt.Errorf("NRI: another runtime serves %s; set nri.socket_path to one of our own: %w", p.opts.SocketPath, errdefs.ErrFailedPrecondition)
	}
	// It would remove whatever else is there, too.
	if info, err := os.Lstat(p.opts.SocketPath); err == nil && info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("NRI: %s is no socket; remove it, or set nri.socket_path to another: %w", p.opts.SocketPath, errdefs.ErrFailedPrecondition)
	}
	p.runtime = r
	if err := p.adaptation.Start(); err != nil {
		return fmt.Errorf("NRI: %w: %w", err, errdefs.ErrUnavailable)
	}
	klog.InfoS("NRI plugins can connect", "socket", p.opts.SocketPath, "plugins", p.opts.PluginPath)
	return nil
}

// Stop implements hook.Plugins.
func (p *Plugins) Stop() { p.adaptation.Stop() }

// Block implements hook.Plugins.
func (p *Plugins) Block() (unblock func()) { return p.adaptation.BlockPluginSync().Unblock }

// synchronize tells a plugin that connects what there is, and does what it wants changed.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := p.runtime.State()
	nriPods := make([]*adaptation.PodSandbox, len(pods))
	for i, pod := range pods {
		nriPods[i] = podToNRI(pod)
	}
	nriContainers := make([]*adaptation.Container, len(containers))
	for i, c := range containers {
		nriContainers[i] = containerToNRI(c)
	}
	updates, err := tell(ctx, nriPods, nriContainers)
	if err != nil {
		return err
	}
	// A plugin that is wrong about one container may still be right about the node.
	_, err = p.update(ctx, updates)
	if err != nil {
		klog.ErrorS(err, "An update that an NRI plugin asked for when it connected failed")
	}
	return nil
}

// updateUnasked does what a plugin asks for by itself, and answers what failed.
func (p *Plugins) updateUnasked(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	failed, err := p.update(ctx, updates)
	if err != nil {
		klog.ErrorS(err, "An update that an NRI plugin asked for failed")
	}
	// With an error the plugin would not be told which failed.
	return failed, nil
}

// update changes the limits of containers. Those that failed come back; the error is that of the first whose failure
// matters.
func (p *Plugins) update(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	var failed []*adaptation.ContainerUpdate
	var first error
	for _, u := range updates {
		if u == nil {
			continue
		}
		limits, err := limitsFromNRI(u.GetLinux().GetResources())
		if err == nil && limits != nil {
			err = p.runtime.UpdateLimits(ctx, engine.ContainerID(u.GetContainerId()), limits)
		}
		if err == nil {
			continue
		}
		failed = append(failed, u)
		err = fmt.Errorf("NRI: update container %s: %w", u.GetContainerId(), err)
		switch {
		case u.GetIgnoreFailure():
			klog.V(2).InfoS("An update by an NRI plugin failed, which it said does not matter", "err", err)
		case first == nil:
			first = err
		}
	}
	return failed, first
}

// refused says who forbade what.
func refused(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("NRI plugins do not let the engine %s: %w: %w", what, err, errdefs.ErrAborted)
}

// told logs what a plugin says to what cannot be forbidden any more.
func told(event string, id any, err error) {
	if err != nil {
		klog.ErrorS(err, "An NRI plugin failed to handle an event", "event", event, "id", id)
	}
}

// RunPod implements hook.Plugins.
func (p *Plugins) RunPod(ctx context.Context, pod *hook.Pod) error {
	return refused("run the pod", p.adaptation.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: podToNRI(pod)}))
}

// UpdatePod implements hook.Plugins.
func (p *Plugins) UpdatePod(ctx context.Context, pod *hook.Pod, overhead, resources *engine.Resources) error {
	_, err := p.adaptation.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
		Pod: podToNRI(pod), OverheadLinuxResources: resourcesToNRI(overhead), LinuxResources: resourcesToNRI(resources),
	})
	return refused("update the pod's resources", err)
}

// PodUpdated implements hook.Plugins.
func (p *Plugins) PodUpdated(ctx context.Context, pod *hook.Pod) {
	told("PostUpdatePodSandbox", pod.ID, p.adaptation.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: podToNRI(pod)}))
}

// StopPod implements hook.Plugins.
func (p *Plugins) StopPod(ctx context.Context, pod *hook.Pod) {
	told("StopPodSandbox", pod.ID, p.adaptation.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: podToNRI(pod)}))
}

// RemovePod implements hook.Plugins.
func (p *Plugins) RemovePod(ctx context.Context, pod *hook.Pod) {
	told("RemovePodSandbox", pod.ID, p.adaptation.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: podToNRI(pod)}))
}

// CreateContainer implements hook.Plugins. ErrInvalidArgument, ErrNotImplemented or ErrFailedPrecondition for adjustments
// that cannot be made.
func (p *Plugins) CreateContainer(ctx context.Context, pod *hook.Pod, c *hook.Container, h *hook.Host) (*specs.LinuxResources, error) {
	reply, err := p.adaptation.CreateContainer(ctx, &adaptation.CreateContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)})
	if err != nil {
		return nil, refused("create the container", err)
	}
	limits, err := adjust(c.OCI, reply.GetAdjust(), h)
	if err != nil {
		return nil, fmt.Errorf("adjust the container as NRI plugins ask: %w", err)
	}
	_, err = p.update(ctx, reply.GetUpdate())
	return limits, err
}

// ContainerCreated implements hook.Plugins.
func (p *Plugins) ContainerCreated(ctx context.Context, pod *hook.Pod, c *hook.Container) {
	told("PostCreateContainer", c.ID, p.adaptation.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)}))
}

// StartContainer implements hook.Plugins.
func (p *Plugins) StartContainer(ctx context.Context, pod *hook.Pod, c *hook.Container) error {
	return refused("start the container", p.adaptation.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)}))
}

// ContainerStarted implements hook.Plugins.
func (p *Plugins) ContainerStarted(ctx context.Context, pod *hook.Pod, c *hook.Container) {
	told("PostStartContainer", c.ID, p.adaptation.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)}))
}

// UpdateContainer implements hook.Plugins.
func (p *Plugins) UpdateContainer(ctx context.Context, pod *hook.Pod, c *hook.Container, asked *specs.LinuxResources) (*specs.LinuxResources, error) {
	reply, err := p.adaptation.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
		Pod: podToNRI(pod), Container: containerToNRI(c), LinuxResources: limitsToNRI(asked),
	})
	if err != nil {
		return nil, refused("update the container's limits", err)
	}
	var own *adaptation.ContainerUpdate
	var others []*adaptation.ContainerUpdate
	for _, u := range reply.GetUpdate() {
		if u != nil && u.GetContainerId() == string(c.ID) {
			own = u
			continue
		}
		others = append(others, u)
	}
	limits, err := limitsFromNRI(own.GetLinux().GetResources())
	if err != nil {
		return nil, fmt.Errorf("update the container's limits as NRI plugins ask: %w", err)
	}
	_, err = p.update(ctx, others)
	return limits, err
}

// ContainerUpdated implements hook.Plugins.
func (p *Plugins) ContainerUpdated(ctx context.Context, pod *hook.Pod, c *hook.Container) {
	told("PostUpdateContainer", c.ID, p.adaptation.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)}))
}

// StopContainer implements hook.Plugins: the container has ended, however that came.
func (p *Plugins) StopContainer(ctx context.Context, pod *hook.Pod, c *hook.Container) {
	reply, err := p.adaptation.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)})
	if err == nil {
		_, err = p.update(ctx, reply.GetUpdate())
	}
	told("StopContainer", c.ID, err)
}

// RemoveContainer implements hook.Plugins.
func (p *Plugins) RemoveContainer(ctx context.Context, pod *hook.Pod, c *hook.Container) {
	told("RemoveContainer", c.ID, p.adaptation.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: podToNRI(pod), Container: containerToNRI(c)}))
}

// setLog is for the process: the adaptation has one logger.
var setLog = sync.OnceFunc(func() { nrilog.Set(logger{}) })

// logger is klog, for the adaptation.
type logger struct{}

func (logger) Debugf(_ context.Context, format string, args ...any) {
	klog.V(6).Infof("NRI: "+format, args...)
}
func (logger) Infof(_ context.Context, format string, args ...any) {
	klog.V(2).Infof("NRI: "+format, args...)
}
func (logger) Warnf(_ context.Context, format string, args ...any) {
	klog.Warningf("NRI: "+format, args...)
}
func (logger) Errorf(_ context.Context, format string, args ...any) {
	klog.Errorf("NRI: "+format, args...)
}
