package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"crishim/engine"
)

// Phase is how far our own actions on an object have come, as far as they were recorded. What the object does by itself
// (a process that ends) is its State, not its Phase.
type Phase string

// The phases, in order. An object may skip phases but is only moved back by deleting its record.
const (
	// PhaseIntent: nothing, or something half made, may exist in the engine. Recorded before the engine is called.
	PhaseIntent Phase = "Intent"
	// PhaseCreated: the engine made it and its id is known.
	PhaseCreated Phase = "Created"
	// PhaseRunning: started, for a pod with its networks attached.
	PhaseRunning Phase = "Running"
	// PhaseStopping: a stop has begun and must be finished.
	PhaseStopping Phase = "Stopping"
	// PhaseStopped: stopped, for a pod with its networks detached.
	PhaseStopped Phase = "Stopped"
	// PhaseRemoving: a removal has begun and must be finished.
	PhaseRemoving Phase = "Removing"
)

var phases = []Phase{PhaseIntent, PhaseCreated, PhaseRunning, PhaseStopping, PhaseStopped, PhaseRemoving}

// Ending says whether the object is on its way out: updates towards such a phase also succeed where nothing can be
// written (see UpdatePod).
func (p Phase) Ending() bool {
	return p == PhaseStopping || p == PhaseStopped || p == PhaseRemoving
}

// Pod is the record of a pod sandbox. Engine, Spec, ConfigHash, CreatedAt and Seq never change once put; the maps and
// slices behind Spec are shared with every view and must not be written to.
type Pod struct {
	// ID is "" in PhaseIntent where the engine makes the ids.
	ID engine.PodID `json:"id,omitempty"`
	// Engine is the name of the engine that made it; all later calls go there.
	Engine string         `json:"engine"`
	Spec   engine.PodSpec `json:"spec"`
	// ConfigHash is of the CRI request, to tell a repeated call from another one with the same key.
	ConfigHash string    `json:"configHash,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	// Seq is the order of creation, independent of clocks. PutPod sets it.
	Seq   uint64 `json:"seq"`
	Phase Phase  `json:"phase"`
	// Returned says that a caller was given the id.
	Returned bool `json:"returned,omitempty"`
	// NetNSPath, PID and StartTicks are engine.PodStatus' at the start; PID is 0 after a reboot.
	NetNSPath  string  `json:"netnsPath,omitempty"`
	PID        int     `json:"pid,omitempty"`
	StartTicks uint64  `json:"startTicks,omitempty"`
	Network    Network `json:"network"`
	// Adopted says that no record of it was there when it was found: another shim made it, or the record was lost.
	Adopted bool `json:"adopted,omitempty"`
	// Leftover says why it is half made: the failure whose undo failed too. "" otherwise.
	Leftover string `json:"leftover,omitempty"`
}

// Network is what was attached to a pod.
type Network struct {
	// Attachments are package cni's, opaque here; recorded before ADD.
	Attachments []json.RawMessage `json:"attachments,omitempty"`
	// IPs are the pod's addresses, the primary one first.
	IPs []string `json:"ips,omitempty"`
	// Done says that every ADD succeeded.
	Done bool `json:"done,omitempty"`
}

// Container is the record of a container. PodID, Engine, Spec, ConfigHash, CreatedAt and Seq never change once put; the
// maps and slices behind Spec are shared with every view and must not be written to.
type Container struct {
	// ID is "" in PhaseIntent where the engine makes the ids.
	ID         engine.ContainerID   `json:"id,omitempty"`
	PodID      engine.PodID         `json:"podID"`
	Engine     string               `json:"engine"`
	Spec       engine.ContainerSpec `json:"spec"`
	ConfigHash string               `json:"configHash,omitempty"`
	CreatedAt  time.Time            `json:"createdAt"`
	// Seq is the order of creation, independent of clocks. PutContainer sets it.
	Seq      uint64 `json:"seq"`
	Phase    Phase  `json:"phase"`
	Returned bool   `json:"returned,omitempty"`

	// What was learnt from the engine. The store fills these in from every status it is given and writes an exit to disk
	// by itself, so that it outlives the engine's own memory of the container.
	StartedAt  time.Time    `json:"startedAt,omitzero"`
	PID        int          `json:"pid,omitempty"` // 0 unless running, and after a reboot
	StartTicks uint64       `json:"startTicks,omitempty"`
	FinishedAt time.Time    `json:"finishedAt,omitzero"` // zero unless exited
	ExitCode   int32        `json:"exitCode,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	Message    string       `json:"message,omitempty"`
	User       *engine.User `json:"user,omitempty"`
	StopSignal string       `json:"stopSignal,omitempty"`

	ImageID engine.ImageID `json:"imageID,omitempty"`
	// Resources are the current ones: Spec.Resources until an update.
	Resources engine.Resources `json:"resources"`
	Adopted   bool             `json:"adopted,omitempty"`
	Leftover  string           `json:"leftover,omitempty"`
}

