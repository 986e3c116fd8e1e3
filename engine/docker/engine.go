// Package docker is engine.Engine on a Docker Engine of this host, through its API 1.41 (Docker 20.10) to 1.51.
//
// A caller makes one Engine with New, runs Watch for as long as the daemon lives, and calls the other methods while the
// sink's last Health is ready; otherwise they answer ErrUnavailable at once. This package and its sub-packages are the
// only ones that see the Docker client.
//
// Pods are made as dockershim made them: a pause container holds the namespaces, containers join it; names, labels and
// the annotation prefix are dockershim's, so that its pods and cri-dockerd's are served like our own and ours can be
// taken back. What to create is decided by pure functions (lower.go), what is seen is read by pure functions (status.go).
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/docker/imagestore"
	"crishim/internal/failpoint"
)

// Name is the engine's name in records and among runtime handlers.
const Name = "docker"

// The values of Options.ContainerLog and Options.Network.
const (
	ContainerLogCRI      = "cri"
	ContainerLogJSONFile = "json-file"
	NetworkCNI           = "cni"
	NetworkBridge        = "docker-bridge"
)

// Options say how to use the engine. Socket, RunDir and RootDir are required.
type Options struct {
	// Socket is the engine's: a unix:// address. Other addresses are other hosts, whose pods cannot be served.
	Socket string
	// RunDir is gone after a reboot: the pins of network namespaces are in its folder "netns", files of pods in "pods" and "podfiles", prepared mounts in "mounts".
	RunDir string
	// RootDir is kept: where the log of each container has got to, and what the image store remembers.
	RootDir string
	// ContainerLog is ContainerLogCRI (the default: CRI log files written by us) or ContainerLogJSONFile (dockershim's
	// symbolic links to Docker's files).
	ContainerLog string
	// LogMaxSize (bytes) and LogMaxFiles bound Docker's own copy of each container's output. Defaults: 50 MiB and 3.
	LogMaxSize  int64
	LogMaxFiles int
	// ContainerLogMaxSize (bytes) bounds each container's CRI log, which is then set aside and begun anew; 0 is no bound.
	ContainerLogMaxSize int64
	// Network is NetworkCNI (the default) or NetworkBridge.
	Network string
	// GiveBack makes pods whose files in /etc Docker has, as those of the old shims, which can take them back then.
	GiveBack bool
	// The rest but the last is imagestore's: see imagestore.Options. PullNoProgress is for the pause image.
	RegistryConfigDirs []string
	NodeAuth           []string
	TokenServers       []string
	PauseImage         string
	Pinned             []string
	PullNoProgress     time.Duration
	ImageFSInterval    time.Duration
	// Recorded says whether the caller has a record of a container, or of a pod, by its id: it is ours then whatever name
	// somebody gave it. nil knows of none.
	Recorded func(id string) bool
	// PodSpec is what a pod was made from, nil where the caller does not know; nil knows of none.
	PodSpec func(id engine.PodID) *engine.PodSpec
	// Observe changes nothing anywhere: no log is written, no network namespace pinned, and the engine gets no request but
	// those that read. What makes or changes something fails.
	Observe bool
	// TracerProvider traces requests to the engine; nil traces nothing.
	TracerProvider trace.TracerProvider

	// Of tests.
	pingLimit  time.Duration
	cgroupRoot string
}

