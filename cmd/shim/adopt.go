package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine/docker/survey"
	"crishim/migrate/compare"
	"crishim/migrate/handover"
	"crishim/migrate/kubeletfiles"
	"crishim/migrate/preflight"
)

// dockershimSocket is where the kubelets' own dockershim answers, also to others.
const dockershimSocket = "unix:///var/run/dockershim.sock"

// keptWatch is how long a switched kubelet is watched for containers that end.
const keptWatch = 30 * time.Second

func adoptFlags(fs *pflag.FlagSet) {
	fs.Bool("yes", false, "do it; without, only show what would be done")
	fs.Bool("rollback", false, "undo the last switch (with --yes)")
	fs.Bool("logs-only", false, "with --rollback: only put the old shim's links in the place of crishim's logs, where the kubelet is taken back by hand")
	fs.Bool("compare-only", false, "only compare what the old shim and crishim tell")
	fs.Bool("force", false, "with --rollback: also put back files that somebody has edited since")
	fs.Bool("accept-findings", false, "go on although preflight has found something to do")
	fs.Bool("accept-differences", false, "go on although the old shim and crishim tell different things, or cannot be compared")
	fs.String("old-endpoint", "", "CRI socket of the old shim (default: the kubelet's, else dockershim's; with --compare-only dockershim's)")
	shimFlags(fs)
	config.Flags(fs)
}

// adoption is one run of the command.
type adoption struct {
	c      *config.Config
	fs     *pflag.FlagSet
	out    io.Writer
	yes    bool
	places preflight.Places
}

func runAdopt(ctx context.Context, fs *pflag.FlagSet, out io.Writer) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	a := &adoption{c: c, fs: fs, out: out}
	if a.places, err = nodePlaces(fs); err != nil {
		return err
	}
	if a.yes, err = fs.GetBool("yes"); err != nil {
		return err
	}
	back, err1 := fs.GetBool("rollback")
	logs, err2 := fs.GetBool("logs-only")
	only, err3 := fs.GetBool("compare-only")
	switch {
	case errors.Join(err1, err2, err3) != nil:
		return errors.Join(err1, err2, err3)
	case logs && !back:
		return fmt.Errorf("--logs-only goes with --rollback: %w", errUsage)
	case logs:
		return a.logsBack(ctx)
	case back:
		return a.rollback(ctx)
	case only:
		return a.compareOnly(ctx)
	}
	return a.adopt(ctx)
}

// compareOnly is for who takes the kubelet over by hand.
func (a *adoption) compareOnly(ctx context.Context) error {
	old, err := a.fs.GetString("old-endpoint")
	if err != nil {
		return err
	}
	return a.compare(ctx, cmp.Or(old, dockershimSocket))
}

// logsBack is what of the way back is more than files and units.
func (a *adoption) logsBack(ctx context.Context) error {
	if !a.yes {
		_, err := fmt.Fprintln(a.out, "the old shim's links to Docker's logs would take the place of crishim's logs; nothing was changed, --yes does it")
		return err
	}
	return giveLogsBack(ctx, a.c, a.out)
}

func (a *adoption) backupPath() string { return filepath.Join(a.c.RootDir, "adopt.json") }

// refused is a switch that was not begun.
func (a *adoption) refused(flag, format string, args ...any) error {
	accepted, err := a.fs.GetBool(flag)
	if err != nil || accepted {
		return err
	}
	return fmt.Errorf(format+"; nothing was changed. --"+flag+" goes on all the same", args...)
}

func (a *adoption) adopt(ctx context.Context) error {
	node := preflight.Gather(ctx, a.c, a.places)
	report := preflight.Examine(node)
	if err := report.WriteText(a.out); err != nil {
		return err
	}
	switch report.Verdict {
	case preflight.Cannot:
		return verdict(report.Verdict)
	case preflight.ToDo:
		if err := a.refused("accept-findings", "preflight has found something to do"); err != nil && a.yes {
			return err
		}
	}
	plan, err := a.plan(node, report)
	if err != nil {
		return err
	}
	if len(plan.Edits) == 0 {
		_, err := fmt.Fprintf(a.out, "\nthe kubelet uses %s already: there is nothing to switch\n", plan.Endpoint)
		return err
	}
	if err := a.compare(ctx, plan.OldEndpoint); err != nil && a.yes {
		return err
	} else if err != nil {
		_, _ = fmt.Fprintf(a.out, "%v\n", err)
	}
	if _, err := fmt.Fprintln(a.out, "\nthe switch:"); err != nil {
		return err
	}
	if err := plan.WriteText(a.out); err != nil {
		return err
	}
	if !a.yes {
		_, err := fmt.Fprintln(a.out, "\nnothing was changed; --yes does it, --rollback --yes undoes it")
		return err
	}
	return a.carryOut(ctx, plan)
}

