package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/cni"
	"crishim/config"
	"crishim/engine"
	"crishim/engine/docker"
	"crishim/migrate"
	"crishim/server"
	"crishim/state"
	"crishim/stats"
)

// observeFolder is the only place where an observing daemon writes: below run_dir.
const observeFolder = "observe"

// observerSocket is where an observing daemon is asked.
func observerSocket(c *config.Config) string {
	return "unix://" + filepath.Join(c.RunDir, observeFolder, "crishim.sock")
}

// observe answers what this node would be told by crishim, beside the shim that serves it: no log is written, no plugin run,
// nothing pinned, collected, taken back or removed, and calls that would change something are refused. It knows what a daemon
// of these settings has on record, from a copy, and makes its records in a folder of its own, which goes with it.
func observe(ctx context.Context, c *config.Config, listen ...string) error {
	syscall.Umask(0o027)
	if err := makeFolders(c.RunDir, filepath.Join(c.RunDir, observeFolder)); err != nil {
		return err
	}
	dir := filepath.Join(c.RunDir, observeFolder)
	// Where another one observes, what is in the folder is its own.
	held, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another crishim observes this node already, in %s: %w", dir, err)
	}
	root, run := filepath.Join(dir, "root"), filepath.Join(dir, "run")
	store, err := observedStore(c, root, run)
	if err != nil {
		return err
	}
	defer func() {
		_ = store.Close()
		for _, made := range []string{root, run} {
			if err := os.RemoveAll(made); err != nil {
				klog.ErrorS(err, "What the observer wrote is left", "path", made)
			}
		}
		_ = os.Remove(dir) // its socket went with the listener
	}()
	network, err := cni.New(cni.Options{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, CacheDir: filepath.Join(root, "cni"), OwedDir: filepath.Join(root, "cni-owed"),
	})
	if err != nil {
		return err
	}
	reader, err := stats.NewReader("/")
	if err != nil {
		return err
	}
	disk := stats.NewDisk()
	eng, err := docker.New(docker.Options{
		Socket: c.Docker.Endpoint, RunDir: filepath.Join(run, "docker"), RootDir: filepath.Join(root, "docker"), ContainerLog: c.ContainerLog,
		Network: c.Network.Mode, Recorded: store.Recorded, PauseImage: c.Images.Pause, Pinned: c.Images.Pinned, Observe: true,
	})
	if err != nil {
		return err
	}
	name := c.RuntimeName
	if name == "" {
		name = config.EngineDocker
	}
	srv, err := server.New(server.Options{
		RuntimeName: name, Version: version, Handlers: map[string]server.Handler{"": {Engine: eng.Name()}, eng.Name(): {Engine: eng.Name()}},
		Adopter:       onlooker{migrate.NewAdopter(migrate.AdoptOptions{Roots: c.Adopt.Roots, CNICacheDirs: c.Adopt.CNICacheDirs}, network)},
		BridgeNetwork: c.Network.Mode == config.NetworkBridge, Observe: true, Settings: c, Metrics: prometheus.NewRegistry(),
	}, []engine.Engine{eng}, store, idleNetwork{network}, reader, disk)
	if err != nil {
		return err
	}
	listeners, err := server.Listen(listen, c.SocketGroup)
	if err != nil {
		return err
	}
	klog.InfoS("crishim observes; nothing is changed", "version", version, "listen", listen)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return srv.Run(ctx) })
	group.Go(func() error { return srv.Serve(listeners) })
	group.Go(func() error {
		<-ctx.Done()
		srv.Stop(time.Duration(c.DrainTimeout))
		closeAll(listeners)
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// observedStore opens a copy of the records that there are.
func observedStore(c *config.Config, root, run string) (*state.Store, error) {
	for _, dir := range []string{root, run} {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	for from, to := range map[string]string{
		stateDir(c): filepath.Join(root, "state"), filepath.Join(c.RunDir, "state"): filepath.Join(run, "state"), c.CNICacheDir(): filepath.Join(root, "cni"),
	} {
		if err := copyFiles(from, to); err != nil {
			return nil, fmt.Errorf("copy the records that there are: %w", err)
		}
	}
	return state.Open(filepath.Join(root, "state"), filepath.Join(run, "state"))
}

// copyFiles copies the regular files of a tree that a daemon may be writing; each is replaced as a whole there. With them goes what
// is temporary there: after a power cut the older self of a record may be all that can be read. OK where there is none.
func copyFiles(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			rel, _ := filepath.Rel(from, path)
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if errors.Is(err, fs.ErrNotExist) || err == nil && (!d.Type().IsRegular() || d.Name() == "lock") {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		return os.WriteFile(filepath.Join(to, rel), data, 0o600)
	})
}

// onlooker leaves the old shim's files as they are when a pod goes: it is that shim's.
type onlooker struct{ *migrate.Adopter }

func (onlooker) Removed(engine.PodID) error { return nil }

// idleNetwork reads configurations and caches, and runs no plugin.
type idleNetwork struct{ *cni.Network }

var errObserves = fmt.Errorf("this crishim only observes: %w", errdefs.ErrFailedPrecondition)

// Status is the daemon's, but that no plugin is asked for its own.
func (n idleNetwork) Status(context.Context) error { return n.Usable() }

func (idleNetwork) Add(context.Context, []cni.Attachment) ([]cni.Attachment, []string, error) {
	return nil, nil, errObserves
}
func (idleNetwork) Del(context.Context, []cni.Attachment) error                { return errObserves }
func (idleNetwork) GC(context.Context, func() ([]cni.Attachment, error)) error { return errObserves }
func (idleNetwork) Owe([]cni.Attachment, string) error                         { return errObserves }
func (idleNetwork) SetPodCIDRs([]string) error                                 { return errObserves }
