package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/migrate/kubeletfiles"
)

// systemd is a fake: units by name, what was done, and one step that fails once.
type systemd struct {
	units map[string]*kubeletfiles.UnitState
	did   []string
	fail  string
}

func (s *systemd) do(what, name string, change func(u *kubeletfiles.UnitState)) error {
	step := what + " " + name
	s.did = append(s.did, step)
	if step == s.fail {
		s.fail = ""
		return errors.New("no")
	}
	u := s.units[name]
	if u == nil {
		return fmt.Errorf("unit %s not found", name)
	}
	change(u)
	return nil
}

func (s *systemd) State(_ context.Context, name string) (kubeletfiles.UnitState, bool, error) {
	if u := s.units[name]; u != nil {
		return *u, true, nil
	}
	return kubeletfiles.UnitState{}, false, nil
}

func (s *systemd) Start(_ context.Context, name string) error {
	return s.do("start", name, func(u *kubeletfiles.UnitState) { u.Active = true })
}

func (s *systemd) Stop(_ context.Context, name string) error {
	return s.do("stop", name, func(u *kubeletfiles.UnitState) { u.Active = false })
}

func (s *systemd) Enable(_ context.Context, name string) error {
	return s.do("enable", name, func(u *kubeletfiles.UnitState) { u.Enabled = true })
}

func (s *systemd) Disable(_ context.Context, name string) error {
	return s.do("disable", name, func(u *kubeletfiles.UnitState) { u.Enabled = false })
}

func (s *systemd) Reload(context.Context) error { s.did = append(s.did, "reload"); return nil }

func (s *systemd) states() string {
	var all []string
	for _, u := range s.units {
		all = append(all, fmt.Sprintf("%s active=%t enabled=%t", u.Name, u.Active, u.Enabled))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func node(t *testing.T) (*Plan, *systemd) {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "kubeadm-flags.env"), []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	units := map[string]*kubeletfiles.UnitState{}
	for _, u := range []kubeletfiles.UnitState{{Name: Kubelet, Active: true, Enabled: true}, {Name: Crishim}, {Name: "cri-docker.socket", Active: true, Enabled: true}, {Name: "cri-docker.service", Active: true}} {
		units[u.Name] = &u
	}
	return &Plan{
		Root: root, BackupPath: filepath.Join(root, "keep", "adopt.json"), Endpoint: "unix:///new.sock",
		Edits: []kubeletfiles.Edit{
			{Path: "/kubeadm-flags.env", Before: "old\n", After: "new\n", Mode: 0o644, Why: []string{"x"}},
			{Path: "/added.conf", After: "added\n", Mode: 0o644, New: true, Why: []string{"y"}},
		},
	}, &systemd{units: units}
}

func ready(context.Context) error { return nil }

func text(t *testing.T, p *Plan) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.Root, "kubeadm-flags.env"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// crishim's socket would start crishim again while the way back works, for which it must be stopped.
func TestBackStopsTheSocketThatWouldStartCrishimAgain(t *testing.T) {
	for name, on := range map[string]bool{"it was there before": true, "it was turned on after the switch": false} {
		t.Run(name, func(t *testing.T) {
			p, s := node(t)
			s.units[CrishimSocket] = &kubeletfiles.UnitState{Name: CrishimSocket, Active: on, Enabled: on}
			before := s.states()
			var out bytes.Buffer
			if err := Switch(t.Context(), p, s, ready, &out); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			s.units[CrishimSocket].Active, s.units[CrishimSocket].Enabled = true, true
			given := false
			undo := &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s, GiveLogsBack: func(context.Context) error {
				given = !s.units[CrishimSocket].Active && !s.units[Crishim].Active
				return nil
			}}
			if err := Back(t.Context(), undo, &out); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			if !given {
				t.Error("crishim, or its socket, was on when the logs were given back")
			}
			if now := s.states(); now != before {
				t.Errorf("the units are\n%s\nthey were\n%s", now, before)
			}
		})
	}
}

