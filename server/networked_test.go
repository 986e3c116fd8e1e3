package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// networked is an engine with a say once a pod's networks are there.
type networked struct {
	engine.Engine
	say func(id engine.PodID, ips []string) error
}

func (n networked) PodNetworked(_ context.Context, id engine.PodID, ips []string) error {
	return n.say(id, ips)
}

// Rows: S24 (part)
func TestSysctlsOfInterfacesComeAfterTheNetwork(t *testing.T) {
	f := newFixture(t)
	config := f.podConfig("web")
	config.Linux.Sysctls = map[string]string{"net.ipv4.conf.eth0.arp_ignore": "1", "net.core.somaxconn": "100"}
	f.network.failSysctls = errors.New("no such interface")
	if _, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config}); err == nil || !strings.Contains(err.Error(), "no such interface") {
		t.Errorf("a pod whose sysctls cannot be set: %v", err)
	}
	f.nothingLeft()
	f.network.failSysctls = nil
	if _, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config}); err != nil {
		t.Fatal(err)
	}
	if len(f.network.sysctls) != 1 || f.network.sysctls["net.ipv4.conf.eth0.arp_ignore"] != "1" {
		t.Errorf("set %v", f.network.sysctls)
	}
}

func TestAnEngineHasItsSayBeforeAPodIsListed(t *testing.T) {
	f := newFixture(t)
	f.stop()
	var refuse error
	var listed int
	var told []string
	f.wrap = func(e engine.Engine) engine.Engine {
		return networked{e, func(_ engine.PodID, ips []string) error {
			told = append(told, ips...)
			list, err := f.runtime.ListPodSandbox(context.WithoutCancel(t.Context()), &runtimeapi.ListPodSandboxRequest{})
			listed += len(list.GetItems())
			return errors.Join(err, refuse)
		}}
	}
	f.start()
	refuse = errors.New("not this one")
	if _, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig("web")}); err == nil || !strings.Contains(err.Error(), "not this one") {
		t.Errorf("a pod that the engine refuses: %v", err)
	}
	f.nothingLeft()
	refuse = nil
	f.runPod("web")
	if listed != 0 || !slices.Equal(told, []string{"10.0.0.1", "10.0.0.2"}) {
		t.Errorf("listed %d times while it was made; told %q", listed, told)
	}
	list, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
	f.nothingLeft()
}
