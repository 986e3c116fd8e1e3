package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/imageset"
	"crishim/internal/process"
	"crishim/state"
)

// Handler is what a runtime handler name stands for.
type Handler struct {
	Engine  string // engine.Engine.Name
	Runtime string // the engine's OCI runtime, "" its default
}

// takeEngines checks that every handler's engine is there, and puts the engines in order: the default one, then the
// others by name. An engine that no handler names serves what it has and gets no new pods.
func (s *Server) takeEngines(engines []engine.Engine) error {
	for _, e := range engines {
		s.engines[e.Name()] = e
	}
	for name, h := range s.opts.Handlers {
		if s.engines[h.Engine] == nil {
			return fmt.Errorf("runtime handler %q names engine %q, which is not configured: %w", name, h.Engine, errdefs.ErrInvalidArgument)
		}
		if s.engines[name] != nil && h.Engine != name {
			return fmt.Errorf("runtime handler %q is the engine of that name and cannot be on engine %q: %w", name, h.Engine, errdefs.ErrInvalidArgument)
		}
		s.takesPods[h.Engine] = true
	}
	def, ok := s.opts.Handlers[""]
	if !ok {
		return fmt.Errorf("there is no default runtime handler: %w", errdefs.ErrInvalidArgument)
	}
	s.defaultEngine = s.engines[def.Engine]
	s.order = []engine.Engine{s.defaultEngine}
	for _, name := range slices.Sorted(maps.Keys(s.engines)) {
		if name != def.Engine {
			s.order = append(s.order, s.engines[name])
		}
	}
	var stores []imageset.Store
	for _, e := range s.order {
		name := e.Name()
		stores = append(stores, imageset.Store{Engine: name, Images: e, Ready: func() error { return s.ready(name) }})
	}
	s.images = imageset.New(stores, logCarried)
	return nil
}

// Images are the images of all engines, for who may do more with them than CRI has calls for. The default engine's store
// is the first.
func (s *Server) Images() *imageset.Set { return s.images }

// several says that there is more than one engine.
func (s *Server) several() bool { return len(s.engines) > 1 }

// logCarried tells of images on their way from one engine to another.
func logCarried(p imageset.Progress) {
	switch {
	case p.Err != nil:
		klog.ErrorS(p.Err, "An image could not be carried to another engine", "image", p.Image, "to", p.To)
	case p.Done:
		klog.InfoS("An image was carried to another engine", "image", p.Image, "from", p.From, "to", p.To, "bytes", p.Moved)
	default:
		klog.InfoS("Carrying an image to another engine", "image", p.Image, "from", p.From, "to", p.To, "percent", p.Percent(), "bytes", p.Moved)
	}
}

// engineOf routes by the record.
func (s *Server) engineOf(name string) (engine.Engine, error) {
	if e := s.engines[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("the record names engine %q, which is not on; add it to engines in the configuration: %w", name, errdefs.ErrFailedPrecondition)
}

// handler routes by the runtime handler of a new pod. The engines' own OCI runtimes are handlers too, known only once an
// engine has answered; one that two engines offer is nobody's until the configuration says whose.
func (s *Server) handler(name string) (engine.Engine, Handler, error) {
	if h, ok := s.opts.Handlers[name]; ok {
		return s.engines[h.Engine], h, nil
	}
	var offering []string
	unknown := false
	for _, e := range s.order {
		if !s.takesPods[e.Name()] {
			continue
		}
		handlers := e.Info().Handlers
		unknown = unknown || handlers == nil
		if _, ok := handlers[name]; ok {
			offering = append(offering, e.Name())
		}
	}
	switch {
	case len(offering) == 1:
		return s.engines[offering[0]], Handler{Engine: offering[0], Runtime: name}, nil
	case len(offering) > 1:
		return nil, Handler{}, fmt.Errorf("runtime handler %q is offered by the engines %s; say whose it is with [handlers.%s] in the configuration, or rename one: %w",
			name, strings.Join(offering, " and "), name, errdefs.ErrFailedPrecondition)
	case unknown && s.several():
		return nil, Handler{}, fmt.Errorf("runtime handler %q is not known, and an engine has not said yet which it has; try again: %w", name, errdefs.ErrUnavailable)
	}
	return nil, Handler{}, fmt.Errorf("unknown runtime handler %q; known are %q: %w", name, s.handlerNames(), errdefs.ErrInvalidArgument)
}

func (s *Server) handlerNames() []string { return slices.Sorted(maps.Keys(s.handlerFeatures())) }

// handlerFeatures joins the configured handlers and the engines' own OCI runtimes, without those that two of them offer.
func (s *Server) handlerFeatures() map[string]engine.HandlerFeatures {
	all, offered := map[string]engine.HandlerFeatures{}, map[string]int{}
	for _, e := range s.order {
		if !s.takesPods[e.Name()] {
			continue
		}
		for name, f := range e.Info().Handlers {
			offered[name]++
			all[name] = f
		}
	}
	maps.DeleteFunc(all, func(name string, _ engine.HandlerFeatures) bool { return offered[name] > 1 })
	for name, h := range s.opts.Handlers {
		all[name] = s.engines[h.Engine].Info().Handlers[h.Runtime]
	}
	return all
}

// ready says that the engine can be asked; ErrUnavailable with its reason otherwise.
func (s *Server) ready(name string) error {
	health := s.store.Health(name)
	if health.Ready {
		return nil
	}
	return fmt.Errorf("%s: %w", notReady(name, health), errdefs.ErrUnavailable)
}

func notReady(name string, health engine.Health) string {
	return fmt.Sprintf("engine %s is not ready: %s: %s", name, health.Reason, health.Message)
}

// away maps the engines that do not answer to the reason; empty in all normal times.
func (s *Server) away() map[string]string {
	var away map[string]string
	for name := range s.engines {
		if h := s.store.Health(name); !h.Ready {
			if away == nil {
				away = map[string]string{}
			}
			away[name] = notReady(name, h)
		}
	}
	return away
}

// reasonUnusable is the reason of an engine that no wait makes usable.
const reasonUnusable = "EngineUnusable"

// reasonAway is the reason of a container that nothing is known of while its engine is away.
const reasonAway = "EngineUnavailable"

// The engine of what cannot be confirmed is away, and its process, which would prove it, is gone.
func unconfirmedPod(p *state.PodView) bool {
	return p.State == engine.PodReady && process.Gone(p.Status.PID, p.Status.StartTicks)
}

func unconfirmedContainer(c *state.ContainerView) bool {
	return c.State == engine.ContainerRunning && process.Gone(c.Status.PID, c.Status.StartTicks)
}

// watch is the engine's Watch. An engine that can never be used ends the daemon only where it was the last one.
func (s *Server) watch(ctx context.Context, eng engine.Engine) error {
	sink := s.store.Sink(eng.Name())
	err := eng.Watch(ctx, sink)
	if ctx.Err() != nil || err == nil {
		return ctx.Err()
	}
	err = fmt.Errorf("engine %s: %w", eng.Name(), err)
	if int(s.unusable.Add(1)) == len(s.engines) {
		return err
	}
	klog.ErrorS(err, "This engine cannot be used; the other one goes on", "engine", eng.Name())
	sink.Health(engine.Health{Reason: reasonUnusable, Message: errors.Unwrap(err).Error()})
	<-ctx.Done()
	return ctx.Err()
}
