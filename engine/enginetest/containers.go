package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"crishim/crilog"
	"crishim/engine"

	"github.com/containerd/errdefs"
)

// memoryContainer is guarded by Memory.mu, but for output.
type memoryContainer struct {
	id        engine.ContainerID
	spec      engine.ContainerSpec
	image     engine.Image
	resources engine.Resources
	state     engine.ContainerState
	created   time.Time
	started   time.Time
	finished  time.Time
	code      int
	reason    string
	message   string
	oom       bool

	proc   *program
	exited chan struct{}
	log    *crilog.Writer // nil without a log
	output *output
	stdin  *io.PipeWriter // nil without stdin
}

func (c *memoryContainer) status() engine.ContainerStatus {
	spec := c.spec
	spec.Resources = c.resources
	st := engine.ContainerStatus{
		ID: c.id, Pod: c.spec.Pod, PodKey: c.spec.PodKey, Key: c.spec.Key, State: c.state,
		CreatedAt: c.created, StartedAt: c.started, FinishedAt: c.finished,
		ExitCode: int32(c.code), Reason: c.reason, Message: c.message,
		ImageID: c.image.ID, StopSignal: c.spec.StopSignal, Spec: &spec,
	}
	if st.StopSignal == "" {
		st.StopSignal = c.image.StopSignal
	}
	if st.StopSignal == "" {
		st.StopSignal = "SIGTERM"
	}
	if !c.started.IsZero() {
		st.User = c.user()
	}
	return st
}

func (c *memoryContainer) user() *engine.User {
	u := &engine.User{}
	if c.image.UID != nil {
		u.UID = *c.image.UID
	}
	if c.spec.Security.UID != nil {
		u.UID = *c.spec.Security.UID
	}
	if c.spec.Security.GID != nil {
		u.GID = *c.spec.Security.GID
	}
	u.Groups = append([]int64{u.GID}, c.spec.Security.SupplementalGroups...)
	return u
}

// argv is what the image and the spec say together, as in the OCI image specification.
func (c *memoryContainer) argv() []string {
	command, args := c.spec.Command, c.spec.Args
	if len(command) == 0 {
		command = c.image.Entrypoint
		if len(args) == 0 {
			args = c.image.Cmd
		}
	}
	return slices.Concat(command, args)
}

// CreateContainer implements engine.Containers.
func (m *Memory) CreateContainer(ctx context.Context, spec *engine.ContainerSpec) (engine.ContainerStatus, error) {
	done, err := m.begin(ctx, "CreateContainer")
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[spec.Pod] == nil {
		return engine.ContainerStatus{}, notFound("pod", string(spec.Pod))
	}
	image, ok := m.images[spec.Image.ID]
	if !ok {
		return engine.ContainerStatus{}, notFound("image", string(spec.Image.ID))
	}
	for _, c := range m.containers {
		if c.spec.Pod == spec.Pod && c.spec.Key == spec.Key {
			m.dropContainer(c)
		}
	}
	c := &memoryContainer{
		id: engine.ContainerID(newID()), spec: *spec, image: image, resources: spec.Resources,
		state: engine.ContainerCreated, created: time.Now(), exited: make(chan struct{}), output: &output{},
	}
	m.containers[c.id] = c
	m.tellContainer(c)
	return c.status(), done()
}

