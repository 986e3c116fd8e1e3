package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"crishim/config"
	"crishim/engine/enginetest"
	"crishim/engine/imageset"
)

// memoryEngine is an engine in memory, as serve has engines.
type memoryEngine struct{ *enginetest.Memory }

func (memoryEngine) ReloadHosts([]string)          {}
func (memoryEngine) SetPinned([]string)            {}
func (memoryEngine) stopPlugins()                  {}
func (memoryEngine) register(*prometheus.Registry) {}
func (memoryEngine) quarantined() int              { return 0 }

// administered is a running daemon as commands see it: two engines and the admin socket.
type administered struct {
	t              *testing.T
	c              *config.Config
	docker, native *enginetest.Memory
	stop           func()
}

func newAdministered(t *testing.T) *administered {
	t.Helper()
	a := &administered{t: t, c: config.Default()}
	a.c.RunDir = t.TempDir()
	a.docker = enginetest.NewMemory(enginetest.Options{Name: config.EngineDocker})
	a.native = enginetest.NewMemory(enginetest.Options{Name: config.EngineNative, ManifestIDs: true})
	t.Cleanup(a.docker.Close)
	t.Cleanup(a.native.Close)
	set := imageset.New([]imageset.Store{{Engine: config.EngineDocker, Images: a.docker}, {Engine: config.EngineNative, Images: a.native}}, func(imageset.Progress) {})
	t.Cleanup(set.Close)
	listener := listenAdmin(a.c)
	if listener == nil {
		t.Fatal("there is no admin socket")
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- serveAdmin(ctx, listener, set, nodeEngines{memoryEngine{a.docker}, memoryEngine{a.native}})
	}()
	a.stop = func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	return a
}

// carry is crishim images copy or move with these arguments.
func (a *administered) carry(name string, args ...string) (string, error) {
	a.t.Helper()
	fs := pflag.NewFlagSet("images", pflag.ContinueOnError)
	imagesFlags(fs)
	if err := fs.Parse(args); err != nil {
		a.t.Fatal(err)
	}
	var out bytes.Buffer
	err := carryInDaemon(a.t.Context(), a.c, fs, name, fs.Args(), &out)
	return out.String(), err
}

func (a *administered) images(m *enginetest.Memory) int {
	a.t.Helper()
	list, err := m.ListImages(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	return len(list)
}

// A running daemon carries images between its engines for a command. What one run has carried the next one does not carry
// again, so that a command that was cut off is given once more.
func TestARunningDaemonCarriesImagesAndGoesOn(t *testing.T) {
	a := newAdministered(t)
	defer a.stop()
	if info, err := os.Stat(adminSocket(a.c)); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	names := []string{"registry.test/a:1", "registry.test/b:1", "registry.test/c:1"}
	for _, name := range names {
		a.docker.AddImage(enginetest.NewImage(name))
	}
	toNative := []string{"--from", "docker", "--to", "native"}
	a.native.FailOnce("ImportImage", errors.New("a layer is torn"))
	out, err := a.carry("copy", toNative...)
	if err == nil || !strings.Contains(err.Error(), "a layer is torn") || !strings.Contains(err.Error(), "goes on") || !strings.Contains(out, "2 of 3 images are on engine native") {
		t.Errorf("one that fails: %v\n%s", err, out)
	}
	before := a.docker.Calls("ExportImage")
	out, err = a.carry("copy", toNative...)
	if err != nil || !strings.Contains(out, "3 of 3 images are on engine native") || a.images(a.native) != 3 {
		t.Errorf("%v\n%s", err, out)
	}
	if carried := a.docker.Calls("ExportImage") - before; carried != 1 {
		t.Errorf("the second run carried %d images", carried)
	}
	out, err = a.carry("move", append(toNative, names[0])...)
	if err != nil || !strings.Contains(out, "1 of 1 images are on engine native, 0 of them were kept on docker as well") || a.images(a.docker) != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := a.carry("move", append(toNative, "registry.test/absent:1")...); err == nil {
		t.Error("an image that is not there was moved")
	}
	if _, err := a.carry("copy", "--from", "docker", "--to", "docker"); !errors.Is(err, errUsage) {
		t.Errorf("to where it is: %v", err)
	}
}

func TestADaemonThatEndsMeanwhileSaysHowToGoOn(t *testing.T) {
	a := newAdministered(t)
	a.docker.AddImage(enginetest.NewImage("registry.test/a:1"))
	release := a.docker.Block("ExportImage.half")
	defer release()
	ended := make(chan error, 1)
	go func() {
		_, err := a.carry("copy", "--from", "docker", "--to", "native")
		ended <- err
	}()
	for a.docker.Calls("ExportImage.half") == 0 {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	a.stop()
	if err := <-ended; err == nil {
		t.Error("nobody is told")
	}
	if _, err := a.carry("copy", "--from", "docker", "--to", "native"); err == nil || !strings.Contains(err.Error(), "no running daemon answers") {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestTheAdminSocketRefusesWhatItDoesNotKnow(t *testing.T) {
	a := newAdministered(t)
	defer a.stop()
	what := carrying{From: "elsewhere", To: config.EngineNative}
	if err := what.inDaemon(t.Context(), nil, nodeEngines{memoryEngine{a.native}}, nil); err == nil || !strings.Contains(err.Error(), "not on in the running daemon") {
		t.Errorf("an engine that is off: %v", err)
	}
	client := adminClient(a.c)
	reply, err := client.Post("http://crishim/images/carry", "application/json", strings.NewReader("{]"))
	if err != nil || reply.StatusCode != http.StatusBadRequest {
		t.Fatalf("%v, %v", reply, err)
	}
	_ = reply.Body.Close()
	reply, err = client.Get("http://crishim/images/carry")
	if err != nil || reply.StatusCode != http.StatusMethodNotAllowed {
		t.Fatalf("%v, %v", reply, err)
	}
	_ = reply.Body.Close()
}

// Nobody takes away a log that is being written.
func TestLogsAreNotGivenBackUnderARunningDaemon(t *testing.T) {
	c := config.Default()
	dir := t.TempDir()
	c.Listen, c.Docker.Endpoint = []string{"unix://" + dir + "/crishim.sock"}, "unix://"+dir+"/docker.sock"
	listener, err := net.Listen("unix", dir+"/crishim.sock")
	if err != nil {
		t.Fatal(err)
	}
	if err := giveLogsBack(t.Context(), c, &bytes.Buffer{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("while it runs: %v", err)
	}
	_ = listener.Close()
	if err := giveLogsBack(t.Context(), c, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "find the containers") {
		t.Errorf("without a Docker Engine: %v", err)
	}
}
