package main

import (
	"errors"
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
		was, got, why, err := decideNode(c, host)
		if err == nil {
			err = got.keep(was, c)
		}
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
	if _, _, _, err := decideNode(c, t.TempDir()); err == nil || !strings.Contains(err.Error(), "node.json") {
		t.Error(err)
	}
}

// What was written down would hold for the starts after it, when the setting is taken back or the daemon that has the folder restarts.
func TestAStartThatIsRefusedDecidesNothing(t *testing.T) {
	dir := t.TempDir()
	root, runDir, file := filepath.Join(dir, "root"), filepath.Join(dir, "run"), filepath.Join(dir, "file")
	c := config.Default()
	c.RootDir, c.RunDir = root, runDir
	if err := errors.Join(os.MkdirAll(root, 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	refused := func(was node, why, want string, args ...string) {
		t.Helper()
		if err := was.write(nodeFile(c)); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"serve", "--config=/dev/null", "--root-dir=" + root, "--run-dir=" + runDir, "--network-conf-dir=" + filepath.Join(dir, "net.d")}, args...)
		if err := runArgs(t.Context(), args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", why, err)
		}
		if _, now, _, err := choose(c, dir); err != nil || now != was {
			t.Errorf("after a start %s: %+v, %v", why, now, err)
		}
	}
	docker, native := node{Engine: config.EngineDocker, RuntimeName: "docker"}, node{Engine: config.EngineNative, RuntimeName: "crishim"}
	refused(docker, "with settings that the engine cannot keep", "docker-bridge", "--engine=native", "--network=docker-bridge")
	refused(native, "without its socket", "that is not a socket", "--engine=docker", "--docker-endpoint=unix://"+filepath.Join(dir, "none.sock"), "--listen=unix://"+file)
	store, err := state.Open(stateDir(c), filepath.Join(runDir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	refused(docker, "beside the daemon that has the folder", "another", "--engine=native")
}
