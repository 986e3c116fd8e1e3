package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Each command line of crishim in the pages is one that it takes: an operator at night types what stands there.
func TestThePagesShowCommandLinesThatThereAre(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(err)
	}
	lines := 0
	line := regexp.MustCompile("crishim (" + strings.Join(commandNames, "|") + ")\\b((?: +[^\\s`|)]+)*)")
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range line.FindAllStringSubmatch(string(text), -1) {
			fs := pflag.NewFlagSet(found[1], pflag.ContinueOnError)
			commands()[found[1]].flags(fs)
			for _, word := range strings.Fields(found[2]) {
				name, isFlag := strings.CutPrefix(word, "--")
				if !isFlag {
					continue
				}
				lines++
				name, _, _ = strings.Cut(strings.TrimRight(name, ".,;:*]"), "=")
				if name != "help" && fs.Lookup(name) == nil {
					t.Errorf("%s: %s: there is no flag --%s", filepath.Base(page), found[0], name)
				}
			}
		}
	}
	if lines < 10 {
		t.Errorf("only %d flags were found", lines)
	}
}
