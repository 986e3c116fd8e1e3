package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Handler is a runtime handler of the operator's: [handlers.NAME], which a RuntimeClass names. The engines' own names and
// Docker's OCI runtimes are handlers without being written down.
type Handler struct {
	Engine  string `toml:"engine" help:"docker or native; the engine is on because it is named here"`
	Runtime string `toml:"runtime" help:"OCI runtime of the Docker Engine, a name of daemon.json's runtimes; empty: its default"`
	// OCIRuntime is for the native engine.
	OCIRuntime string `toml:"oci_runtime" help:"OCI runtime of the native engine, the absolute path of a program (/usr/sbin/runc, /usr/bin/crun); empty: its own"`
}

// fields walks the settings of a handler.
func (h *Handler) fields(name string) []setting {
	var all []setting
	v := reflect.ValueOf(h).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		all = append(all, setting{"handlers." + name + "." + tag.Get("toml"), tag.Get("help"), v.Field(i)})
	}
	return all
}

// checkHandlers: a name that stands for an engine stands for that one only.
func (c *Config) checkHandlers() []problem {
	var all []problem
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		h, key := c.Handlers[name], "handlers."+name
		all = append(all, problem{key, word(name)})
		if h.Engine == "" {
			all = append(all, problem{key, errors.New("it needs an engine, docker or native")})
			continue
		}
		all = append(all, problem{key + ".engine", oneOf(h.Engine, EngineDocker, EngineNative)})
		if (name == EngineDocker || name == EngineNative) && h.Engine != name {
			all = append(all, problem{key + ".engine", fmt.Errorf("the handler %q is the engine of that name, it cannot be on %q; give this handler another name", name, h.Engine)})
		}
		switch {
		case h.OCIRuntime == "":
		case h.Engine != EngineNative:
			all = append(all, problem{key + ".oci_runtime", errors.New("it is for the native engine; Docker's are named in daemon.json, and by runtime here")})
		case !filepath.IsAbs(h.OCIRuntime):
			all = append(all, problem{key + ".oci_runtime", fmt.Errorf("%q is not an absolute path", h.OCIRuntime)})
		case name == EngineNative:
			all = append(all, problem{key + ".oci_runtime", errors.New("the handler native is the engine's own runtime; give this handler another name")})
		}
		if h.Engine == EngineNative && h.Runtime != "" {
			all = append(all, problem{key + ".runtime", errors.New("the native engine has no runtimes of Docker's")})
		}
	}
	return all
}

// EnginesOn are the engines that the configuration turns on: the default one first, then those of engines and of handlers.
func (c *Config) EnginesOn(defaultEngine string) []string {
	on := append([]string{defaultEngine}, c.Engines...)
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		on = append(on, c.Handlers[name].Engine)
	}
	var once []string
	for _, name := range on {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

// writeHandlers prints the handlers' sections; with comments, one that shows the form.
func (c *Config) writeHandlers(w io.Writer, comments bool) error {
	if comments {
		var b strings.Builder
		b.WriteString("# further runtime handlers, which a RuntimeClass names\n#[handlers.NAME]\n")
		for _, s := range new(Handler).fields("NAME") {
			fmt.Fprintf(&b, "# %s\n#%s = %s\n", s.help, strings.TrimPrefix(s.key, "handlers.NAME."), s.toml())
		}
		_, err := io.WriteString(w, b.String())
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		h := c.Handlers[name]
		if _, err := fmt.Fprintf(w, "\n[handlers.%s]\n", name); err != nil {
			return err
		}
		for _, s := range h.fields(name) {
			if _, err := fmt.Fprintf(w, "%s = %s\n", strings.TrimPrefix(s.key, "handlers."+name+"."), s.toml()); err != nil {
				return err
			}
		}
	}
	return nil
}