// StartContainer implements engine.Containers.
func (m *Memory) StartContainer(ctx context.Context, id engine.ContainerID, _ *engine.ContainerSpec) (engine.ContainerStatus, error) {
	done, err := m.begin(ctx, "StartContainer")
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[id]
	switch {
	case c == nil:
		return engine.ContainerStatus{}, notFound("container", string(id))
	case c.state != engine.ContainerCreated:
		return c.status(), fmt.Errorf("start container %s: it is %s: %w", id, c.state, errdefs.ErrFailedPrecondition)
	case m.pods[c.spec.Pod] == nil || !m.pods[c.spec.Pod].running:
		return c.status(), fmt.Errorf("start container %s: its pod does not run: %w", id, errdefs.ErrFailedPrecondition)
	}
	if argv := c.argv(); len(argv) > 0 && path.Base(argv[0]) == "missing" {
		c.state, c.started = engine.ContainerExited, time.Now()
		c.finished, c.code, c.reason = c.started, codeNotFound, engine.ReasonStartError
		c.message = argv[0] + ": no such file or directory"
		close(c.exited)
		m.tellContainer(c)
		return c.status(), fmt.Errorf("start container %s: %s: %w", id, c.message, errdefs.ErrInvalidArgument)
	}
	if c.spec.LogPath != "" {
		if c.log, err = crilog.Open(filepath.Dir(c.spec.LogPath), c.spec.LogPath, 0); err != nil {
			return c.status(), fmt.Errorf("start container %s: %w", id, err)
		}
	}
	m.launch(c)
	m.tellContainer(c)
	return c.status(), done()
}

