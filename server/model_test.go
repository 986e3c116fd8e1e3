package server

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A stage is how far an object of CRI has come. No object goes back, which is what makes the answers of calls that
// overlap checkable without a search: an answer is right if its stage is not below what was known before the call began,
// and not above what calls that had begun by its end could have brought about.
type stage int

const (
	created stage = iota // a container only
	running              // a pod: READY
	exited               // a pod: NOTREADY
	removed
)

func (s stage) String() string { return [...]string{"CREATED", "RUNNING", "EXITED", "REMOVED"}[s] }

// model is what every client knows of a pod or container. Its mutex is the model's, held only to read and write the model.
type model struct {
	mu   *sync.Mutex
	id   string
	name string
	pod  *model // nil for a pod
	// known is the least stage that a finished call has proven.
	known stage
	// starts, stopping and removing are the calls begun; started is the starts that succeeded.
	starts, started    int
	stopping, removing bool
	// stopped: a StopPodSandbox succeeded. A pod is NOTREADY before, as soon as one begins, while its containers still run.
	stopped    bool
	containers map[string]*model // of a pod, by id
}

// possible is the last stage that calls which have begun can have brought about. It requires mu.
func (m *model) possible() stage {
	switch {
	case m.removing || m.pod != nil && m.pod.removing:
		return removed
	case m.pod == nil && m.stopping:
		return exited
	case m.pod == nil:
		return running
	case m.starts > 0 && (m.stopping || m.pod.stopping):
		return exited
	case m.starts > 0:
		return running
	}
	return created
}

// least is known, and what is known of the pod. It requires mu.
func (m *model) least() stage {
	if m.pod == nil {
		return m.known
	}
	if m.pod.known == removed {
		return removed
	}
	if m.known == running && m.pod.stopped {
		return exited
	}
	return m.known
}

// before is what was known when a call about m began.
type before struct {
	least stage
	// podEnded: the pod was known to be NOTREADY, so nothing could be started or made in it any more.
	podEnded bool
	// podStopped: nothing in it could run any more.
	podStopped bool
}

func (m *model) begin(mark func()) before {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mark != nil {
		mark()
	}
	return m.before()
}

// before requires mu.
func (m *model) before() before {
	return before{m.least(), m.pod != nil && m.pod.known >= exited, m.pod != nil && m.pod.stopped}
}

// saw checks an answer that tells m's stage, and learns from it.
func (m *model) saw(call string, b before, now stage) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case now < b.least:
		return fmt.Errorf("%s says that %s is %s, which was %s before the call", call, m.name, now, b.least)
	case now > m.possible():
		return fmt.Errorf("%s says that %s is %s, and nothing that was begun makes it more than %s", call, m.name, now, m.possible())
	case now == running && b.podStopped:
		return fmt.Errorf("%s says that %s runs, and its pod was stopped before the call", call, m.name)
	}
	m.known = max(m.known, now)
	return nil
}

// reached checks that m can be at the stage once a call that brings it there succeeded, and learns that it is.
func (m *model) reached(now stage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = max(m.known, now)
}

// needsRunning judges the answer of a call that only a running container answers.
func (m *model) needsRunning(call string, b before, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	most := m.possible()
	switch status.Code(err) {
	case codes.OK:
		if b.least > running || b.podStopped || most < running {
			return fmt.Errorf("%s of %s succeeded, which was %s before it and could be %s at most", call, m.name, b.least, most)
		}
		m.known = max(m.known, running)
	case codes.FailedPrecondition:
		// It cannot have run all through the call.
		if b.least == running && most == running {
			return fmt.Errorf("%s of %s, which ran all through it: %w", call, m.name, err)
		}
	case codes.NotFound:
		if most < removed {
			return fmt.Errorf("%s of %s, which nobody removes: %w", call, m.name, err)
		}
	default:
		return fmt.Errorf("%s of %s: %w", call, m.name, err)
	}
	return nil
}

func containerStage(s runtimeapi.ContainerState) (stage, error) {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return created, nil
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return running, nil
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return exited, nil
	}
	return 0, fmt.Errorf("a container is %s", s)
}

func podStage(s runtimeapi.PodSandboxState) stage {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return running
	}
	return exited
}
