package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/config"
	"crishim/migrate"
	"crishim/server"
	"crishim/state"
	"crishim/stats"
	"crishim/streaming"
	"crishim/translator"
)

func serveFlags(fs *pflag.FlagSet) {
	fs.Bool("observe", false, "change nothing and only answer questions, on a socket below run_dir: what the kubelet would be told after a switch from another shim")
	config.Flags(fs)
}

func stateDir(c *config.Config) string { return filepath.Join(c.RootDir, "state") }

// serve wires the daemon and runs it until ctx ends. The first part that ends stops all.
func serve(ctx context.Context, fs *pflag.FlagSet, _ io.Writer) error {
	// From the first moment to the last: a SIGHUP that nobody takes ends the process, while it waits for an engine or drains, too.
	signals := make(chan os.Signal, 4)
	nohup := signal.Ignored(unix.SIGHUP) // not known any more once it is taken
	signal.Notify(signals, unix.SIGHUP, unix.SIGUSR1)
	defer signal.Stop(signals)
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	if err := setLogLevel(c.Log.Level); err != nil {
		return err
	}
	if observing, err := fs.GetBool("observe"); err != nil || observing {
		listen := []string{observerSocket(c)}
		if fs.Changed("listen") {
			listen = c.Listen
		}
		// It reloads nothing: who runs it closes its terminal, with which it ends.
		if !nohup {
			var stop func()
			ctx, stop = signal.NotifyContext(ctx, unix.SIGHUP)
			defer stop()
		}
		return errors.Join(err, observe(ctx, c, listen...))
	}
	// Folders and files are private unless they are opened on purpose.
	syscall.Umask(0o027)
	if err := makeFolders(c.RunDir, c.RootDir); err != nil {
		return err
	}
	klog.InfoS("crishim starts", "version", version, "listen", c.Listen)
	store, err := state.Open(stateDir(c), filepath.Join(c.RunDir, "state"))
	if err != nil {
		return err
	}
	defer func() {
		if err := store.Close(); err != nil {
			klog.ErrorS(err, "Not all records could be written")
		}
	}()
	was, choice, why, err := decideNode(c, "/")
	if err != nil {
		return err
	}
	klog.InfoS("The default engine of this node", "engine", choice.Engine, "because", why)
	tracer, stopTracing, err := tracing(ctx, c.Tracing.Endpoint)
	if err != nil {
		return err
	}
	defer stopTracing()
	network, err := cni.New(networkOptions(c))
	if err != nil {
		return err
	}
	network.Own(ctx)
	reader, err := stats.NewReader("/")
	if err != nil {
		return err
	}
	disk := stats.NewDisk()
	engines, err := newEngines(ctx, &choice, c, store, tracer)
	if err != nil {
		return err
	}
	defer engines.stopPlugins()
	registry := prometheus.NewRegistry()
	srv, err := server.New(server.Options{
		RuntimeName: choice.RuntimeName, Version: version,
		Handlers:      handlers(choice, c),
		Translation:   translator.Defaults{PauseImage: c.Images.Pause, SeccompRoot: c.SeccompDir},
		BridgeNetwork: c.Network.Mode == config.NetworkBridge, CNIGC: c.Network.GC,
		Adopter:        migrate.NewAdopter(adoptOptions(c), network),
		PullNoProgress: time.Duration(c.Images.PullNoProgress), Checkpoint: c.Checkpoint,
		Settings: c, Metrics: registry, Tracer: tracer,
	}, engines.engines(), store, network, reader, disk)
	if err != nil {
		return err
	}
	streams, err := streaming.New(streamingOptions(c), srv.StreamRuntime())
	if err != nil {
		return err
	}
	srv.SetStreams(streams)
	listeners, err := server.Listen(c.Listen, c.SocketGroup)
	if err != nil {
		return err
	}
	// Not before: a start that is refused, as beside a daemon that has the folder, would decide for those that come after it.
	if err := choice.keep(was, c); err != nil {
		closeAll(listeners)
		return err
	}
	registerMetrics(registry, store, network, engines)
	pages := listenPages(c.Metrics, registry, store, engines)
	admin := listenAdmin(c)

	group, ctx := errgroup.WithContext(ctx)
	// What calls need goes on until those in flight have ended: a creation must not lose its engine halfway.
	working, endWork := context.WithCancel(context.WithoutCancel(ctx))
	defer endWork()
	group.Go(func() error { disk.Run(working); return nil })
	group.Go(func() error { reader.Run(working); return nil })
	group.Go(func() error { network.Run(working); return nil })
	group.Go(func() error { return srv.Run(working) })
	group.Go(func() error { return streams.Serve(ctx) })
	group.Go(func() error { return srv.Serve(listeners) })
	for _, page := range pages {
		group.Go(func() error { return serveOn(ctx, page.listener, page.handler) })
	}
	group.Go(func() error { return serveAdmin(ctx, admin, srv.Images(), engines) })
	group.Go(func() error { handleSignals(working, signals, fs, engines); return nil })
	group.Go(func() error { return notifySystemd(ctx, srv, newStatusLine(c, engines, store)) })
	group.Go(func() error {
		<-ctx.Done()
		_, _ = daemon.SdNotify(false, stopping(time.Duration(c.DrainTimeout)))
		klog.InfoS("crishim ends; pods go on", "drain", c.DrainTimeout.String())
		srv.Stop(time.Duration(c.DrainTimeout))
		endWork()
		closeAll(listeners)
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func networkOptions(c *config.Config) cni.Options {
	return cni.Options{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, Template: c.Network.Template,
		CacheDir: c.CNICacheDir(), OwedDir: filepath.Join(c.RootDir, "cni-owed"),
		PodCIDRs: c.Network.PodCIDRs, PodCIDRFile: filepath.Join(c.RootDir, "pod-cidrs.json"),
	}
}

// never is longer than any stream lasts.
const never = 100 * 365 * 24 * time.Hour

func streamingOptions(c *config.Config) streaming.Options {
	return streaming.Options{
		Address: c.Streaming.Address, AllowRemote: c.Streaming.AllowRemote,
		CertFile: c.Streaming.Cert, KeyFile: c.Streaming.Key, IdleTimeout: cmp.Or(time.Duration(c.Streaming.IdleTimeout), never),
	}
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}

func setLogLevel(level int) error {
	var fs flag.FlagSet
	klog.InitFlags(&fs)
	return fs.Set("v", strconv.Itoa(level))
}

// handleSignals: SIGHUP reads the settings again that can change in a running daemon, SIGUSR1 dumps the goroutines.
func handleSignals(ctx context.Context, signals <-chan os.Signal, fs *pflag.FlagSet, engines nodeEngines) {
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-signals:
			if sig == unix.SIGUSR1 {
				dumpGoroutines()
				continue
			}
			if err := reload(fs, engines); err != nil {
				klog.ErrorS(err, "The settings were not reloaded; the old ones stay in force")
			}
		}
	}
}

func reload(fs *pflag.FlagSet, engines nodeEngines) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	if err := setLogLevel(c.Log.Level); err != nil {
		return err
	}
	for _, eng := range engines {
		eng.ReloadHosts(c.Images.RegistryDirs)
		eng.SetPinned(c.Images.Pinned)
	}
	klog.InfoS("Reloaded log level, registries and pinned images", "level", c.Log.Level, "pinned", c.Images.Pinned)
	return nil
}
