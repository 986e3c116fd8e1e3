// Package monitor owns what the daemon and a pod's monitor say to each other: the messages, their framing with passed
// descriptors, and the daemon's client, which also starts monitors and notices their death.
//
// A monitor is one process per pod (cmd/monitor). It holds the containers' stdio and terminals, writes their logs,
// reaps them, and outlives the daemon. Callers Spawn one for a new pod, Connect to the one of a known pod, and use the
// Client's methods; nothing here links libcontainer.
//
// Compatibility: each connection carries one request. A peer ignores fields that it does not know and answers an
// operation that it does not know with the class NotImplemented. A field, once released, keeps its name and meaning;
// Version goes up only where an old peer would do harm by ignoring what is new.
package monitor

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"crishim/internal/seal"
)

// Version is the protocol's; MinVersion is the oldest that this side still speaks.
const (
	Version    = 1
	MinVersion = 1
)

// The files of a monitor in its pod's run directory (0700, on a file system that a reboot empties).
const (
	SocketName = "monitor.sock"
	RecordName = "monitor.json"
	// LogName takes what the monitor itself has to say (a panic, warnings of libcontainer), at most a few KiB.
	LogName = "monitor.log"
)

// The operations.
const (
	OpHello      = "hello"
	OpCommit     = "commit"
	OpCreate     = "create"
	OpRestore    = "restore"
	OpStart      = "start"
	OpKill       = "kill"
	OpWait       = "wait"
	OpExec       = "exec"
	OpAttach     = "attach"
	OpResize     = "resize"
	OpCloseStdin = "closeStdin"
	OpReopenLog  = "reopenLog"
	OpUpdate     = "update"
	OpPause      = "pause"
	OpResume     = "resume"
	OpCheckpoint = "checkpoint"
	OpDelete     = "delete"
	OpState      = "state"
	OpList       = "list"
	OpSubscribe  = "subscribe"
	OpShutdown   = "shutdown"
)

// Request opens a connection. Descriptors travel with it in the order of the operation's argument.
type Request struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	// ID is the container's, for the operations on one.
	ID   string          `json:"id,omitempty"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Response answers it. Most operations have one; Exec, Attach and Subscribe send several.
type Response struct {
	Error  *Error          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Error is a failure on the wire.
type Error struct {
	// Class is a word of classes (errdefs), "" for an unknown one.
	Class   string `json:"class,omitempty"`
	Message string `json:"message"`
	// ExitCode is 126, 127 or 128 where a process could not start, else 0.
	ExitCode int `json:"exitCode,omitempty"`
}

// Config is what the daemon gives a monitor at its start.
type Config struct {
	// Pod names the pod in errors and in the process table.
	Pod string `json:"pod"`
	// Dir is the pod's run directory, StateRoot that of libcontainer's state (`runc --root`), on tmpfs too.
	Dir       string `json:"dir"`
	StateRoot string `json:"stateRoot"`
	// Cgroups are existing cgroup directories that the monitor enters, one per hierarchy.
	Cgroups []string `json:"cgroups,omitempty"`
	// PodCgroup is the folder of the pod's cgroup where that is of version 2; it may not be there yet.
	PodCgroup string `json:"podCgroup,omitempty"`
	// CommitTimeout is how long a monitor without container waits for Commit until it ends by itself; 0 is 30 s.
	CommitTimeout time.Duration `json:"commitTimeout,omitempty"`
}

// OCIRoot is where the state of containers is that an OCI runtime's program makes.
func (c *Config) OCIRoot() string { return OCIRoot(c.StateRoot) }

// OCIRoot is beside libcontainer's state.
func OCIRoot(stateRoot string) string { return stateRoot + "-oci" }

// Record is RecordName's content, sealed: which process is the monitor.
type Record struct {
	Version    int    `json:"version"`
	Pod        string `json:"pod"`
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"startTicks"`
}

// Hello is the answer to OpHello.
type Hello struct {
	Record
	MinVersion int `json:"minVersion"`
	// Build names the program ("v1.2"), Libraries what is linked into it ("runc 1.5.2").
	Build     string            `json:"build,omitempty"`
	Libraries map[string]string `json:"libraries,omitempty"`
	Ops       []string          `json:"ops"`
}

// Status is the state of a container's process.
type Status string

// The states. Created: the process is made and waits for Start.
const (
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusPaused  Status = "paused"
	StatusExited  Status = "exited"
)

// CreateArgs makes a container.
type CreateArgs struct {
	// Spec is an OCI runtime specification whose root.path is mounted and absolute.
	Spec json.RawMessage `json:"spec"`
	// SystemdCgroup says that linux.cgroupsPath is "slice:prefix:name".
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	NoNewKeyring  bool `json:"noNewKeyring,omitempty"`
	// SeccompFilter is the absolute path of the specification's seccomp profile in compiled form, as the helper's `seccomp`
	// wrote it; "" or one that does not fit only costs time.
	SeccompFilter string `json:"seccompFilter,omitempty"`
	// OCIRuntime is the absolute path of the program that makes the container, "" for libcontainer.
	OCIRuntime string `json:"ociRuntime,omitempty"`
	// LogPath is below LogRoot (crilog.Open); "" writes no log.
	LogRoot string `json:"logRoot,omitempty"`
	LogPath string `json:"logPath,omitempty"`
	// LogMaxSize is crilog.Open's bound in bytes, 0 for none. A monitor of before it was there knows none.
	LogMaxSize int64 `json:"logMaxSize,omitempty"`
	// Stdin keeps the standard input open for Attach, until the first attached client closes it where StdinOnce is set.
	// Whether there is a terminal says the specification.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// ExitFile is an absolute path to which the Exit is written durably before anybody hears of it.
	ExitFile string `json:"exitFile"`
}

