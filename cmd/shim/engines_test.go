package main

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"crishim/config"
	"crishim/engine"
	"crishim/server"
	"crishim/state"
)

func TestHandlersOfBothEngines(t *testing.T) {
	c := config.Default()
	c.Engines = []string{config.EngineDocker, config.EngineNative}
	c.Handlers = map[string]config.Handler{"kata": {Engine: config.EngineDocker, Runtime: "kata-qemu"}}
	want := map[string]server.Handler{
		"": {Engine: "docker"}, "docker": {Engine: "docker"}, "native": {Engine: "native"}, "kata": {Engine: "docker", Runtime: "kata-qemu"},
	}
	if got := handlers(node{Engine: config.EngineDocker}, c); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	c = config.Default()
	want = map[string]server.Handler{"": {Engine: "native"}, "native": {Engine: "native"}}
	if got := handlers(node{Engine: config.EngineNative}, c); !reflect.DeepEqual(got, want) {
		t.Errorf("of one engine: %v", got)
	}
}

func TestSettingsThatAnEngineCannotKeepAreRefused(t *testing.T) {
	c := config.Default()
	c.NRI.Enable = true
	if err := checkEngines([]string{"docker"}, c); err == nil || !strings.Contains(err.Error(), "nri.enable") {
		t.Error(err)
	}
	if err := checkEngines([]string{"docker", "native"}, c); err != nil {
		t.Errorf("the native engine has NRI, also beside Docker: %v", err)
	}
	c.Network.Mode = config.NetworkBridge
	if err := checkEngines([]string{"docker", "native"}, c); err == nil || !strings.Contains(err.Error(), "docker-bridge") {
		t.Error(err)
	}
}

func TestAnEngineIsOnWhileItHasPods(t *testing.T) {
	dir := t.TempDir()
	store, err := state.Open(filepath.Join(dir, "root"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if names := recordedEngines(store); len(names) > 0 {
		t.Errorf("without records: %v", names)
	}
	for i, name := range []string{"native", "docker", "native"} {
		pod := state.Pod{Engine: name, Phase: state.PhaseIntent, Spec: engine.PodSpec{Key: engine.PodKey{Name: "p", Namespace: "n", UID: "u", Attempt: uint32(i)}}}
		if err := store.PutPod(pod); err != nil {
			t.Fatal(err)
		}
	}
	if names := recordedEngines(store); !slices.Equal(names, []string{"docker", "native"}) {
		t.Errorf("got %v", names)
	}
}

func TestTheNodesCgroupDriverIsKept(t *testing.T) {
	c := config.Default()
	c.RootDir = t.TempDir()
	if err := (node{Engine: "native", RuntimeName: "docker", CgroupDriver: engine.CgroupfsDriver}).write(nodeFile(c)); err != nil {
		t.Fatal(err)
	}
	_, choice, _, err := decideNode(c, t.TempDir())
	if err != nil || nativeDriver(choice, c) != engine.CgroupfsDriver {
		t.Errorf("%+v, %v", choice, err)
	}
	c.CgroupDriver = "systemd"
	if got := nativeDriver(choice, c); got != engine.SystemdDriver {
		t.Errorf("the configuration says systemd, got %s", got)
	}
}