// launch runs the container's process until it ends. It requires mu.
func (m *Memory) launch(c *memoryContainer) {
	var stdin io.Reader
	var input *io.PipeReader
	if c.spec.Stdin {
		input, c.stdin = io.Pipe()
		stdin = input
	}
	stdout := writerFunc(func(b []byte) { c.output.write(c.log, crilog.Stdout, b) })
	stderr := writerFunc(func(b []byte) { c.output.write(c.log, crilog.Stderr, b) })
	if c.spec.TTY {
		stderr = stdout
	}
	// The process outlives the call that started it.
	c.proc = newProgram(context.Background(), stdin, stdout, stderr)
	c.state, c.started = engine.ContainerRunning, time.Now()
	m.processes.Go(func() {
		code := c.proc.run(c.argv(), commands["run"])
		c.proc.kill()
		if input != nil {
			_ = input.Close()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if c.log != nil {
			_ = c.log.Close()
		}
		c.state, c.finished, c.code, c.reason = engine.ContainerExited, time.Now(), code, engine.ReasonError
		switch {
		case c.oom:
			c.reason = engine.ReasonOOMKilled
		case code == 0:
			c.reason = engine.ReasonCompleted
		}
		close(c.exited)
		if m.containers[c.id] == c {
			m.tellContainer(c)
		}
	})
}

// StopContainer implements engine.Containers.
func (m *Memory) StopContainer(ctx context.Context, id engine.ContainerID, grace time.Duration) error {
	done, err := m.begin(ctx, "StopContainer")
	if err != nil {
		return err
	}
	m.mu.Lock()
	c := m.containers[id]
	if c == nil || c.proc == nil {
		defer m.mu.Unlock()
		return done()
	}
	proc := c.proc
	m.mu.Unlock()
	if grace > 0 {
		proc.terminate()
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.exited:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	proc.kill()
	<-c.exited
	m.mu.Lock()
	defer m.mu.Unlock()
	return done()
}

// RemoveContainer implements engine.Containers.
func (m *Memory) RemoveContainer(ctx context.Context, id engine.ContainerID) error {
	done, err := m.begin(ctx, "RemoveContainer")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[id]; c != nil {
		m.dropContainer(c)
	}
	return done()
}

// dropContainer requires mu.
func (m *Memory) dropContainer(c *memoryContainer) {
	if c.proc != nil {
		c.proc.kill()
	}
	delete(m.containers, c.id)
	m.tell(func(s engine.Sink) { s.ContainerRemoved(c.id) })
}

// UpdateContainer implements engine.Containers.
func (m *Memory) UpdateContainer(ctx context.Context, id engine.ContainerID, resources *engine.Resources) error {
	done, err := m.begin(ctx, "UpdateContainer")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[id]
	if c == nil {
		return notFound("container", string(id))
	}
	if c.state == engine.ContainerExited {
		return fmt.Errorf("update container %s: it has exited: %w", id, errdefs.ErrFailedPrecondition)
	}
	c.resources = *resources
	m.tellContainer(c)
	return done()
}

// Resources are those in effect, to look at what UpdateContainer did.
func (m *Memory) Resources(id engine.ContainerID) (engine.Resources, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[id]
	if c == nil {
		return engine.Resources{}, false
	}
	return c.resources, true
}

// ReopenLog implements engine.Containers.
func (m *Memory) ReopenLog(ctx context.Context, id engine.ContainerID) error {
	done, err := m.begin(ctx, "ReopenLog")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c, err := m.running(id)
	if err != nil {
		return err
	}
	if c.log != nil {
		if err := c.log.Reopen(); err != nil {
			return fmt.Errorf("reopen the log of container %s: %w", id, err)
		}
	}
	return done()
}

// running requires mu.
func (m *Memory) running(id engine.ContainerID) (*memoryContainer, error) {
	c := m.containers[id]
	if c == nil {
		return nil, notFound("container", string(id))
	}
	if c.state != engine.ContainerRunning {
		return nil, fmt.Errorf("container %s does not run: %w", id, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// ContainerStatus implements engine.Containers.
func (m *Memory) ContainerStatus(ctx context.Context, id engine.ContainerID) (engine.ContainerStatus, error) {
	done, err := m.begin(ctx, "ContainerStatus")
	if err != nil {
		return engine.ContainerStatus{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[id]
	if c == nil {
		return engine.ContainerStatus{}, notFound("container", string(id))
	}
	return c.status(), done()
}

// CheckpointContainer implements engine.Containers.
func (m *Memory) CheckpointContainer(ctx context.Context, id engine.ContainerID, location string) error {
	done, err := m.begin(ctx, "CheckpointContainer")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.opts.Info.Features.Checkpoint {
		return fmt.Errorf("checkpoint container %s: not a feature of this engine: %w", id, errdefs.ErrNotImplemented)
	}
	if _, err := m.running(id); err != nil {
		return err
	}
	if err := os.WriteFile(location, []byte("checkpoint of "+id), 0o600); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	return done()
}

// Exec implements engine.Execs.
func (m *Memory) Exec(ctx context.Context, id engine.ContainerID, exec *engine.ExecSpec) (int, error) {
	done, err := m.begin(ctx, "Exec")
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	c, err := m.running(id)
	m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	// The end of the container ends what was run in it, as the end of a PID namespace does.
	execCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(c.proc.killed, cancel)
	defer stop()
	code, err := runExec(execCtx, exec.Command, &exec.Streams)
	if err != nil && ctx.Err() == nil {
		code, err = codeKilled, nil
	}
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return code, done()
}

// Attach implements engine.Execs.
func (m *Memory) Attach(ctx context.Context, id engine.ContainerID, streams *engine.Streams) error {
	done, err := m.begin(ctx, "Attach")
	if err != nil {
		return err
	}
	m.mu.Lock()
	c, err := m.running(id)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	detach := c.output.attach(streams)
	defer detach()
	left := make(chan struct{})
	if streams.Stdin != nil && c.stdin != nil {
		go func() {
			_, err := io.Copy(c.stdin, streams.Stdin)
			// A client that went away is no end of input; the end of a stdin-once stream is.
			switch {
			case err != nil:
			case c.spec.StdinOnce && !c.spec.TTY:
				_ = c.stdin.Close()
			default:
				close(left)
			}
		}()
	}
	select {
	case <-c.exited:
	case <-left:
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return done()
}

// output sends what a container writes to its log and to everybody attached.
type output struct {
	mu       sync.Mutex
	attached map[*engine.Streams]struct{}
}

func (o *output) attach(streams *engine.Streams) (detach func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.attached == nil {
		o.attached = map[*engine.Streams]struct{}{}
	}
	o.attached[streams] = struct{}{}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.attached, streams)
	}
}

func (o *output) write(log *crilog.Writer, stream crilog.Stream, b []byte) {
	if log != nil {
		log.WriteText(time.Now(), stream, b)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.attached {
		w := s.Stdout
		if stream == crilog.Stderr {
			w = s.Stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(b); err != nil && !errors.Is(err, io.ErrShortWrite) {
			delete(o.attached, s)
		}
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}