func (a *adoption) plan(node *preflight.Node, report *preflight.Report) (*handover.Plan, error) {
	old, err := a.fs.GetString("old-endpoint")
	if err != nil {
		return nil, err
	}
	if old == "" {
		old = report.Kubelet.Endpoint
	}
	if old == "" {
		old = dockershimSocket
	}
	p := &handover.Plan{Root: a.places.Root, BackupPath: a.backupPath(), Endpoint: a.c.Listen[0], OldEndpoint: old, GiveLogsBack: a.giveLogsBack}
	if node.Kubelet.Files == nil {
		return nil, errors.New("the kubelet's files cannot be read: " + node.Kubelet.FilesError)
	}
	if p.Edits, err = node.Kubelet.Files.Plan(kubeletfiles.Target{Endpoint: p.Endpoint, Minor: preflight.Minor(node.Kubelet.Version)}); err != nil {
		return nil, err
	}
	// Newer kubeadms keep it in their instance configuration, and take the annotation away.
	if node.Kubelet.Files.Kubeadm() && node.Kubelet.Files.Instance == nil {
		p.Annotation = fmt.Sprintf("kubectl annotate node %s --overwrite kubeadm.alpha.kubernetes.io/cri-socket=%s", node.Name, p.Endpoint)
	}
	return p, nil
}

// compare asks the old shim and an observing crishim the same.
func (a *adoption) compare(ctx context.Context, old string) error {
	asking, cancel := context.WithCancelCause(ctx)
	observer := make(chan struct{})
	go func() {
		defer close(observer)
		cancel(observe(asking, a.c, observerSocket(a.c)))
	}()
	defer func() { cancel(nil); <-observer }()
	waiting, stop := context.WithTimeout(asking, time.Minute)
	defer stop()
	result, err := (*compare.Result)(nil), compare.Wait(waiting, observerSocket(a.c))
	if err == nil {
		result, err = compare.Endpoints(asking, old, observerSocket(a.c))
	}
	if why := context.Cause(asking); why != nil && ctx.Err() == nil {
		err = why // the observer has ended, so that it does not answer
	}
	if err != nil {
		return a.refused("accept-differences", "the old shim and crishim cannot be compared: %v", err)
	}
	if _, err := fmt.Fprintf(a.out, "\nwhat %s and crishim tell:\n", old); err != nil {
		return err
	}
	if err := result.WriteText(a.out); err != nil {
		return err
	}
	if !result.Same() {
		return a.refused("accept-differences", "they differ in what the kubelet decides by")
	}
	return nil
}

func (a *adoption) carryOut(ctx context.Context, plan *handover.Plan) error {
	before, err := compare.Running(ctx, plan.OldEndpoint)
	if err != nil {
		if err := a.refused("accept-differences", "the old shim does not say what runs: %v", err); err != nil {
			return err
		}
	}
	units, err := handover.NewSystemd(ctx)
	if err != nil {
		return err
	}
	defer units.Close()
	ready := func(ctx context.Context) error { return compare.Wait(ctx, plan.Endpoint) }
	if err := handover.Switch(ctx, plan, units, ready, a.out); err != nil {
		return err
	}
	return a.watch(ctx, plan.Endpoint, before)
}

// watch looks whether what ran goes on running under the switched kubelet.
func (a *adoption) watch(ctx context.Context, endpoint string, before map[string]string) error {
	ended := map[string]string{}
	var unanswered error // the last look, which counts: one that fails before is made up for
	for deadline := time.Now().Add(keptWatch); time.Now().Before(deadline); {
		var now map[string]string
		if now, unanswered = compare.Running(ctx, endpoint); unanswered == nil {
			for id, name := range before {
				if now[id] == "" && ended[id] == "" {
					ended[id] = name
					_, _ = fmt.Fprintf(a.out, "ended since: %s (%.12s)\n", name, id)
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
	if unanswered != nil {
		return fmt.Errorf("the node is switched, but whether its containers run on is not known, look at journalctl -u crishim: %w", unanswered)
	}
	_, _ = fmt.Fprintf(a.out, "%d of the %d containers that ran before run still\n", len(before)-len(ended), len(before))
	if len(ended) > 0 {
		return fmt.Errorf("%d containers ended in the %s after the switch: look whether they were about to, else crishim adopt --rollback --yes", len(ended), keptWatch)
	}
	return nil
}

func (a *adoption) rollback(ctx context.Context) error {
	backup, err := kubeletfiles.LoadBackup(a.backupPath())
	if err != nil {
		return err
	}
	force, err := a.fs.GetBool("force")
	if err != nil {
		return err
	}
	if !a.yes {
		for _, e := range backup.Edits {
			_, _ = fmt.Fprintf(a.out, "put back %s\n", e.Path)
		}
		if err := kubeletfiles.CheckEdits(a.places.Root, backup.Edits); err != nil && !force {
			_, _ = fmt.Fprintf(a.out, "this cannot be done without --force, which puts the old files in the place of the others all the same: %s\n", plain(err))
		}
		_, _ = fmt.Fprintln(a.out, "put the old shim's links to Docker's logs in the place of crishim's logs, which wait beside them")
		if node, err := survey.Read(ctx, a.c.Docker.Endpoint); err != nil {
			_, _ = fmt.Fprintf(a.out, "whether the old shim can serve all pods is not known: %v\n", err)
		} else {
			_, _ = fmt.Fprint(a.out, ofNoReturn(node))
		}
		_, err := fmt.Fprintf(a.out, "and start again what ran on %s: %s; nothing was changed, --yes does it\n", backup.Taken.Format(time.RFC3339), backup.OldEndpoint)
		return err
	}
	units, err := handover.NewSystemd(ctx)
	if err != nil {
		return err
	}
	defer units.Close()
	return handover.Back(ctx, &handover.Undo{Root: a.places.Root, BackupPath: a.backupPath(), Units: units, GiveLogsBack: a.giveLogsBack, Force: force}, a.out)
}

func (a *adoption) giveLogsBack(ctx context.Context) error { return giveLogsBack(ctx, a.c, a.out) }