// PodView is a pod at one moment: a copy that is safe to keep. What its maps, slices and pointers lead to is shared and
// must not be written to.
type PodView struct {
	Pod
	// Status is what the engine said last; before its first Resync what the record implies. For a pod without a record
	// the embedded Pod is made from Status.Spec.
	Status engine.PodStatus
	// State is READY while Phase is PhaseRunning and the engine's process for the pod, still the one we started, runs.
	State engine.PodState
	// Recorded is false for a pod that the engine has and we hold no record of; the first update writes one.
	Recorded bool
}

// ContainerView is a container at one moment: a copy that is safe to keep. What its maps, slices and pointers lead to is
// shared and must not be written to.
type ContainerView struct {
	Container
	// Status is what the engine said last, never moved back; before its first Resync what the record implies.
	Status engine.ContainerStatus
	// State is Status.State; UNKNOWN while the engine has said nothing of it (PhaseIntent).
	State engine.ContainerState
	// Recorded is false for a container that the engine has and we hold no record of; the first update writes one.
	Recorded bool
}

// Each record kind gives the table what it needs to know of it.

func (p *Pod) identity() (id, key string) { return string(p.ID), podKeyName(p.Spec.Key) }
func (p *Pod) setIdentity(id string)      { p.ID = engine.PodID(id) }
func (p *Pod) seq() *uint64               { return &p.Seq }
func (p *Pod) engineName() string         { return p.Engine }
func (p *Pod) phase() Phase               { return p.Phase }
func (p *Pod) forgetProcess()             { p.PID, p.StartTicks = 0, 0 }
func (p *Pod) forgetLife()                {} // no status teaches it anything

func (p *Pod) check() error {
	var errs []error
	if p.Spec.Key == (engine.PodKey{}) {
		errs = append(errs, errors.New("pod without a key"))
	}
	return errors.Join(append(errs, checkCommon(p.Engine, p.Seq, p.Phase, string(p.ID)))...)
}

func (c *Container) identity() (id, key string) {
	return string(c.ID), containerKeyName(c.PodID, c.Spec.Key)
}
func (c *Container) setIdentity(id string) { c.ID = engine.ContainerID(id) }
func (c *Container) seq() *uint64          { return &c.Seq }
func (c *Container) engineName() string    { return c.Engine }
func (c *Container) phase() Phase          { return c.Phase }
func (c *Container) forgetProcess()        { c.PID, c.StartTicks = 0, 0 }
func (c *Container) forgetLife() {
	c.StartedAt, c.FinishedAt, c.ExitCode, c.Reason, c.Message = time.Time{}, time.Time{}, 0, "", ""
	c.forgetProcess()
}

func (c *Container) check() error {
	var errs []error
	if c.PodID == "" {
		errs = append(errs, errors.New("container without a pod id"))
	}
	if c.Spec.Key == (engine.ContainerKey{}) {
		errs = append(errs, errors.New("container without a key"))
	}
	return errors.Join(append(errs, checkCommon(c.Engine, c.Seq, c.Phase, string(c.ID)))...)
}

func checkCommon(engineName string, seq uint64, phase Phase, id string) error {
	switch {
	case engineName == "":
		return errors.New("record without an engine")
	case seq == 0:
		return errors.New("record without a sequence number")
	case !slices.Contains(phases, phase):
		return fmt.Errorf("unknown phase %q", phase)
	case id == "" && phase != PhaseIntent && !phase.Ending():
		return fmt.Errorf("record in phase %s without an id", phase)
	}
	return nil
}
