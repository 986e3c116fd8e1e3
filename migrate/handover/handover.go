// Package handover takes a node's kubelet from its old shim to crishim, and back.
//
// A caller makes a Plan, shows it (WriteText) and lets Switch carry it out: a backup first, the kubelet and the old shim
// stopped, the kubelet's files edited, crishim and the kubelet started. Pods run on all the while. What fails on the way is
// undone at once. Back undoes a switch from its backup, also one that a crash has cut off.
package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"crishim/migrate/kubeletfiles"
)

// The units of a node.
const (
	Kubelet = "kubelet.service"
	Crishim = "crishim.service"
	// CrishimSocket is optional. Whoever connects to it starts the service.
	CrishimSocket = "crishim.socket"
)

// oldUnits are those of cri-dockerd, in the order in which they are stopped: its socket would start it again. dockershim is
// in the kubelet.
var oldUnits = []string{"cri-docker.socket", "cri-docker.service"}

// readyLimit bounds the wait for crishim to answer.
const readyLimit = 2 * time.Minute

// stepLimit bounds each step of an undo, as the old shim may never be ready, with a Docker that hangs, and the kubelet is started last.
// systemd gives a unit 90 s to stop. Tests shorten it.
var stepLimit = 2 * time.Minute

// Units is what is needed of systemd. A unit that does not exist has no state (found is false).
type Units interface {
	State(ctx context.Context, name string) (state kubeletfiles.UnitState, found bool, err error)
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
	Enable(ctx context.Context, name string) error
	Disable(ctx context.Context, name string) error
	// Reload makes systemd read its units anew.
	Reload(ctx context.Context) error
}

// bounded are units of which each is given stepLimit.
type bounded struct{ units Units }

func within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	return do(ctx)
}

func (b bounded) State(ctx context.Context, name string) (state kubeletfiles.UnitState, found bool, err error) {
	err = within(ctx, func(ctx context.Context) (err error) { state, found, err = b.units.State(ctx, name); return err })
	return state, found, err
}

func (b bounded) Start(ctx context.Context, name string) error {
	return within(ctx, func(ctx context.Context) error { return b.units.Start(ctx, name) })
}

func (b bounded) Stop(ctx context.Context, name string) error {
	return within(ctx, func(ctx context.Context) error { return b.units.Stop(ctx, name) })
}

func (b bounded) Enable(ctx context.Context, name string) error {
	return within(ctx, func(ctx context.Context) error { return b.units.Enable(ctx, name) })
}

func (b bounded) Disable(ctx context.Context, name string) error {
	return within(ctx, func(ctx context.Context) error { return b.units.Disable(ctx, name) })
}

func (b bounded) Reload(ctx context.Context) error { return within(ctx, b.units.Reload) }

// Plan is one switch.
type Plan struct {
	Root        string // "/" on a node
	BackupPath  string
	Endpoint    string
	OldEndpoint string
	Edits       []kubeletfiles.Edit
	// Annotation is the kubectl line for kubeadm's annotation on the Node, "" where there is none.
	Annotation string
	// GiveLogsBack is Undo's.
	GiveLogsBack func(context.Context) error
}

// Undo is the way back.
type Undo struct {
	Root       string // "/" on a node
	BackupPath string
	Units      Units
	// GiveLogsBack puts the old shim's links in the place of crishim's logs, once that is stopped; nil leaves them.
	GiveLogsBack func(context.Context) error
	// Force overwrites files that somebody edited since.
	Force bool
}

