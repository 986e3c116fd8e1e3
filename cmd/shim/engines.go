package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
	"k8s.io/klog/v2"

	"crishim/config"
	"crishim/engine"
	"crishim/server"
	"crishim/state"
)

// nodeEngines are the engines that are on, the default one first.
type nodeEngines []nodeEngine

// newEngines makes the engines that the configuration turns on, and those that still have pods: an engine that is taken
// out of the configuration serves what it has until that has ended, and gets nothing new. What is learnt of the node is put into choice.
func newEngines(ctx context.Context, choice *node, c *config.Config, store *state.Store, tracer trace.TracerProvider) (nodeEngines, error) {
	on := c.EnginesOn(choice.Engine)
	for _, name := range recordedEngines(store) {
		if !slices.Contains(on, name) {
			klog.InfoS("An engine that is not in the configuration has pods: it serves them until they end, and gets no new ones", "engine", name)
			on = append(on, name)
		}
	}
	made := map[string]nodeEngine{}
	driver := nativeDriver(*choice, c)
	for _, name := range slices.Sorted(slices.Values(on)) { // docker comes before native, which takes its cgroup driver
		if name == config.EngineNative && made[config.EngineDocker] != nil {
			driver = dockersDriver(ctx, choice, c, made[config.EngineDocker])
		}
		eng, err := newEngine(name, c, driver, store, tracer)
		if err != nil {
			return nil, err
		}
		made[name] = eng
	}
	var all nodeEngines
	for _, name := range on {
		all = append(all, made[name])
	}
	return all, nil
}

// checkEngines refuses settings that none of the engines, or not all of them, can keep.
func checkEngines(on []string, c *config.Config) error {
	native := slices.Contains(on, config.EngineNative)
	if c.NRI.Enable && !native {
		return errors.New("nri.enable: Docker Engine has no NRI; turn the native engine on (engines), or leave NRI off")
	}
	if len(c.NRI.RequiredPlugins) > 0 && !c.NRI.Enable {
		return errors.New("nri.required_plugins: NRI is off, and containers would be created without these plugins; set nri.enable, or take the names away")
	}
	if c.Network.Mode == config.NetworkBridge && native {
		return errors.New("network: docker-bridge is Docker's, the native engine's pods would have no network; set it to cni, or leave the native engine off")
	}
	return nil
}

// recordedEngines are the engines that records name.
func recordedEngines(store *state.Store) []string {
	names := map[string]bool{}
	for _, p := range store.Pods() {
		names[p.Engine] = true
	}
	for _, c := range store.Containers() {
		names[c.Engine] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// nativeDriver is the native engine's cgroup driver, "" where it is to find out.
func nativeDriver(choice node, c *config.Config) engine.CgroupDriver {
	if c.CgroupDriver != "" {
		return engine.CgroupDriver(c.CgroupDriver)
	}
	return choice.CgroupDriver
}

// dockersDriver asks the Docker Engine for its cgroup driver and puts it into choice for when it is down or gone: one kubelet can
// have pods on both engines only where they agree, and on the native engine alone afterwards only where that still does.
func dockersDriver(ctx context.Context, choice *node, c *config.Config, eng nodeEngine) engine.CgroupDriver {
	known := nativeDriver(*choice, c)
	connector, ok := eng.(interface {
		Connect(ctx context.Context) (disconnect func(), err error)
	})
	if !ok || c.CgroupDriver != "" {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	disconnect, err := connector.Connect(ctx)
	if err != nil {
		klog.InfoS("The Docker Engine cannot be asked for its cgroup driver, which the native engine must share", "taking", known, "err", err)
		return known
	}
	defer disconnect()
	choice.CgroupDriver = eng.Info().CgroupDriver
	return choice.CgroupDriver
}

// handlers are the runtime handlers: the default one, the engines by name, and those of the configuration.
func handlers(choice node, c *config.Config) map[string]server.Handler {
	all := map[string]server.Handler{"": {Engine: choice.Engine}}
	for _, name := range c.EnginesOn(choice.Engine) {
		all[name] = server.Handler{Engine: name}
	}
	for name, h := range c.Handlers {
		runtime := h.Runtime
		if h.OCIRuntime != "" {
			runtime = name // by which the native engine has it
		}
		all[name] = server.Handler{Engine: h.Engine, Runtime: runtime}
	}
	return all
}

func (all nodeEngines) engines() []engine.Engine {
	var engines []engine.Engine
	for _, e := range all {
		engines = append(engines, e)
	}
	return engines
}

func (all nodeEngines) stopPlugins() {
	for _, e := range all {
		e.stopPlugins()
	}
}

// anyReady says that at least one engine answers, else why not.
func (all nodeEngines) anyReady(store *state.Store) error {
	var errs []error
	for _, e := range all {
		h := store.Health(e.Name())
		if h.Ready {
			return nil
		}
		errs = append(errs, fmt.Errorf("engine %s: %s: %s", e.Name(), h.Reason, h.Message))
	}
	return errors.Join(errs...)
}
