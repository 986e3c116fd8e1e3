package docker

import (
	"context"
	"errors"
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

// forgetLimit bounds the wait for the logs of removed containers that are being written: on a disk that hangs they end by themselves
// when it answers.
const forgetLimit = time.Second

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
	// owed are containers whose log could not be begun or completed at the last look, for want of space or descriptors.
	owed sync.Map // engine.ContainerID → struct{}
	// opening are logs that are being begun.
	opening sync.Map // engine.ContainerID → *opening
}

// opening is a log that is being begun, which on a disk that hangs does not end before that answers.
type opening struct {
	done chan struct{} // closed when err is set
	err  error
}

func newLogs(ctx context.Context, e *Engine) (*logs, error) {
	pumps, err := logpump.New(ctx, logpump.Options{Dir: filepath.Join(e.opts.RootDir, "logs"), MaxSize: e.opts.ContainerLogMaxSize})
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

// start begins or goes on. jsonPath is "" with a log driver that writes none. When ctx ends first its error is returned, and the log
// is begun when its disk answers: whoever starts it meanwhile waits for that.
func (l *logs) start(ctx context.Context, id engine.ContainerID, jsonPath, logPath, logDirectory string, tty bool) error {
	o := &opening{done: make(chan struct{})}
	if other, opens := l.opening.LoadOrStore(id, o); opens {
		o = other.(*opening)
	} else {
		go func() {
			o.err = l.open(id, jsonPath, logPath, logDirectory, tty)
			l.opening.Delete(id)
			close(o.done)
		}()
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return fmt.Errorf("its disk does not answer: %w", ctx.Err())
	}
}

func (l *logs) open(id engine.ContainerID, jsonPath, logPath, logDirectory string, tty bool) error {
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

// begin is start by what an inspect says.
func (l *logs) begin(ctx context.Context, in *container.InspectResponse) error {
	labels := in.Config.Labels
	return l.start(ctx, engine.ContainerID(in.ID), in.LogPath, labels[labelLogPath], labels[labelLogDirectory], in.Config.Tty)
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

// owes says that nothing is written to the container's log although there may be something to write.
func (l *logs) owes(id engine.ContainerID) bool {
	_, owed := l.owed.Load(id)
	return owed
}

// note keeps in mind whether a log has to be tried again, and tells the first time. A path that is not safe stays so.
func (l *logs) note(id engine.ContainerID, logPath string, err error) {
	switch {
	case err == nil:
		l.owed.Delete(id)
	case errdefs.IsInvalidArgument(err):
		l.owed.Delete(id)
		klog.ErrorS(err, "Cannot write a container's log", "id", id, "path", logPath)
	default:
		if _, told := l.owed.LoadOrStore(id, struct{}{}); !told {
			klog.ErrorS(err, "Cannot write a container's log now, it is tried again", "id", id, "path", logPath)
		}
	}
}

// forget drops what is remembered of a removed container.
func (l *logs) forget(ctx context.Context, id engine.ContainerID) error {
	l.finished.Delete(id)
	l.unlinked.Delete(id)
	l.owed.Delete(id)
	ctx, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	if o, opens := l.opening.Load(id); opens {
		done := o.(*opening).done
		select {
		case <-done:
		case <-ctx.Done():
			go func() {
				<-done
				_ = l.pumps.Forget(context.WithoutCancel(ctx), string(id)) // what is left the next connect removes
			}()
		}
	}
	err := l.pumps.Forget(ctx, string(id))
	if err != nil && ctx.Err() != nil {
		klog.InfoS("The log of a removed container is forgotten when its disk answers", "id", id)
		return nil
	}
	return err
}

// forgetOthers drops what is remembered of containers that went while nobody looked.
func (l *logs) forgetOthers(ctx context.Context, there map[string]seenObject) {
	ctx, cancel := context.WithTimeout(ctx, forgetLimit) // of all together
	defer cancel()
	l.owed.Range(func(id, _ any) bool { // without a position
		if _, ok := there[string(id.(engine.ContainerID))]; !ok {
			l.owed.Delete(id)
		}
		return true
	})
	known, err := l.pumps.Known()
	for _, id := range known {
		if _, ok := there[id]; !ok && err == nil {
			err = l.forget(ctx, engine.ContainerID(id))
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

// writes says that the container has a log, and something that it can be written from.
func (l *logs) writes(in *container.InspectResponse) bool {
	driver := in.HostConfig.LogConfig.Type
	return !l.e.opts.Observe && in.Config.Labels[labelLogPath] != "" && driver != "" && driver != "none"
}

// follow keeps the log of a container that the engine shows running, and completes it once it has exited. later says that
// it is too early to begin. What fails is owed, and tried again when the watcher compares next: not each second as what is too
// early, since a disk that is full keeps all logs of the node waiting.
func (l *logs) follow(ctx context.Context, in *container.InspectResponse, status *engine.ContainerStatus) (later bool) {
	if !l.writes(in) {
		return false
	}
	if l.awaitsLink(in, status) {
		return true
	}
	if _, hangs := l.opening.Load(status.ID); hangs { // an earlier look has waited for it, and others' looks wait for this one
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, snapshotLogLimit)
		defer cancel()
	}
	var err error
	switch status.State {
	case engine.ContainerRunning:
		l.finished.Delete(status.ID) // of a container that somebody started again
		err = l.begin(ctx, in)
	case engine.ContainerExited:
		if l.complete(status.ID) {
			return false
		}
		if err = l.begin(ctx, in); err != nil {
			break
		}
		if err = l.finish(ctx, status.ID); ctx.Err() != nil {
			err = nil // the pump goes on by itself, and ends when all is written
		}
	default:
		return false
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return false // the next session looks again
	}
	l.note(status.ID, in.Config.Labels[labelLogPath], err)
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