// WriteText prints what Switch would do.
func (p *Plan) WriteText(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "1. keep the old files and units' states in %s\n", p.BackupPath)
	fmt.Fprintf(&b, "2. stop %s and, where it runs, %s; pods run on\n", Kubelet, strings.Join(oldUnits, " and "))
	b.WriteString("3. edit the kubelet's files:\n")
	for _, e := range p.Edits {
		verb := "edit"
		if e.New {
			verb = "write"
		}
		fmt.Fprintf(&b, "   %s %s: %s\n", verb, e.Path, strings.Join(e.Why, "; "))
	}
	fmt.Fprintf(&b, "4. start %s and wait until it answers on %s\n", Crishim, p.Endpoint)
	fmt.Fprintf(&b, "5. start %s\n", Kubelet)
	if p.Annotation != "" {
		fmt.Fprintf(&b, "6. by you, from where kubectl works: %s\n", p.Annotation)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// Switch carries the plan out. ready returns when the new shim answers. An error has been undone, or says what of it has not.
func Switch(ctx context.Context, p *Plan, units Units, ready func(context.Context) error, out io.Writer) error {
	defer undisturbed()()
	backup := &kubeletfiles.Backup{Taken: time.Now().UTC(), Edits: p.Edits, Endpoint: p.Endpoint, OldEndpoint: p.OldEndpoint}
	for _, name := range append(slices.Clone(oldUnits), CrishimSocket, Crishim, Kubelet) {
		state, found, err := units.State(ctx, name)
		if err != nil {
			return fmt.Errorf("ask systemd for %s: %w", name, err)
		}
		if found {
			backup.Units = append(backup.Units, state)
		}
	}
	for _, name := range []string{Crishim, Kubelet} {
		if !slices.ContainsFunc(backup.Units, func(u kubeletfiles.UnitState) bool { return u.Name == name }) {
			return fmt.Errorf("systemd knows no %s: install it first, nothing was changed", name)
		}
	}
	if err := kubeletfiles.CheckEdits(p.Root, p.Edits); err != nil {
		return fmt.Errorf("the kubelet's files are not as they were read, nothing was changed, try again: %w", err)
	}
	if err := backup.Save(p.BackupPath); err != nil {
		return err
	}
	say(out, "kept the old files in %s", p.BackupPath)
	err := carryOut(ctx, p, backup, units, ready, out)
	if err == nil {
		return nil
	}
	say(out, "failed: %v", err)
	say(out, "going back")
	if undoErr := Back(ctx, &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: units, GiveLogsBack: p.GiveLogsBack}, out); undoErr != nil {
		return errors.Join(err, fmt.Errorf("going back failed too, try crishim adopt --rollback --yes: %w", undoErr))
	}
	return fmt.Errorf("%w; all was put back", err)
}

func carryOut(ctx context.Context, p *Plan, backup *kubeletfiles.Backup, units Units, ready func(context.Context) error, out io.Writer) error {
	if err := step(out, "stop "+Kubelet, units.Stop(ctx, Kubelet)); err != nil {
		return err
	}
	for _, u := range backup.Units {
		if !slices.Contains(oldUnits, u.Name) {
			continue
		}
		if err := step(out, "stop "+u.Name, units.Stop(ctx, u.Name)); err != nil {
			return err
		}
		if u.Enabled {
			if err := step(out, "disable "+u.Name, units.Disable(ctx, u.Name)); err != nil {
				return err
			}
		}
	}
	if err := step(out, "edit the kubelet's files", kubeletfiles.Apply(p.Root, p.Edits)); err != nil {
		return err
	}
	if err := step(out, "reload systemd", units.Reload(ctx)); err != nil {
		return err
	}
	if err := step(out, "enable "+Crishim, units.Enable(ctx, Crishim)); err != nil {
		return err
	}
	if err := step(out, "start "+Crishim, units.Start(ctx, Crishim)); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if err := step(out, "wait for its answers", ready(waiting)); err != nil {
		return err
	}
	return step(out, "start "+Kubelet, units.Start(ctx, Kubelet))
}

