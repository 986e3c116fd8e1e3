package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine/native/monitor"
)

// defaultCommitTimeout is Config.CommitTimeout's.
const defaultCommitTimeout = 30 * time.Second

// Server answers the daemon of one pod.
type Server struct {
	config  *monitor.Config
	runtime Runtime
	hello   monitor.Hello
	reaper  *Reaper
	events  events
	ooms    ooms
	tidy    tidy
	ended   chan struct{} // closed when the monitor is to end

	mu         sync.Mutex
	committed  bool
	ending     bool
	containers map[string]*container // nil while one is being made
}

// New makes a server. The hello names the process and the build; operations are filled in. The reaper may be nil.
func New(config *monitor.Config, runtime Runtime, hello monitor.Hello, reaper *Reaper) *Server {
	hello.Version, hello.MinVersion = monitor.Version, monitor.MinVersion
	for op := range operations {
		hello.Ops = append(hello.Ops, op)
	}
	slices.Sort(hello.Ops)
	if reaper == nil {
		reaper = &Reaper{}
	}
	s := &Server{config: config, runtime: runtime, hello: hello, reaper: reaper,
		ended: make(chan struct{}), containers: map[string]*container{}}
	s.events.states = s.states
	s.ooms = ooms{pod: config.PodCgroup, killed: (*container).killed, live: map[*container]struct{}{}}
	return s
}

// Serve answers until Shutdown, or until it is clear that the pod was never recorded. The listener is closed then.
func (s *Server) Serve(listener *net.UnixListener) error {
	go s.endUncommitted()
	go func() {
		<-s.ended
		_ = listener.Close()
	}()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			select {
			case <-s.ended:
				return nil
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors or memory: the containers go on, and so does the monitor.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go s.answer(monitor.Conn{UnixConn: conn})
	}
}

// endUncommitted ends a monitor whose daemon died before it recorded the pod.
func (s *Server) endUncommitted() {
	timeout := s.config.CommitTimeout
	if timeout <= 0 {
		timeout = defaultCommitTimeout
	}
	ticker := time.NewTicker(timeout)
	defer ticker.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-ticker.C:
		}
		if s.commitExpired() {
			return
		}
	}
}

// commitExpired ends a server without containers that was not told in time that its pod is recorded. It says whether the
// pod is.
func (s *Server) commitExpired() (committed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.committed && len(s.containers) == 0 {
		s.end()
	}
	return s.committed
}

// end is called with mu held.
func (s *Server) end() {
	if !s.ending {
		s.ending = true
		close(s.ended)
	}
}

// call is one request being answered.
type call struct {
	server  *Server
	conn    monitor.Conn
	request monitor.Request
	files   []*os.File // what came with it; take moves them out
}

// operation answers a call with one result; nil, nil is an empty one. errAnswered says that all is sent.
type operation func(c *call) (any, error)

var errAnswered = errors.New("answered")

var operations map[string]operation

func init() {
	operations = map[string]operation{
		monitor.OpHello:      (*call).hello,
		monitor.OpCommit:     (*call).commit,
		monitor.OpCreate:     (*call).create,
		monitor.OpRestore:    (*call).restore,
		monitor.OpStart:      onContainer((*container).start),
		monitor.OpKill:       withArgs((*container).kill),
		monitor.OpWait:       (*call).wait,
		monitor.OpExec:       (*call).exec,
		monitor.OpAttach:     (*call).attach,
		monitor.OpResize:     withArgs((*container).resize),
		monitor.OpCloseStdin: onContainer((*container).closeStdin),
		monitor.OpReopenLog:  onContainer((*container).reopenLog),
		monitor.OpUpdate:     withArgs((*container).update),
		monitor.OpPause:      onContainer((*container).pause),
		monitor.OpResume:     onContainer((*container).resume),
		monitor.OpCheckpoint: (*call).checkpoint,
		monitor.OpDelete:     (*call).delete,
		monitor.OpState:      onContainer(func(c *container) (any, error) { return c.state(), nil }),
		monitor.OpList:       func(c *call) (any, error) { return c.server.states(), nil },
		monitor.OpSubscribe:  (*call).subscribe,
		monitor.OpShutdown:   (*call).shutdown,
	}
}