// A way back that broke off when the socket was stopped starts it at the next call, as any other.
func TestBackStartsTheSocketThatABrokenOneStopped(t *testing.T) {
	p, s := node(t)
	s.units[CrishimSocket] = &kubeletfiles.UnitState{Name: CrishimSocket, Active: true}
	before := s.states()
	if err := Switch(t.Context(), p, s, ready, io.Discard); err != nil {
		t.Fatal(err)
	}
	undo := &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s}
	s.fail = "start " + CrishimSocket
	if err := Back(t.Context(), undo, io.Discard); err == nil {
		t.Error("the socket was not started, which is no error")
	}
	if err := Back(t.Context(), undo, io.Discard); err != nil {
		t.Fatal(err)
	}
	if now := s.states(); now != before {
		t.Errorf("the units are\n%s\nthey were\n%s", now, before)
	}
}

// A backup of an earlier version does not tell how the socket was: one that is enabled stays so, and is on after the way back.
func TestBackLeavesASocketThatTheBackupDoesNotKnow(t *testing.T) {
	for name, on := range map[string]bool{"enabled": true, "started": false} {
		t.Run(name, func(t *testing.T) {
			p, s := node(t)
			if err := Switch(t.Context(), p, s, ready, io.Discard); err != nil {
				t.Fatal(err)
			}
			s.units[CrishimSocket] = &kubeletfiles.UnitState{Name: CrishimSocket, Active: true, Enabled: on}
			if err := Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s}, io.Discard); err != nil {
				t.Fatal(err)
			}
			if u := s.units[CrishimSocket]; u.Active != on || u.Enabled != on {
				t.Errorf("the socket is %+v", u)
			}
		})
	}
}

func TestSwitchAndBack(t *testing.T) {
	p, s := node(t)
	before := s.states()
	var out bytes.Buffer
	if err := Switch(t.Context(), p, s, ready, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	want := []string{
		"stop kubelet.service", "stop cri-docker.socket", "disable cri-docker.socket", "stop cri-docker.service", "reload", "enable crishim.service", "start crishim.service", "start kubelet.service",
	}
	if !slices.Equal(s.did, want) {
		t.Errorf("did %q", s.did)
	}
	if got := text(t, p); got != "new\n" {
		t.Errorf("the file is %q", got)
	}
	if err := Switch(t.Context(), p, s, ready, &out); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second switch: %v", err)
	}
	// The logs are given back once nobody writes them; what fails there does not keep the kubelet from coming back.
	given := 0
	undo := &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s, GiveLogsBack: func(context.Context) error {
		if given++; s.units[Crishim].Active || s.units[Kubelet].Active {
			t.Error("the logs are given back while they are written, or read")
		}
		if given == 1 {
			return errors.New("read-only")
		}
		return nil
	}}
	if err := Back(t.Context(), undo, &out); err == nil || !s.units[Kubelet].Active {
		t.Fatalf("%v, the kubelet active %t", err, s.units[Kubelet].Active)
	}
	if err := Back(t.Context(), undo, &out); err != nil || given != 2 {
		t.Fatalf("%v, given back %d times\n%s", err, given, out.String())
	}
	if s.states() != before || text(t, p) != "old\n" {
		t.Errorf("after going back: %s\n%q", s.states(), text(t, p))
	}
	if err := Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s}, &out); !errdefs.IsNotFound(err) {
		t.Errorf("a second way back: %v", err)
	}
}

