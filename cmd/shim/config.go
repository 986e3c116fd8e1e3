package main

import (
	"context"
	"io"

	"github.com/spf13/pflag"

	"crishim/config"
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
	return c.Write(out, false)
}
