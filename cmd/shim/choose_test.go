package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crishim/config"
	"crishim/state"
)

func TestTheEngineIsChosenOnce(t *testing.T) {
	host := t.TempDir()
	c := config.Default()
	c.RootDir = t.TempDir()
	decide := func(want node) string {
		t.Helper()
		got, why, err := decideNode(c, host)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
		return why
	}
	if why := decide(node{Engine: "native", RuntimeName: "crishim"}); !strings.Contains(why, "no Docker Engine is installed") {
		t.Error(why)
	}
	// A Docker Engine that comes later changes nothing by itself.
	if err := os.MkdirAll(filepath.Join(host, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "usr/bin/dockerd"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	decide(node{Engine: "native", RuntimeName: "crishim"})
	// Only the configuration changes it, and the name that the kubelet knows stays.
	c.Engine = config.EngineDocker
	decide(node{Engine: "docker", RuntimeName: "crishim"})
	c.Engine = config.EngineAuto
	decide(node{Engine: "docker", RuntimeName: "crishim"})
	c.RuntimeName = "docker"
	decide(node{Engine: "docker", RuntimeName: "docker"})
}

func TestADockerEngineIsFoundWhetherItAnswersOrNot(t *testing.T) {
	for _, place := range []string{"/var/run/docker.sock", "/usr/sbin/dockerd", "/lib/systemd/system/docker.service"} {
		host := t.TempDir()
		if err := os.MkdirAll(filepath.Join(host, filepath.Dir(place)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, place), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		name, why := detectEngine(host, "unix:///var/run/docker.sock")
		if name != config.EngineDocker || !strings.Contains(why, place) {
			t.Errorf("%s: %s, %s", place, name, why)
		}
	}
	// The client alone is no engine.
	host := t.TempDir()
	_ = os.MkdirAll(filepath.Join(host, "usr/bin"), 0o755)
	_ = os.WriteFile(filepath.Join(host, "usr/bin/docker"), nil, 0o755)
	if name, _ := detectEngine(host, "unix:///var/run/docker.sock"); name != config.EngineNative {
		t.Error(name)
	}
}

func TestADamagedChoiceIsNotGuessed(t *testing.T) {
	c := config.Default()
	c.RootDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(c.RootDir, "node.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := decideNode(c, t.TempDir()); err == nil || !strings.Contains(err.Error(), "node.json") {
		t.Error(err)
	}
}

// What was written down would hold for the starts after it, when the setting is taken back or the daemon that has the folder restarts.
func TestAStartThatIsRefusedDecidesNothing(t *testing.T) {
	dir := t.TempDir()
	root, runDir := filepath.Join(dir, "root"), filepath.Join(dir, "run")
	c := config.Default()
	c.RootDir, c.RunDir = root, runDir
	was := node{Engine: config.EngineDocker, RuntimeName: "docker"}
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := was.write(nodeFile(c)); err != nil {
		t.Fatal(err)
	}
	refused := func(why, want string, args ...string) {
		t.Helper()
		args = append([]string{"serve", "--config=/dev/null", "--root-dir=" + root, "--run-dir=" + runDir, "--engine=native", "--network-conf-dir=" + filepath.Join(dir, "net.d")}, args...)
		if err := runArgs(t.Context(), args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", why, err)
		}
		if _, now, _, err := choose(c, dir); err != nil || now != was {
			t.Errorf("after a start %s: %+v, %v", why, now, err)
		}
	}
	refused("with settings that the engine cannot keep", "docker-bridge", "--network=docker-bridge")
	store, err := state.Open(stateDir(c), filepath.Join(runDir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	refused("beside the daemon that has the folder", "another")
}