// Whatever step fails, the node is as before.
func TestAFailedSwitchIsUndone(t *testing.T) {
	_, all := node(t)
	p, _ := node(t)
	if err := Switch(t.Context(), p, all, ready, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	steps := slices.DeleteFunc(all.did, func(s string) bool { return s == "reload" })
	for _, step := range append(steps, "not ready", "the file was edited") {
		t.Run(step, func(t *testing.T) {
			p, s := node(t)
			before, content := s.states(), "old\n"
			s.fail = step
			answers := ready
			switch step {
			case "not ready":
				answers = func(context.Context) error { return errors.New("no answer") }
			case "the file was edited":
				content = "somebody's\n"
				if err := os.WriteFile(filepath.Join(p.Root, "kubeadm-flags.env"), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			err := Switch(t.Context(), p, s, answers, &out)
			if err == nil {
				t.Fatal("it succeeded")
			}
			if s.states() != before || text(t, p) != content {
				t.Errorf("%v\n%s\nthe node is now\n%s\n%q", err, out.String(), s.states(), text(t, p))
			}
			if _, err := os.Stat(filepath.Join(p.Root, "added.conf")); !os.IsNotExist(err) {
				t.Errorf("the drop-in is left: %v", err)
			}
			if _, err := os.Stat(p.BackupPath); !os.IsNotExist(err) {
				t.Errorf("the backup is left: %v", err)
			}
		})
	}
}

// A file that was edited since, as by an upgrade of kubeadm's, is seen before the kubelet is stopped that runs on it.
func TestForeignEditsStopTheWayBack(t *testing.T) {
	p, s := node(t)
	if err := Switch(t.Context(), p, s, ready, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Root, "kubeadm-flags.env"), []byte("somebody's\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	switched, did := s.states(), len(s.did)
	if err := Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s}, &bytes.Buffer{}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "kubeadm-flags.env") {
		t.Errorf("err = %v", err)
	}
	if s.states() != switched || len(s.did) != did {
		t.Errorf("it did %q, and the units are\n%s", s.did[did:], s.states())
	}
	if _, err := os.Stat(filepath.Join(p.Root, "added.conf")); err != nil {
		t.Errorf("another file was taken away: %v", err)
	}
	// One that does not run gains nothing by that: what can be put back is.
	s.units[Kubelet].Active = false
	if err := Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s}, &bytes.Buffer{}); !errdefs.IsConflict(err) || s.units[Kubelet].Active || !s.units["cri-docker.service"].Active {
		t.Errorf("err = %v, the units are\n%s", err, s.states())
	}
	if err := Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s, Force: true}, &bytes.Buffer{}); err != nil || text(t, p) != "old\n" || !s.units[Kubelet].Active {
		t.Errorf("by force: %v, %q", err, text(t, p))
	}
}

// impatient is a systemd whose first step is interrupted by who typed the command.
type impatient struct {
	*systemd
	interrupt func()
}

func (i impatient) Stop(ctx context.Context, name string) error {
	i.interrupt()
	if err := ctx.Err(); err != nil {
		return err
	}
	return i.systemd.Stop(ctx, name)
}

// Interrupted halfway the way back would leave the kubelet stopped, and no shim running: it goes on to its end.
func TestAnInterruptStopsNoWayBackHalfway(t *testing.T) {
	p, s := node(t)
	before := s.states()
	if err := Switch(t.Context(), p, s, ready, io.Discard); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	undo := &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: impatient{s, interrupt}, GiveLogsBack: func(ctx context.Context) error { return ctx.Err() }}
	if err := Back(ctx, undo, io.Discard); err != nil {
		t.Error(err)
	}
	if s.states() != before || text(t, p) != "old\n" {
		t.Errorf("the node is now\n%s\n%q", s.states(), text(t, p))
	}
}

// hanging is a systemd that never gets the old shim ready.
type hanging struct{ *systemd }

func (h hanging) Start(ctx context.Context, name string) error {
	if name == Kubelet {
		if err := ctx.Err(); err != nil {
			return err
		}
		return h.systemd.Start(ctx, name)
	}
	<-ctx.Done()
	return ctx.Err()
}

