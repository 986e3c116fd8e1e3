package main

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestHelpTellsOfEveryCommand(t *testing.T) {
	for name := range commands() {
		if !slices.Contains(commandNames, name) {
			t.Errorf("the overview leaves out %s", name)
		}
	}
	for _, name := range commandNames {
		var out bytes.Buffer
		if err := run(t.Context(), []string{name, "--help"}, &out); !errors.Is(err, pflag.ErrHelp) {
			t.Fatalf("%s --help: %v", name, err)
		}
		if !strings.Contains(out.String(), "Usage: crishim "+name) {
			t.Errorf("the help of %s has no usage:\n%s", name, &out)
		}
		if lists := strings.Contains(out.String(), "--docker-endpoint"); lists != (name == "serve" || name == "config") {
			t.Errorf("the help of %s lists the daemon's settings: %t", name, lists)
		}
		for line := range strings.Lines(out.String()) {
			if len(line) > helpWidth+10 {
				t.Errorf("the help of %s has a line of %d columns: %s", name, len(line), line)
			}
		}
	}
	for args, want := range map[string]string{
		"help adopt": "Usage: crishim adopt", "images": "Usage: crishim images", "images --json": "Usage: crishim images", "--version": "crishim " + version,
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(args), &out)
		if usage := strings.HasPrefix(args, "images"); errors.Is(err, errUsage) != usage || !strings.Contains(out.String(), want) {
			t.Errorf("crishim %s: %v, %q", args, err, &out)
		}
	}
	if err := run(t.Context(), []string{"help", "nothing"}, io.Discard); !errors.Is(err, errUsage) {
		t.Errorf("help of what is no command: %v", err)
	}
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out); err != nil || out.String() != overview() {
			t.Errorf("%v: %v, %q", args, err, &out)
		}
	}
}
