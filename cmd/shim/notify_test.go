package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim/config"
	"crishim/engine"
)

func TestTheStatusLineSaysWhatIsWaitedFor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify.sock")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	health := map[string]engine.Health{}
	line := &statusLine{
		engines: []string{config.EngineDocker, config.EngineNative},
		called:  map[string]string{config.EngineDocker: "the Docker Engine at unix:///d.sock", config.EngineNative: "the native engine"},
		health:  func(name string) engine.Health { return health[name] },
	}
	told := func() string {
		t.Helper()
		line.tell()
		_ = systemd.SetReadDeadline(time.Now().Add(10 * time.Second))
		buffer := make([]byte, 4096)
		n, err := systemd.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
	health[config.EngineDocker] = engine.Health{Message: "ping: no such\nfile: unavailable"}
	if got := told(); got != "STATUS=waiting for the Docker Engine at unix:///d.sock (ping: no such file) and the native engine ()" {
		t.Errorf("%q", got)
	}
	health[config.EngineNative] = engine.Health{Ready: true}
	line.recovered = true
	if got := told(); got != "STATUS=serving on the native engine; waiting for the Docker Engine at unix:///d.sock (ping: no such file)" {
		t.Errorf("%q", got)
	}
	health[config.EngineDocker] = engine.Health{Ready: true}
	if got := told(); got != "STATUS=serving on the Docker Engine at unix:///d.sock and the native engine" {
		t.Errorf("%q", got)
	}
	// The same is not told twice.
	line.tell()
	line.recovered = false
	if got := told(); !strings.HasSuffix(got, "=reading what runs") {
		t.Errorf("%q", got)
	}
}
