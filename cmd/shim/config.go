package main

import (
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

// checkTemplate renders network.template for the configured pod CIDRs, or for one where it is the kubelet that will tell them.
func checkTemplate(c *config.Config) error {
	if c.Network.Template == "" {
		return nil
	}
	cidrs := c.Network.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{"10.244.0.0/24"}
	}
	if err := cni.CheckTemplate(c.Network.Template, c.Network.ConfDir, cidrs); err != nil {
		return fmt.Errorf("network.template: no network configuration can be made of %s: %w", c.Network.Template, err)
	}
	return nil
}