// RestoreArgs makes a container from a checkpoint; it runs when the call returns.
type RestoreArgs struct {
	CreateArgs
	ImagePath string `json:"imagePath"`
	// WorkPath is where CRIU keeps its log; it exists.
	WorkPath       string `json:"workPath"`
	TCPEstablished bool   `json:"tcpEstablished,omitempty"`
	FileLocks      bool   `json:"fileLocks,omitempty"`
}

// CheckpointArgs writes a checkpoint of a running or paused container with CRIU. A paused one stays so.
type CheckpointArgs struct {
	ImagePath      string `json:"imagePath"`
	WorkPath       string `json:"workPath"`
	LeaveRunning   bool   `json:"leaveRunning,omitempty"`
	TCPEstablished bool   `json:"tcpEstablished,omitempty"`
	FileLocks      bool   `json:"fileLocks,omitempty"`
}

// KillArgs sends a signal to the container's first process, or to All its processes.
type KillArgs struct {
	Signal int  `json:"signal"`
	All    bool `json:"all,omitempty"`
}

// StdioArgs says which of stdin, stdout and stderr are passed as descriptors, in this order.
type StdioArgs struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// ExecArgs runs a process (OCI specs.Process) in a running container. With process.terminal no descriptor is passed; the
// terminal's master comes with the first response instead.
type ExecArgs struct {
	Process json.RawMessage `json:"process"`
	StdioArgs
}

// ExecStarted is the first result of OpExec, ExecExited the second and last one.
type ExecStarted struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"startTicks"`
}

// ExecExited says how the process of an exec ended.
type ExecExited struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// ExecKill is sent by the client on an exec's connection: the process and all its descendants are killed. Losing the
// connection means the same.
type ExecKill struct {
	Kill bool `json:"kill"`
}

// AttachDone is the last result of OpAttach.
type AttachDone struct {
	// Dropped bytes of output were not delivered because the client did not read.
	Dropped uint64 `json:"dropped,omitempty"`
}

// ResizeArgs is a terminal's size in characters.
type ResizeArgs struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// UpdateArgs replaces the resources: what the new OCI specs.LinuxResources do not name loses its limit. Devices stay.
type UpdateArgs struct {
	Resources json.RawMessage `json:"resources"`
}

// Exit says how a container's first process ended. Its JSON, sealed, is also the content of CreateArgs.ExitFile.
type Exit struct {
	ID string `json:"id"`
	// Code is the exit code, 128+Signal where a signal ended it.
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
	// OOMKills counts processes of the container's cgroup that the kernel killed for want of memory; OOMKilled says that
	// this is why it ended: there was one that it did not outlive, and the exit is that of a killed process.
	OOMKills   uint64    `json:"oomKills,omitempty"`
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	FinishedAt time.Time `json:"finishedAt"`
	// Unstarted says that no start was ever asked for: it was no end of the container, which can be started still.
	Unstarted bool `json:"unstarted,omitempty"`
}

// DecodeExit reads the record of a container's end, sealed or of an earlier version. ErrDataLoss where it cannot be believed.
func DecodeExit(id string, data []byte) (Exit, error) {
	var exit Exit
	err := seal.Unmarshal(data, &exit)
	if err == nil && (exit.ID != id || exit.FinishedAt.IsZero()) {
		err = fmt.Errorf("it is of the end of %q at %v", exit.ID, exit.FinishedAt)
	}
	if err != nil {
		return Exit{}, fmt.Errorf("the record of the end of container %s is damaged: %w: %w", id, err, errdefs.ErrDataLoss)
	}
	return exit, nil
}

// State is a container as its monitor knows it.
type State struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	// PID and StartTicks (clock ticks since boot) name the first process; 0 once exited.
	PID        int       `json:"pid,omitempty"`
	StartTicks uint64    `json:"startTicks,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	// Exit is set once exited.
	Exit *Exit `json:"exit,omitempty"`
	// CgroupPaths are the cgroup's directories by controller, "" for cgroup v2's.
	CgroupPaths map[string]string `json:"cgroupPaths,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	StdinOpen   bool              `json:"stdinOpen,omitempty"`
	Execs       int               `json:"execs,omitempty"`
	Attached    int               `json:"attached,omitempty"`
	Log         LogState          `json:"log"`
}

// LogState counts what became of the output.
type LogState struct {
	Bytes        uint64 `json:"bytes,omitempty"`
	WriteErrors  uint64 `json:"writeErrors,omitempty"`
	DroppedBytes uint64 `json:"droppedBytes,omitempty"`
}

// EventType is the type of an Event.
type EventType string

// The events. EventState is sent for each container right after Subscribe, and when one starts.
const (
	EventState EventType = "state"
	EventExit  EventType = "exit"
	EventOOM   EventType = "oom"
	// EventDeleted says that the monitor knows the container no more.
	EventDeleted EventType = "deleted"
	// EventSynced follows the last EventState of the containers that were there at Subscribe.
	EventSynced EventType = "synced"
)

// Event tells a change. State is the container's at that time; only its ID is set for EventDeleted, nothing for
// EventSynced.
type Event struct {
	Type  EventType `json:"type"`
	State State     `json:"state,omitzero"`
}

// FallbackExitName is the file of an Exit in the run directory, where CreateArgs.ExitFile could not be written. A daemon
// that misses the one looks for the other.
func FallbackExitName(id string) string { return "exit-" + id + ".json" }