// An old shim that waits for a Docker which hangs is waited for, but the kubelet is started then.
func TestAnOldShimThatIsNeverReadyKeepsNoKubeletStopped(t *testing.T) {
	p, s := node(t)
	if err := Switch(t.Context(), p, s, ready, io.Discard); err != nil {
		t.Fatal(err)
	}
	defer func(limit time.Duration) { stepLimit = limit }(stepLimit)
	stepLimit = time.Second
	err := Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: hanging{s}}, io.Discard)
	if !errors.Is(err, context.DeadlineExceeded) || !s.units[Kubelet].Active || text(t, p) != "old\n" {
		t.Errorf("%v; the units are\n%s", err, s.states())
	}
	if _, err := os.Stat(p.BackupPath); err != nil {
		t.Errorf("the backup of what is not all back: %v", err)
	}
}

// A way back that was not through has started the old shim, which may answer on a socket that crishim had, too: the next one gives the
// logs back while nobody serves.
func TestTheOldShimDoesNotServeWhileLogsAreGivenBack(t *testing.T) {
	p, s := node(t)
	before := s.states()
	if err := Switch(t.Context(), p, s, ready, io.Discard); err != nil {
		t.Fatal(err)
	}
	given := 0
	undo := &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: s, GiveLogsBack: func(context.Context) error {
		if given++; s.units["cri-docker.socket"].Active || s.units["cri-docker.service"].Active {
			t.Errorf("the old shim serves at try %d", given)
		}
		if given == 1 {
			return errors.New("no Docker Engine answers")
		}
		return nil
	}}
	if err := Back(t.Context(), undo, io.Discard); err == nil {
		t.Error("a failure is not told")
	}
	if err := Back(t.Context(), undo, io.Discard); err != nil || given != 2 {
		t.Errorf("%v, given back %d times", err, given)
	}
	if now := s.states(); now != before {
		t.Errorf("the units are\n%s\nthey were\n%s", now, before)
	}
}

func TestSwitchNeedsBothUnits(t *testing.T) {
	for _, name := range []string{Kubelet, Crishim} {
		p, s := node(t)
		delete(s.units, name)
		err := Switch(t.Context(), p, s, ready, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), name) || len(s.did) > 0 {
			t.Errorf("without %s: %v, did %q", name, err, s.did)
		}
	}
}

func TestPlanSaysEachStep(t *testing.T) {
	p, _ := node(t)
	p.Annotation = "kubectl annotate node n"
	var out bytes.Buffer
	if err := p.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{p.BackupPath, "edit /kubeadm-flags.env: x", "write /added.conf: y", p.Endpoint, p.Annotation} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}

// hungUp is a systemd during whose first step the operator's connection is lost.
type hungUp struct{ *systemd }

func (h hungUp) Stop(ctx context.Context, name string) error {
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond) // it is delivered
	return h.systemd.Stop(ctx, name)
}

// Where the connection of who typed the command is lost, its process gets SIGHUP, or SIGPIPE at its next line. The switch and the way
// back go on to their ends.
func TestATerminalThatIsGoneStopsNothingHalfway(t *testing.T) {
	const variable = "HANDOVER_TEST_REPORT"
	if report := os.Getenv(variable); report != "" { // the process that is hung up
		p, units := node(t)
		err := Switch(t.Context(), p, hungUp{units}, ready, os.Stdout)
		switched := text(t, p)
		err = errors.Join(err, Back(t.Context(), &Undo{Root: p.Root, BackupPath: p.BackupPath, Units: hungUp{units}}, os.Stdout))
		if err := os.WriteFile(report, fmt.Appendf(nil, "%s%s%v", switched, text(t, p), err), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close() // nobody reads what it says
	defer func() { _ = w.Close() }()
	report := filepath.Join(t.TempDir(), "report")
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$")
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), variable+"="+report), w, w
	ended := cmd.Run() // by SIGPIPE at the latest when it has told all
	if got, err := os.ReadFile(report); string(got) != "new\nold\n<nil>" {
		t.Errorf("the process ended halfway (%v): %q, %v", ended, got, err)
	}
}