// answer serves one connection.
func (s *Server) answer(conn monitor.Conn) {
	defer func() { _ = conn.Close() }()
	// The folder's mode keeps others out; this is the second lock.
	if cred, err := conn.PeerCred(); err != nil || int(cred.Uid) != os.Geteuid() {
		return
	}
	c := &call{server: s, conn: conn}
	files, err := conn.Receive(&c.request)
	if err != nil {
		return
	}
	c.files = files
	defer func() { monitor.CloseFiles(c.files) }()
	operation := operations[c.request.Op]
	if operation == nil {
		_ = c.reply(nil, fmt.Errorf("this monitor does not know %q: %w", c.request.Op, errdefs.ErrNotImplemented))
		return
	}
	result, err := operation(c)
	switch c.request.Op {
	case monitor.OpCreate, monitor.OpRestore, monitor.OpExec, monitor.OpDelete:
		defer s.tidy.worked()
	}
	if errors.Is(err, errAnswered) {
		return
	}
	_ = c.reply(result, err)
}

// reply sends one response.
func (c *call) reply(result any, err error, files ...*os.File) error {
	var response monitor.Response
	if err == nil && result != nil {
		response.Result, err = json.Marshal(result)
	}
	if err != nil {
		response = monitor.Response{Error: monitor.ToWire(err)}
	}
	return c.conn.Send(response, files...)
}

// args decodes the argument.
func (c *call) args(into any) error {
	if err := json.Unmarshal(c.request.Args, into); err != nil {
		return fmt.Errorf("decode the argument of %s: %w: %w", c.request.Op, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// gone is done when the client has closed the connection, or sent what says so.
func (c *call) gone(killed func(monitor.ExecKill) bool) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for {
			var kill monitor.ExecKill
			files, err := c.conn.Receive(&kill)
			monitor.CloseFiles(files)
			if err != nil || killed != nil && killed(kill) {
				return
			}
		}
	}()
	return ctx
}

func (c *call) container() (*container, error) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if found := c.server.containers[c.request.ID]; found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("container %s: %w", c.request.ID, errdefs.ErrNotFound)
}

// onContainer makes an operation of a method without argument.
func onContainer(do func(*container) (any, error)) operation {
	return func(c *call) (any, error) {
		found, err := c.container()
		if err != nil {
			return nil, err
		}
		return do(found)
	}
}

// withArgs makes an operation of a method with one.
func withArgs[T any](do func(*container, *T) (any, error)) operation {
	return func(c *call) (any, error) {
		found, err := c.container()
		if err != nil {
			return nil, err
		}
		args := new(T)
		if err := c.args(args); err != nil {
			return nil, err
		}
		return do(found, args)
	}
}

func (c *call) hello() (any, error) { return c.server.hello, nil }

func (c *call) commit() (any, error) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.server.ending {
		return nil, fmt.Errorf("the monitor is ending: %w", errdefs.ErrUnavailable)
	}
	if !c.server.committed {
		// While the daemon attaches the pod's networks.
		go c.server.runtime.Prepare()
	}
	c.server.committed = true
	return nil, nil
}

func (c *call) shutdown() (any, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return nil, fmt.Errorf("the monitor has %d containers: %w", n, errdefs.ErrFailedPrecondition)
	}
	// Answered first: the process may be gone right after.
	if err := c.reply(nil, nil); err != nil {
		return nil, err
	}
	s.end()
	return nil, errAnswered
}

// states lists all containers by id.
func (s *Server) states() []monitor.State {
	s.mu.Lock()
	var all []*container
	for _, c := range s.containers {
		if c != nil {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	states := make([]monitor.State, 0, len(all))
	for _, c := range all {
		states = append(states, c.state())
	}
	slices.SortFunc(states, func(a, b monitor.State) int { return strings.Compare(a.ID, b.ID) })
	return states
}

// fallbackExitFile takes an exit that cannot be written where it belongs (a full disk): the run directory is in memory.
func (s *Server) fallbackExitFile(id string) string {
	return filepath.Join(s.config.Dir, monitor.FallbackExitName(id))
}
