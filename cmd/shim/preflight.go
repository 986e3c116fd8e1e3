package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/migrate/preflight"
)

// The forms of reports.
const (
	outputText = "text"
	outputJSON = "json"
	outputNode = "node"
)

func shimFlags(fs *pflag.FlagSet) {
	fs.String("shim-root", "", "folder of the old shim's checkpoints (default: by its flags, else /var/lib/dockershim or /var/lib/cri-dockerd)")
	fs.String("cni-cache-dir", "", "libcni cache of the old shim (default: by its flags, else /var/lib/cni/cache)")
}

func preflightFlags(fs *pflag.FlagSet) {
	fs.String("output", outputText, "text or json; node is all that was read, for a bug report")
	shimFlags(fs)
	config.Flags(fs)
}

// runPreflight changes nothing. The exit status is the report's verdict: 0 ready, 1 something to do, 2 cannot.
func runPreflight(ctx context.Context, fs *pflag.FlagSet, out io.Writer) error {
	c, err := config.Load(fs)
	if err != nil {
		return err
	}
	places, err := nodePlaces(fs)
	if err != nil {
		return err
	}
	form, err := outputForm(fs, outputText, outputJSON, outputNode)
	if err != nil {
		return err
	}
	node := preflight.Gather(ctx, c, places)
	if form == outputNode {
		return writeNode(out, node)
	}
	report := preflight.Examine(node)
	if err := writeReport(form, out, report, report.WriteText); err != nil {
		return err
	}
	if report.Verdict != preflight.Ready {
		return verdict(report.Verdict)
	}
	return nil
}

// password is that of a URL, as a proxy's in the environment of the kubelet.
var password = regexp.MustCompile(`(://[^/\s"\\:@]*:)[^/\s"\\]*@`)

// writeNode leaves out what a bug report is not to have.
func writeNode(out io.Writer, node *preflight.Node) error {
	var all bytes.Buffer
	if err := writeJSON(&all, node); err != nil {
		return err
	}
	_, err := out.Write(password.ReplaceAll(all.Bytes(), []byte("${1}***@")))
	return err
}

func nodePlaces(fs *pflag.FlagSet) (preflight.Places, error) {
	shimRoot, err := fs.GetString("shim-root")
	if err != nil {
		return preflight.Places{}, err
	}
	cacheDir, err := fs.GetString("cni-cache-dir")
	if err != nil {
		return preflight.Places{}, err
	}
	return preflight.Places{Root: "/", Proc: "/proc", ShimRoot: shimRoot, CacheDir: cacheDir}, nil
}

// outputForm is what the flag --output says, which is asked before anything is done.
func outputForm(fs *pflag.FlagSet, forms ...string) (string, error) {
	form, err := fs.GetString("output")
	if err == nil && !slices.Contains(forms, form) {
		err = fmt.Errorf("--output=%s: it is one of %s: %w", form, strings.Join(forms, ", "), errUsage)
	}
	return form, err
}

// writeReport prints a report in its form.
func writeReport(form string, out io.Writer, report any, text func(io.Writer) error) error {
	if form == outputJSON {
		return writeJSON(out, report)
	}
	return text(out)
}

func writeJSON(out io.Writer, value any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(value)
}