func (o *Options) complete() error {
	o.pingLimit, o.cgroupRoot = cmp.Or(o.pingLimit, pingLimit), cmp.Or(o.cgroupRoot, cgroupRoot)
	var errs []error
	if path, ok := strings.CutPrefix(o.Socket, "unix://"); !ok || !filepath.IsAbs(path) {
		errs = append(errs, fmt.Errorf("docker socket %q: only unix:///PATH is supported, the engine must run on this host", o.Socket))
	}
	for _, dir := range []struct{ what, path string }{{"run", o.RunDir}, {"root", o.RootDir}} {
		if !filepath.IsAbs(dir.path) {
			errs = append(errs, fmt.Errorf("docker %s folder %q is not absolute", dir.what, dir.path))
		}
	}
	switch o.ContainerLog {
	case "":
		o.ContainerLog = ContainerLogCRI
	case ContainerLogCRI, ContainerLogJSONFile:
	default:
		errs = append(errs, fmt.Errorf("container log %q: it is %q or %q", o.ContainerLog, ContainerLogCRI, ContainerLogJSONFile))
	}
	switch o.Network {
	case "":
		o.Network = NetworkCNI
	case NetworkCNI, NetworkBridge:
	default:
		errs = append(errs, fmt.Errorf("network %q: it is %q or %q", o.Network, NetworkCNI, NetworkBridge))
	}
	if o.LogMaxSize == 0 {
		o.LogMaxSize = 50 << 20
	}
	if o.LogMaxFiles == 0 {
		o.LogMaxFiles = 3
	}
	if o.LogMaxSize < 0 || o.LogMaxFiles < 1 {
		errs = append(errs, fmt.Errorf("docker log bounds of %d files with %d bytes", o.LogMaxFiles, o.LogMaxSize))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Engine drives one Docker Engine. Make it with New.
type Engine struct {
	engine.Images
	images *imagestore.Store
	opts   Options
	// logs are there while Watch runs.
	logs     atomic.Pointer[logs]
	pins     pins
	podFiles podFiles
	mounts   hostMounts
	users    userCache
	probes   sync.Map // names of those in use
	execs    execWaiters
	own      ownActions
	starts   *turns // of pause containers
	oom      oomKills
	// cgroups are of containers that are not removed.
	cgroups containerCgroups
	// byFile are the limits last written to cgroup files, by container: Docker does not know them.
	byFile sync.Map // engine.ContainerID → engine.Resources
	// processes are the first ones of containers and pods.
	processes firstProcesses
	// pauses are of pods that are not removed.
	pauses pauseContainers
	// current is nil while the engine is away.
	current atomic.Pointer[session]
	info    atomic.Pointer[engine.Info]
	// first is what the first connection found; only Watch uses it.
	first *facts
}

var _ engine.Engine = (*Engine)(nil)

// New prepares the folders; nothing is connected before Watch. Its errors are of ErrInvalidArgument where an option is wrong.
func New(opts Options) (*Engine, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	for _, dir := range []string{opts.RunDir, opts.RootDir} {
		if err := privateDir(dir); err != nil {
			return nil, err
		}
	}
	e := &Engine{
		opts: opts, pins: pins{dir: filepath.Join(opts.RunDir, "netns")},
		podFiles: podFiles{dir: filepath.Join(opts.RunDir, "pods"), mounts: filepath.Join(opts.RunDir, "podfiles")},
		mounts:   hostMounts{dir: filepath.Join(opts.RunDir, "mounts")}, starts: newTurns(),
	}
	for _, dir := range []string{e.pins.dir, e.podFiles.dir, e.podFiles.mounts, e.mounts.dir} {
		if err := privateDir(dir); err != nil {
			return nil, err
		}
	}
	e.images = newImageStore(e)
	e.Images = e.images
	return e, nil
}

// privateDir makes dir, or repairs its mode where it is there and can be changed: on a disk that became read-only what runs is
// served all the same.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}

// Name is "docker".
func (e *Engine) Name() string { return Name }

// Info is what was learnt at the last connect, and since then of where the layers are.
func (e *Engine) Info() engine.Info {
	if info := e.info.Load(); info != nil {
		out := *info
		out.RootDir = cmp.Or(e.images.Root(), out.RootDir)
		return out
	}
	return engine.Info{}
}

// session is one connection: from a successful connect to the first sign that the engine is away.
type session struct {
	cli   *client.Client
	facts *facts
	// life ends with the session; requests in flight end with it.
	life context.Context
	// watch is told of what actions saw.
	watch *watcher
	// recorded is Options.Recorded.
	recorded func(id string) bool
}

// The times that requests may take. An engine that does not answer at all is noticed much sooner, by its pings.
const (
	connectLimit = 5 * time.Second
	quickLimit   = 30 * time.Second
	slowLimit    = 2 * time.Minute
)

var errAway = fmt.Errorf("the Docker Engine does not answer: %w", errdefs.ErrUnavailable)

// session returns the current one, or ErrUnavailable.
func (e *Engine) session() (*session, error) {
	if s := e.current.Load(); s != nil {
		return s, nil
	}
	return nil, errAway
}

// ask makes one request to the engine, or a few that belong together. It ends with ctx, after limit, and when the engine
// goes away; what says what was being done.
func ask[T any](ctx context.Context, e *Engine, what string, limit time.Duration, request func(context.Context, *session) (T, error)) (T, error) {
	var zero T
	s, err := e.session()
	if err != nil {
		return zero, fmt.Errorf("%s: %w", what, err)
	}
	asking, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s: %w", limit, errAway))
	defer cancel()
	asking, away := context.WithCancelCause(asking)
	defer away(nil)
	defer context.AfterFunc(s.life, func() { away(errAway) })()
	answer, err := request(asking, s)
	if err != nil {
		return answer, fmt.Errorf("%s: %w", what, requestError(ctx, asking, err))
	}
	return answer, nil
}

// do is ask for a request without an answer.
func (e *Engine) do(ctx context.Context, what string, limit time.Duration, request func(context.Context, *session) error) error {
	_, err := ask(ctx, e, what, limit, func(ctx context.Context, s *session) (struct{}, error) {
		return struct{}{}, request(ctx, s)
	})
	return err
}

// requestError gives an error of the Docker client its class. The client's answers have one already.
func requestError(caller, asking context.Context, err error) error {
	if caller.Err() != nil {
		return caller.Err()
	}
	if cause := context.Cause(asking); cause != nil && errdefs.IsUnavailable(cause) {
		return cause
	}
	if imagestore.DiskFull(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	if unanswered(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

// unanswered says that a request ended without the engine's answer, and may have been done. Not any net.Error: that is what
// each errno of what this host did beside the request is too.
func unanswered(err error) bool {
	var network *net.OpError
	return client.IsErrConnectionFailed(err) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// unusable is an engine that no retry makes usable.
type unusable struct{ error }

func (u unusable) Unwrap() error { return u.error }

// connect makes a client of its own, so that the API version is negotiated again with what may be another dockerd.
func (e *Engine) connect(ctx context.Context) (*client.Client, *facts, error) {
	socket := strings.TrimPrefix(e.opts.Socket, "unix://")
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression:  true,
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second,
	}
	httpClient := &http.Client{Transport: transport, CheckRedirect: client.CheckRedirect}
	opts := []client.Opt{
		client.WithHTTPClient(httpClient),
		client.WithHost(e.opts.Socket),
		client.WithVersion(""),
	}
	if e.opts.TracerProvider != nil {
		opts = append(opts, client.WithTraceProvider(e.opts.TracerProvider))
	}
	cli, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, nil, err
	}
	httpClient.Transport = failpoint.Transport(httpClient.Transport)
	if e.opts.Observe {
		httpClient.Transport = readOnly{httpClient.Transport}
	}
	info, err := greet(ctx, cli)
	if err == nil {
		if rerr := refuse(&info, cli.ClientVersion()); rerr != nil {
			err = unusable{rerr}
		}
	}
	if err != nil {
		_ = cli.Close()
		return nil, nil, err
	}
	return cli, newFacts(&info, cli.ClientVersion(), &e.opts, restrictedOOMScoreAdj(), canPrepareMounts(ctx, socket, e.mounts.dir)), nil
}

// greet negotiates the API version and asks what the engine is.
func greet(ctx context.Context, cli *client.Client) (system.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	ping, err := cli.Ping(ctx)
	if err != nil {
		return system.Info{}, err
	}
	cli.NegotiateAPIVersionPing(ping)
	return cli.Info(ctx)
}
