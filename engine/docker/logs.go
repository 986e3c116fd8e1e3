package docker

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"k8s.io/klog/v2"

	"crishim/engine"
	"crishim/engine/docker/logpump"
	"crishim/internal/failpoint"
)

// finishLimit bounds the wait for a log that cannot be written (a full or frozen disk) before an exit is reported.
const finishLimit = 10 * time.Second

// logs make each container's CRI log: pumped from Docker's json-file, or a link to it. What a container's log is shows at
// its path: one that was begun as a file goes on as such where new ones are links.
type logs struct {
	e     *Engine
	pumps *logpump.Pumps
	// links makes new logs links.
	links bool
	// finished are the exited containers whose logs are complete, so that each Resync does not open all of them again.
	finished sync.Map // engine.ContainerID → struct{}
	// unlinked are containers whose log another shim is about to link.
	unlinked sync.Map // engine.ContainerID → struct{}
}

func newLogs(ctx context.Context, e *Engine) (*logs, error) {
	pumps, err := logpump.New(ctx, logpump.Options{Dir: filepath.Join(e.opts.RootDir, "logs")})
	return &logs{e: e, pumps: pumps, links: e.opts.ContainerLog == ContainerLogJSONFile}, err
}

func (l *logs) close() { l.pumps.Close() }

// podLogs is where kubelets keep the logs of pods.
const podLogs = "/var/log/pods"

// trustedRoot is the folder below which no link is followed: the pod's, or for a container of another shim, which did
// not keep that, the kubelet's, or at least the file's own.
func trustedRoot(logPath, logDirectory string) string {
	for _, dir := range []string{logDirectory, podLogs} {
		if dir != "" && strings.HasPrefix(logPath, strings.TrimSuffix(dir, "/")+"/") {
			return dir
		}
	}
	return filepath.Dir(logPath)
}

// start begins or goes on. jsonPath is "" with a log driver that writes none.
func (l *logs) start(id engine.ContainerID, jsonPath, logPath, logDirectory string, tty bool) error {
	root := trustedRoot(logPath, logDirectory)
	if l.links && jsonPath != "" {
		err := logpump.Link(logPath, root, jsonPath)
		if !errdefs.IsFailedPrecondition(err) {
			return err
		}
	}
	err := failpoint.Around("log.takeover", func() error { return logpump.TakeOver(logPath, root, jsonPath, l.pumps.Knows(string(id))) })
	if err != nil {
		return err
	}
	return l.pumps.Start(logpump.Container{
		ID: string(id), JSONPath: jsonPath, Source: l.source(id), LogPath: logPath, LogRoot: root, TTY: tty,
	})
}

// source reads through the API, for the containers of another shim whose log driver writes no json-file.
func (l *logs) source(id engine.ContainerID) logpump.Source {
	return func(ctx context.Context, since time.Time) (io.ReadCloser, error) {
		s, err := l.e.session()
		if err != nil {
			return nil, err
		}
		options := container.LogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: true}
		if !since.IsZero() {
			options.Since = strconv.FormatInt(since.Unix(), 10) + "." + fmt.Sprintf("%09d", since.Nanosecond())
		}
		return s.cli.ContainerLogs(ctx, string(id), options)
	}
}

// finish completes the log of an exited container.
func (l *logs) finish(ctx context.Context, id engine.ContainerID) error {
	err := l.pumps.Finish(ctx, string(id))
	if err == nil {
		l.finished.Store(id, struct{}{})
	}
	return err
}

// complete says that the container was seen to have exited and its whole log was written.
func (l *logs) complete(id engine.ContainerID) bool {
	_, finished := l.finished.Load(id)
	return finished
}

// forget drops what is remembered of a removed container.
func (l *logs) forget(id engine.ContainerID) error {
	l.finished.Delete(id)
	l.unlinked.Delete(id)
	return l.pumps.Forget(string(id))
}

