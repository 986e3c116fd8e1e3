package main

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"crishim/config"
	"crishim/engine"
	"crishim/engine/docker"
	"crishim/engine/docker/logpump"
	"crishim/engine/native"
	"crishim/engine/native/hook"
	"crishim/nri"
	"crishim/state"
)

// nodeEngine is an engine with what only the command needs of it.
type nodeEngine interface {
	engine.Engine
	// ReloadHosts and SetPinned take over settings that may change while the daemon runs.
	ReloadHosts(dirs []string)
	SetPinned(references []string)
	// stopPlugins ends what was started beside the engine; nothing is asked of it any more.
	stopPlugins()
	// register adds the engine's own metrics.
	register(registry *prometheus.Registry)
	// quarantined counts the engine's own records that could not be read.
	quarantined() int
}

func newEngine(name string, c *config.Config, driver engine.CgroupDriver, store *state.Store, tracer trace.TracerProvider) (nodeEngine, error) {
	switch name {
	case config.EngineDocker:
		eng, err := docker.New(docker.Options{
			Socket: c.Docker.Endpoint, RunDir: c.RunDir + "/docker", RootDir: c.RootDir + "/docker",
			ContainerLog: c.DockerLog(), LogMaxSize: int64(c.Docker.LogMaxSize), LogMaxFiles: c.Docker.LogMaxFiles,
			ContainerLogMaxSize: int64(c.ContainerLogMax),
			Network:             c.Network.Mode, GiveBack: c.Compatibility != "", TracerProvider: tracer, Recorded: store.Recorded, PodSpec: store.PodSpec,
			RegistryConfigDirs: c.Images.RegistryDirs, NodeAuth: []string{c.Images.Credentials}, TokenServers: c.Images.TokenServers,
			PauseImage: c.Images.Pause, Pinned: c.Images.Pinned, PullNoProgress: time.Duration(c.Images.PullNoProgress),
		})
		if err != nil {
			return nil, err
		}
		return withCheckpoints(dockerEngine{eng}, c)
	case config.EngineNative:
		plugins, err := nriPlugins(c)
		if err != nil {
			return nil, err
		}
		eng, err := native.New(native.Options{
			Version: version, RootDir: nativeRootDir(c), RunDir: nativeRunDir(c),
			RegistryConfigDirs: c.Images.RegistryDirs, NodeAuth: []string{c.Images.Credentials}, TokenServers: c.Images.TokenServers, Pinned: c.Images.Pinned,
			Plugins: plugins, CgroupDriver: driver, Runtimes: ociRuntimes(c),
			ContainerLogMaxSize: int64(c.ContainerLogMax),
		})
		if err != nil {
			return nil, fmt.Errorf("start the native engine: %w", err)
		}
		return nativeEngine{eng}, nil
	}
	return nil, fmt.Errorf("there is no engine %q", name)
}

// ociRuntimes are the native engine's by handler.
func ociRuntimes(c *config.Config) map[string]string {
	programs := map[string]string{}
	for name, h := range c.Handlers {
		if h.OCIRuntime != "" {
			programs[name] = h.OCIRuntime
		}
	}
	return programs
}

// nriPlugins is nil, the interface itself, where NRI is off.
func nriPlugins(c *config.Config) (hook.Plugins, error) {
	if !c.NRI.Enable {
		return nil, nil
	}
	plugins, err := nri.New(nri.Options{
		RuntimeName: "crishim", Version: version, SocketPath: c.NRI.SocketPath, PluginPath: c.NRI.PluginPath, PluginConfigPath: c.NRI.PluginConfigPath,
		RegistrationTimeout: time.Duration(c.NRI.PluginRegistrationTimeout), RequestTimeout: time.Duration(c.NRI.PluginRequestTimeout),
		RequiredPlugins: c.NRI.RequiredPlugins,
	})
	if err != nil {
		return nil, err
	}
	return plugins, nil
}

type dockerEngine struct{ *docker.Engine }

func (e dockerEngine) ReloadHosts(dirs []string)     { e.ImageStore().ReloadHosts(dirs) }
func (e dockerEngine) SetPinned(references []string) { e.ImageStore().SetPinned(references) }

func (e dockerEngine) stopPlugins() {}

func (e dockerEngine) quarantined() int { return 0 } // it has none

func (e dockerEngine) register(registry *prometheus.Registry) {
	counter := func(name, help string, value func(logpump.Stats) uint64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(e.LogStats())) }))
	}
	counter("crishim_log_bytes_total", "Bytes written to container logs.", func(s logpump.Stats) uint64 { return s.Bytes })
	counter("crishim_log_entries_total", "Entries read from Docker's logs.", func(s logpump.Stats) uint64 { return s.Entries })
	counter("crishim_log_gaps_total", "Places where Docker may have dropped output before it was read.", func(s logpump.Stats) uint64 { return s.Gaps })
	counter("crishim_log_dropped_bytes_total", "Bytes known to be dropped by Docker before they were read.", func(s logpump.Stats) uint64 { return s.DroppedBytes })
	counter("crishim_log_write_errors_total", "Failed attempts to write a container log; nothing is lost by one.", func(s logpump.Stats) uint64 { return s.WriteErrors })
	counter("crishim_log_bad_lines_total", "Lines in Docker's logs that were no entries.", func(s logpump.Stats) uint64 { return s.BadLines })
}

type nativeEngine struct{ *native.Engine }

func (e nativeEngine) ReloadHosts(dirs []string)     { e.ImageStore().ReloadHosts(dirs) }
func (e nativeEngine) SetPinned(references []string) { e.ImageStore().SetPinned(references) }

func (e nativeEngine) stopPlugins() { e.StopPlugins() }
