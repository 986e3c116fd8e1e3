package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestHandlersNameEngines(t *testing.T) {
	file := "engine = \"docker\"\n\n[handlers.moved]\nengine = \"native\"\n\n[handlers.kata]\nengine = \"docker\"\nruntime = \"kata-qemu\"\n\n[handlers.crun]\nengine = \"native\"\noci_runtime = \"/usr/bin/crun\"\n"
	c, err := load(t, file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Handler{"moved": {Engine: EngineNative}, "kata": {Engine: EngineDocker, Runtime: "kata-qemu"}, "crun": {Engine: EngineNative, OCIRuntime: "/usr/bin/crun"}}
	if !reflect.DeepEqual(c.Handlers, want) {
		t.Errorf("got %+v", c.Handlers)
	}
	if on := c.EnginesOn(EngineDocker); !slices.Equal(on, []string{EngineDocker, EngineNative}) {
		t.Errorf("on are %v", on)
	}
	var b strings.Builder
	if err := c.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	if again, err := load(t, b.String()); err != nil || !reflect.DeepEqual(again.Handlers, want) {
		t.Errorf("what is written is not read back: %+v, %v", again, err)
	}
}

func TestEnginesAreOnByTheirList(t *testing.T) {
	c, err := load(t, "engine = \"native\"\nengines = [\"docker\", \"native\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	if on := c.EnginesOn(EngineNative); !slices.Equal(on, []string{EngineNative, EngineDocker}) {
		t.Errorf("the default one is not first of %v", on)
	}
	if on := Default().EnginesOn(EngineNative); !slices.Equal(on, []string{EngineNative}) {
		t.Errorf("on by default are %v", on)
	}
}

func TestAHandlerThatCannotBeIsRefusedWithItsLine(t *testing.T) {
	for _, row := range []struct{ file, want string }{
		{"[handlers.native]\nengine = \"docker\"\n", ":2: handlers.native.engine: the handler \"native\" is the engine of that name"},
		{"[handlers.docker]\nengine = \"native\"\n", ":2: handlers.docker.engine: the handler \"docker\" is the engine of that name"},
		{"[handlers.x]\nengine = \"podman\"\n", ":2: handlers.x.engine: \"podman\""},
		{"[handlers.x]\n", ":1: handlers.x: it needs an engine"},
		{"[handlers.\"A.b\"]\nengine = \"docker\"\n", ":1: handlers.A.b: \"A.b\" is not a word"},
		{"[handlers.x]\nengine = \"native\"\nruntime = \"runc\"\n", ":3: handlers.x.runtime: "},
		{"[handlers.x]\nengine = \"docker\"\noci_runtime = \"/usr/sbin/runc\"\n", ":3: handlers.x.oci_runtime: it is for the native engine"},
		{"[handlers.x]\nengine = \"native\"\noci_runtime = \"runc\"\n", ":3: handlers.x.oci_runtime: \"runc\" is not an absolute path"},
		{"[handlers.native]\nengine = \"native\"\noci_runtime = \"/usr/sbin/runc\"\n", ":3: handlers.native.oci_runtime: the handler native is"},
		{"[handlers.x]\nengin = \"native\"\n", ":2: unknown key handlers.x.engin"},
		{"[handlers.x]\nengine = \"native\"\n[handlers.x]\nengine = \"docker\"\n", ":3: "},
		{"engines = [\"docker\", \"podman\"]\n", ":1: engines: \"podman\""},
	} {
		if _, err := load(t, row.file); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got %v, want %q", row.file, err, row.want)
		}
	}
}
