package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"crishim/config"
)

// helpWidth is the columns that help texts keep to.
const helpWidth = 120

// names of the commands in the order of the overview.
var commandNames = []string{"serve", "check", "state", "images", "preflight", "adopt", "verify", "config", "version"}

// overview is `crishim --help`.
func overview() string {
	var b strings.Builder
	b.WriteString("crishim lets a kubelet run pods on a Docker Engine, or on its own engine where there is none.\n\nUsage: crishim [COMMAND] [FLAGS]\n\n")
	for _, name := range commandNames {
		fmt.Fprintf(&b, "  %-9s %s\n", name, commands()[name].does)
	}
	b.WriteString("\ncrishim COMMAND --help tells more of a command.\n")
	return b.String()
}

// help is `crishim COMMAND --help`: what the command does and its own flags. That each setting of the daemon is a flag of
// every command, too, is said; they are listed where somebody looks for them.
func (c command) help(name string, fs *pflag.FlagSet) string {
	var b strings.Builder
	if c.usage != "" {
		b.WriteString(c.usage)
	} else {
		fmt.Fprintf(&b, "crishim %s: %s.\n", name, c.does)
		if c.more != "" {
			b.WriteString(c.more + "\n")
		}
		fmt.Fprintf(&b, "\nUsage: crishim %s [FLAGS]\n\n", name)
	}
	own, sections := pflag.NewFlagSet("", pflag.ContinueOnError), map[string]*pflag.FlagSet{}
	own.SortFlags = false
	var order []string
	fs.VisitAll(func(f *pflag.Flag) {
		section, ok := config.Section(f)
		switch {
		case !ok:
			own.AddFlag(f)
			return
		case sections[section] == nil:
			sections[section] = pflag.NewFlagSet("", pflag.ContinueOnError)
			sections[section].SortFlags = false
			order = append(order, section)
		}
		sections[section].AddFlag(f)
	})
	b.WriteString(own.FlagUsagesWrapped(helpWidth))
	switch {
	case len(order) == 0:
	case !c.settings:
		b.WriteString("\nThe settings of the daemon come from its file; each can be given as a flag, too: crishim serve --help lists them.\n")
	default:
		b.WriteString("\nSettings, which are keys of the file, too (crishim config --sample explains it); a flag counts over the file:\n")
		for _, section := range order {
			if section != "" {
				fmt.Fprintf(&b, "\n[%s]\n", section)
			}
			b.WriteString(sections[section].FlagUsagesWrapped(helpWidth))
		}
	}
	return b.String()
}