// forgetOthers drops what is remembered of containers that went while nobody looked.
func (l *logs) forgetOthers(there map[string]seenObject) {
	known, err := l.pumps.Known()
	for _, id := range known {
		if _, ok := there[id]; !ok && err == nil {
			err = l.forget(engine.ContainerID(id))
		}
	}
	if err != nil {
		klog.ErrorS(err, "Cannot forget the logs of removed containers")
	}
}

// linkOf is where the log of a container is a link that goes with it, as the old shims' did; "" where it is a file, which
// stays for the kubelet.
func (l *logs) linkOf(in *container.InspectResponse) (logPath, root string) {
	logPath = in.Config.Labels[labelLogPath]
	if target, err := os.Readlink(logPath); err != nil || target != in.LogPath {
		return "", ""
	}
	return logPath, trustedRoot(logPath, in.Config.Labels[labelLogDirectory])
}

// linkedBy is how long after a container's start another shim may take to link its log.
const linkedBy = 10 * time.Second

// awaitsLink says that another shim, which has just started the container, has not linked its log yet: it would put its
// link in the place of whatever is there.
func (l *logs) awaitsLink(in *container.InspectResponse, status *engine.ContainerStatus) bool {
	_, waits := l.unlinked.Load(status.ID) // it may have been adopted meanwhile
	if r := l.e.opts.Recorded; !waits && (r == nil || r(in.ID)) || status.StartedAt.IsZero() {
		return false
	}
	// Abs: a clock that was set back must not leave it without a log until it has caught up.
	if _, err := os.Lstat(in.Config.Labels[labelLogPath]); os.IsNotExist(err) && time.Since(status.StartedAt).Abs() <= linkedBy {
		l.unlinked.Store(status.ID, struct{}{})
		return true
	}
	l.unlinked.Delete(status.ID)
	return false
}

// follow keeps the log of a container that the engine shows running, and completes it once it has exited. later says that
// it is too early to begin.
func (l *logs) follow(ctx context.Context, in *container.InspectResponse, status *engine.ContainerStatus) (later bool) {
	logPath := in.Config.Labels[labelLogPath]
	if l.e.opts.Observe || logPath == "" || in.HostConfig.LogConfig.Type == "" || in.HostConfig.LogConfig.Type == "none" {
		return false
	}
	if l.awaitsLink(in, status) {
		return true
	}
	var err error
	switch status.State {
	case engine.ContainerRunning:
		l.finished.Delete(status.ID) // of a container that somebody started again
		err = l.start(status.ID, in.LogPath, logPath, in.Config.Labels[labelLogDirectory], in.Config.Tty)
	case engine.ContainerExited:
		if l.complete(status.ID) {
			return false
		}
		if err = l.start(status.ID, in.LogPath, logPath, in.Config.Labels[labelLogDirectory], in.Config.Tty); err == nil {
			err = l.finish(ctx, status.ID)
		}
	}
	if err != nil && ctx.Err() == nil {
		klog.ErrorS(err, "Cannot write a container's log", "id", status.ID, "path", logPath)
	}
	return false
}

// jsonPath is where dockerd writes a container's json-file: known before it runs.
func jsonPath(f *facts, id engine.ContainerID) string {
	return filepath.Join(f.rootDir, "containers", string(id), string(id)+"-json.log")
}

// ReopenLog goes on in a new file.
func (e *Engine) ReopenLog(ctx context.Context, id engine.ContainerID) error {
	l := e.logs.Load()
	switch {
	case !validID(string(id)):
		return notFound("container", string(id))
	case l == nil:
		return fmt.Errorf("reopen the log of container %s: %w", id, errAway)
	}
	err := l.pumps.Reopen(ctx, string(id))
	if l.links && errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("with the container log %q Docker rotates the logs itself: %w", ContainerLogJSONFile, errdefs.ErrNotImplemented)
	}
	return err
}

// LogStats counts what was written to CRI logs and what was lost, for metrics.
func (e *Engine) LogStats() logpump.Stats {
	if l := e.logs.Load(); l != nil {
		return l.pumps.Stats()
	}
	return logpump.Stats{}
}
