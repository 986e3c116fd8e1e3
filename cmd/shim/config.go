package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"crishim/cni"
	"crishim/config"
	"crishim/server"
)

func configFlags(fs *pflag.FlagSet) {
	fs.Bool("sample", false, "print a file with every setting, its default and what it means, commented out")
	config.Flags(fs)
}

func showConfig(_ context.Context, fs *pflag.FlagSet, out io.Writer) error {
	if sample, err := fs.GetBool("sample"); err != nil || sample {
		return config.Default().Write(out, true)
	}
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	if err := checkStart(c, "/"); err != nil {
		return err
	}
	// What is left to the node is told beside the settings: which engine that is, and what it calls itself.
	if _, now, why, err := choose(c, "/"); err == nil {
		_, _ = fmt.Fprintf(out, "# The default engine of this node is %s (%s); it calls itself %q.\n", now.Engine, why, now.RuntimeName)
	}
	return c.Write(out, false)
}

// checkStart says what the daemon would refuse at its start, on the host below the given root folder, beside what
// config.Load does. Who may not read the key of streams, or which engine the node has, is told the rest.
func checkStart(c *config.Config, host string) error {
	_, group := server.GroupID(c.SocketGroup)
	errs := []error{group}
	if err := streamingOptions(c).Check(); !errors.Is(err, os.ErrPermission) {
		errs = append(errs, err)
	}
	if err := checkTemplate(c); !errors.Is(err, os.ErrPermission) {
		errs = append(errs, err)
	}
	_, choice, _, err := choose(c, host)
	switch {
	case err == nil:
		errs = append(errs, checkEngines(c.EnginesOn(choice.Engine), c))
	case !errors.Is(err, os.ErrPermission):
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkTemplate renders network.template for the configured pod CIDRs. Where it is the kubelet that will tell them nobody knows yet of
// which families they are, and a template may be made for one or both: it is wrong where it is for each of these.
func checkTemplate(c *config.Config) error {
	if c.Network.Template == "" {
		return nil
	}
	const v4, v6 = "10.244.0.0/24", "fd00:10:244::/64"
	told := [][]string{{v4}, {v6}, {v4, v6}, {v6, v4}}
	if len(c.Network.PodCIDRs) > 0 {
		told = [][]string{c.Network.PodCIDRs}
	}
	var first error
	for _, cidrs := range told {
		err := cni.CheckTemplate(c.Network.Template, c.Network.ConfDir, cidrs)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return fmt.Errorf("network.template: no network configuration can be made of %s: %w", c.Network.Template, first)
}