// Back undoes the switch that a backup tells of, and removes the backup when all is as it was. Where a file is not as the switch left
// it, it changes nothing while the kubelet runs. Else it goes on past errors, the end of ctx and steps that have no end, so that as much as
// can be is put back: ended halfway it would leave the node without a kubelet. It may be called again.
func Back(ctx context.Context, u *Undo, out io.Writer) error {
	defer undisturbed()()
	ctx = context.WithoutCancel(ctx)
	backup, err := kubeletfiles.LoadBackup(u.BackupPath)
	if err != nil {
		return err
	}
	units := bounded{u.Units}
	if kubelet, _, err := units.State(ctx, Kubelet); err == nil && kubelet.Active && !u.Force {
		if err := kubeletfiles.CheckEdits(u.Root, backup.Edits); err != nil {
			return fmt.Errorf("some of the kubelet's files are not as the switch left them, nothing was changed: mend them, or use --force: %w", err)
		}
	}
	was := map[string]kubeletfiles.UnitState{}
	for _, u := range backup.Units {
		was[u.Name] = u
	}
	var errs []error
	try := func(what string, err error) { errs = append(errs, step(out, what, err)) }
	try("stop "+Kubelet, units.Stop(ctx, Kubelet))
	socket, found, err := units.State(ctx, CrishimSocket)
	if err != nil {
		try("ask systemd for "+CrishimSocket, err)
	}
	if _, known := was[CrishimSocket]; !known { // to a backup of an earlier version
		was[CrishimSocket] = kubeletfiles.UnitState{Active: socket.Enabled, Enabled: socket.Enabled}
	}
	again := map[string]bool{} // old units that run already, as after a way back that was not through
	if !was[Crishim].Active {
		for _, name := range oldUnits { // they may answer where crishim did, and must link no log meanwhile
			if unit, _, err := units.State(ctx, name); err == nil && unit.Active {
				again[name] = true
				try("stop "+name, units.Stop(ctx, name))
			}
		}
		if socket.Active { // it would start the service again
			try("stop "+CrishimSocket, units.Stop(ctx, CrishimSocket))
		}
		stopped := units.Stop(ctx, Crishim)
		if try("stop "+Crishim, stopped); stopped == nil && u.GiveLogsBack != nil {
			try("link the containers' logs to Docker's", within(ctx, u.GiveLogsBack))
		}
	}
	if !was[Crishim].Enabled {
		try("disable "+Crishim, units.Disable(ctx, Crishim))
	}
	if socket.Enabled && !was[CrishimSocket].Enabled {
		try("disable "+CrishimSocket, units.Disable(ctx, CrishimSocket))
	}
	// A kubelet that is started on files that are not all back would talk to nobody, or to the wrong one.
	restored := kubeletfiles.Restore(u.Root, backup.Edits, u.Force)
	try("put the kubelet's files back", restored)
	try("reload systemd", units.Reload(ctx))
	for _, u := range slices.Backward(backup.Units) {
		if !slices.Contains(oldUnits, u.Name) {
			continue
		}
		if u.Enabled {
			try("enable "+u.Name, units.Enable(ctx, u.Name))
		}
	}
	for _, name := range oldUnits { // the socket before its service
		if was[name].Active || again[name] {
			try("start "+name, units.Start(ctx, name))
		}
	}
	if found && was[CrishimSocket].Active && !was[Crishim].Active {
		try("start "+CrishimSocket, units.Start(ctx, CrishimSocket))
	}
	if restored != nil {
		return fmt.Errorf("the kubelet is left stopped, some of its files are not as they were: mend them, or use --force: %w", errors.Join(errs...))
	}
	if was[Kubelet].Active {
		try("start "+Kubelet, units.Start(ctx, Kubelet))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(u.BackupPath)
}

// step tells what was done.
func step(out io.Writer, what string, err error) error {
	if err != nil {
		say(out, "%s: %v", what, err)
		return fmt.Errorf("%s: %w", what, err)
	}
	say(out, "%s: done", what)
	return nil
}

// undisturbed keeps the process alive, until end is called, when its terminal or the reader of its output goes away, as with a lost
// connection to the node: ended halfway it would leave the kubelet stopped, with nobody there to see it.
func undisturbed() (end func()) {
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGHUP, syscall.SIGPIPE)
	return func() { signal.Stop(ignored) }
}

// say is for somebody who watches; a terminal that is gone does not stop a switch halfway.
func say(out io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
