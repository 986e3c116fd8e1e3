// Package serve owns the inside of a pod's monitor but for libcontainer: the table of containers, their stdio, logs and
// attached clients, execs, the durable record of an exit, and the answers to the daemon's requests.
//
// cmd/monitor gives it a Runtime (engine/native/run) and a listening socket, and ends when Serve returns.
package serve

import (
	"context"
	"encoding/json"
	"os"

	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
)

// Runtime makes containers.
type Runtime interface {
	// Prepare does beforehand what the first container would wait for. It changes nothing.
	Prepare()
	// Plan checks a specification and changes nothing. It may run processes of its own, and waits for them.
	Plan(id string, args *monitor.CreateArgs) (Plan, error)
	// Remove kills and removes what a monitor that died left of a container. OK when absent.
	Remove(id string) error
}

// Plan is a container to be made.
type Plan interface {
	Terminal() bool
	// Owner is the host's ids of the container's root, to which its pipes must belong.
	Owner() (uid, gid int)
	// Create makes the process, which waits for Container.Start. A *monitor.StartError where it cannot start.
	Create(stdio Stdio) (Container, error)
	// Restore makes it from a checkpoint, running.
	Restore(stdio Stdio, args *monitor.RestoreArgs) (Container, error)
}

// Stdio is what a new process gets. With a terminal only Console is set: the end of a socket to which the terminal's
// master is sent. All stay the caller's.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	Console               *os.File
}

// Process is a child of the monitor.
type Process interface {
	PID() int
	// Wait reaps it, once, after it has exited.
	Wait() (unix.WaitStatus, error)
}

// Container is a container with its first process. Its methods may be called at once.
type Container interface {
	Process
	Start() error
	// Signal is for the first process, KillAll for all; OK when there is none.
	Signal(sig unix.Signal) error
	KillAll() error
	// SharesPIDs says that the first process's end does not end the others.
	SharesPIDs() bool
	// Exec runs a process (OCI specs.Process). A *monitor.StartError where it cannot start. One that has not started when ctx
	// ends is killed: the container's files may hold it up, such as a FIFO in the place of /etc/passwd.
	Exec(ctx context.Context, process json.RawMessage, stdio Stdio) (Process, error)
	// PIDs are all processes of the container, as the monitor sees them.
	PIDs() ([]int, error)
	Update(resources json.RawMessage) error
	Pause() error
	Resume() error
	// Checkpoint may end what it does once ctx has ended, some time after that: what it has begun is best ended well.
	Checkpoint(ctx context.Context, args *monitor.CheckpointArgs) error
	// OOMKills counts the processes killed for want of memory. NotifyOOM calls notify after each such event, with
	// the count, until stop.
	OOMKills() (uint64, error)
	NotifyOOM(notify func(kills uint64)) (stop func(), err error)
	CgroupPaths() map[string]string
	// Destroy removes the cgroup and the state of an exited container.
	Destroy() error
}
