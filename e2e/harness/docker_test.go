package harness

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestTestsRunInTheirOwnNetworkNamespace(t *testing.T) {
	Require(t)
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name := link.Attrs().Name; strings.HasPrefix(name, "eth") || strings.HasPrefix(name, "docker") {
			t.Errorf("the host's %s is here", name)
		}
	}
}

func TestDockerEngineRunsImagesOfTheRegistryAndLeavesNothing(t *testing.T) {
	AboutDocker(t)
	Require(t)
	var dir string
	t.Run("run", func(t *testing.T) {
		d := StartDocker(t, DockerOptions{LiveRestore: true})
		dir = d.dir
		ref := SharedRegistry(t).Ref(Busybox)
		d.Post("/images/create?fromImage=" + strings.ReplaceAll(ref, "/", "%2F"))
		var created struct{ ID string }
		body := map[string]any{"Image": ref, "Cmd": []string{"sleep", "1000"}, "HostConfig": map[string]any{"NetworkMode": "none", "OomScoreAdj": -998}}
		if err := d.call("POST", "/containers/create", body, &created); err != nil {
			t.Fatal(err)
		}
		d.Post("/containers/" + created.ID + "/start")
		d.Kill()
		d.Start()
		var inspect struct{ State struct{ Running bool } }
		d.Get("/containers/"+created.ID+"/json", &inspect)
		if !inspect.State.Running {
			t.Error("the container did not outlive dockerd in spite of live-restore")
		}
		d.Pause()
		if !d.Running() {
			t.Error("paused means ended")
		}
		d.Resume()
		ids, err := d.Containers()
		if err != nil || !slices.Equal(ids, []string{created.ID}) {
			t.Errorf("containers %v, %v; want %s", ids, err, created.ID)
		}
	})
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
	if pids := processesNaming(dir); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
}

func TestProcessThatIgnoresTermIsKilledAndReported(t *testing.T) {
	p := start(t, "stubborn", t.TempDir()+"/log", nil, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	Eventually(t, 5e9, "the shell to be ready", func() error {
		if !strings.Contains(p.LogTail(), "ready") {
			return syscall.EAGAIN
		}
		return nil
	})
	if err := p.Terminate(1e8); err == nil {
		t.Error("no error")
	}
	if p.Running() || p.ExitCode() != -1 {
		t.Errorf("running %v, exit code %d; want ended by a signal", p.Running(), p.ExitCode())
	}
}
