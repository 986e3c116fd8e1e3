package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/klog/v2"

	"crishim/config"
	"crishim/engine"
	"crishim/internal/atomicfile"
)

// node is what the first start decided for this node. It is kept, so that neither an engine that is down for a while nor
// a package that comes or goes moves pods from one engine to another or renames containers under the kubelet.
type node struct {
	Engine      string `json:"engine"`
	RuntimeName string `json:"runtimeName"`
	// CgroupDriver is what the Docker Engine had when it was on beside the native engine: the kubelet's is the same.
	CgroupDriver engine.CgroupDriver `json:"cgroupDriver,omitempty"`
}

func nodeFile(c *config.Config) string { return filepath.Join(c.RootDir, "node.json") }

// decideNode returns what is recorded, and what holds from this start on, with the reason in a sentence. It records nothing: keep
// does, once nothing refuses the start.
func decideNode(c *config.Config, host string) (was, now node, why string, err error) {
	if was, now, why, err = choose(c, host); err == nil {
		err = checkEngines(c.EnginesOn(now.Engine), c)
	}
	return was, now, why, err
}

// keep records what was decided for the day when the configuration does not name it any more.
func (n node) keep(was node, c *config.Config) error {
	if n == was {
		return nil
	}
	err := n.write(nodeFile(c))
	if was.CgroupDriver = n.CgroupDriver; err != nil && n == was {
		klog.ErrorS(err, "The Docker Engine's cgroup driver is not recorded; the native engine finds out itself while Docker is down")
		return nil
	}
	return err
}

// choose returns what is recorded and what holds from the next start on: what the configuration names counts over it.
func choose(c *config.Config, host string) (was, now node, why string, err error) {
	path := nodeFile(c)
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &was)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return node{}, node{}, "", fmt.Errorf("read which engine this node has: %w; mend %s, or remove it and set engine", err, path)
	}
	now = node{CgroupDriver: was.CgroupDriver}
	switch now.Engine = c.Engine; {
	case c.Engine != config.EngineAuto:
		why = "the configuration says so"
	case was.Engine != "":
		now.Engine, why = was.Engine, "it was chosen at the first start of this node"
	default:
		now.Engine, why = detectEngine(host, c.Docker.Endpoint)
	}
	switch {
	case c.RuntimeName != "":
		now.RuntimeName = c.RuntimeName
	case was.RuntimeName != "":
		now.RuntimeName = was.RuntimeName
	case now.Engine == config.EngineDocker:
		now.RuntimeName = "docker" // what kubelets and agents know
	default:
		now.RuntimeName = "crishim"
	}
	return was, now, why, nil
}

func (n node) write(path string) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("record which engine this node has: %w", err)
	}
	return nil
}

// detectEngine takes docker where a Docker Engine is installed below the root folder host, whether it answers or not: a
// client alone is none.
func detectEngine(host, endpoint string) (name, why string) {
	places := []string{strings.TrimPrefix(endpoint, "unix://")}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"} {
		places = append(places, filepath.Join(dir, "dockerd"))
	}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"} {
		places = append(places, filepath.Join(dir, "docker.service"))
	}
	for _, place := range places {
		if _, err := os.Stat(filepath.Join(host, place)); err == nil {
			return config.EngineDocker, "a Docker Engine is installed: " + place
		}
	}
	return config.EngineNative, "no Docker Engine is installed: there is no " + places[0] + ", no dockerd and no docker.service"
}
