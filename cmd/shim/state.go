package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine"
	"crishim/state"
)

func stateFlags(fs *pflag.FlagSet) {
	fs.Bool("json", false, "print whole records as JSON; values of environment variables are in them")
	config.Flags(fs)
}

// showState prints what is recorded, which may be behind what runs: the engine is not asked.
func showState(_ context.Context, fs *pflag.FlagSet, out io.Writer) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	store, err := state.OpenReadOnly(stateDir(c))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no records in %s: crishim has not run here, or root_dir is another", stateDir(c))
	}
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	pods, containers := store.Pods(), store.Containers()
	if asJSON, err := fs.GetBool("json"); err != nil || asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		records := map[string]any{"quarantined": append([]state.Quarantined{}, store.Quarantined()...)}
		podRecords, containerRecords := []state.Pod{}, []state.Container{}
		for i := range pods {
			podRecords = append(podRecords, pods[i].Pod)
		}
		for i := range containers {
			containerRecords = append(containerRecords, containers[i].Container)
		}
		records["pods"], records["containers"] = podRecords, containerRecords
		return e.Encode(records)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KIND\tID\tNAMESPACE\tPOD\tCONTAINER\tATTEMPT\tPHASE\tENGINE\tAGE\tADDRESS\tNOTE")
	line := func(c *state.ContainerView) {
		key := c.Spec.PodKey
		_, _ = fmt.Fprintf(w, "container\t%.12s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t\t%s\n", c.ID, key.Namespace, key.Name, c.Spec.Key.Name, c.Spec.Key.Attempt, c.Phase, c.Engine, age(c.CreatedAt), c.Leftover)
	}
	shown := map[engine.PodID]bool{}
	for _, p := range pods {
		address := ""
		if len(p.Network.IPs) > 0 {
			address = p.Network.IPs[0]
		}
		key := p.Spec.Key
		_, _ = fmt.Fprintf(w, "pod\t%.12s\t%s\t%s\t\t%d\t%s\t%s\t%s\t%s\t%s\n", p.ID, key.Namespace, key.Name, key.Attempt, p.Phase, p.Engine, age(p.CreatedAt), address, p.Leftover)
		shown[p.ID] = true
		for _, c := range store.ContainersOf(p.ID) {
			line(&c)
		}
	}
	for i := range containers {
		if !shown[containers[i].PodID] { // the record of its pod cannot be read
			line(&containers[i])
		}
	}
	for _, q := range store.Quarantined() {
		_, _ = fmt.Fprintf(w, "unreadable %s\t\t\t\t\t\t\t\t\t\t%s: %s\n", q.Kind, q.Path, q.Reason)
	}
	return w.Flush()
}

func age(t time.Time) string { return time.Since(t).Round(time.Second).String() }
