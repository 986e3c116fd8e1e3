package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"k8s.io/klog/v2"

	"crishim/config"
	"crishim/engine"
	"crishim/server"
	"crishim/state"
)

// notifySystemd says READY once the start is over, feeds the watchdog from then on, and keeps the unit's status line true.
// An engine that is away does not hold up the start: the kubelet, which comes after it, is told so by Status, and a unit that
// waits would be ended and started anew for as long.
func notifySystemd(ctx context.Context, srv *server.Server, line *statusLine) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return err
	}
	settled, recovered := srv.Settled(), srv.Recovered()
	var feed <-chan time.Time
	for {
		line.tell()
		select {
		case <-ctx.Done():
			return nil
		case <-line.changed:
		case <-recovered:
			line.recovered, recovered = true, nil
		case <-settled:
			settled = nil
			if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
				klog.ErrorS(err, "systemd could not be told that the daemon is ready")
			}
			if interval > 0 {
				ticker := time.NewTicker(interval / 3)
				defer ticker.Stop()
				feed = ticker.C
			}
		case <-feed:
			if srv.Alive(ctx) {
				_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		}
	}
}

// afterDrain is for what an end does once no call is in flight any more.
const afterDrain = 30 * time.Second

// stopping tells systemd of the end, which has as long as it may take: the unit's own limit does not know the drain.
func stopping(drain time.Duration) string {
	return fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d", daemon.SdNotifyStopping, (drain + afterDrain).Microseconds())
}

// statusLine is what `systemctl status` shows: whom the daemon waits for, or serves.
type statusLine struct {
	engines   []string          // the default one first
	called    map[string]string // in a sentence
	health    func(name string) engine.Health
	changed   chan struct{} // holds an entry after a change of health
	recovered bool
	told      string
}

func newStatusLine(c *config.Config, engines nodeEngines, store *state.Store) *statusLine {
	line := &statusLine{
		called: map[string]string{config.EngineDocker: "the Docker Engine at " + c.Docker.Endpoint, config.EngineNative: "the native engine"},
		health: store.Health, changed: make(chan struct{}, 1),
	}
	for _, e := range engines {
		line.engines = append(line.engines, e.Name())
	}
	store.OnHealth(func(string, engine.Health) {
		select {
		case line.changed <- struct{}{}:
		default:
		}
	})
	return line
}

// text is one line, whatever an engine says.
func (l *statusLine) text() string {
	var serving, waiting []string
	for _, name := range l.engines {
		if h := l.health(name); h.Ready {
			serving = append(serving, l.called[name])
		} else {
			waiting = append(waiting, fmt.Sprintf("%s (%s)", l.called[name], strings.Join(strings.Fields(plain(relayed(h.Message))), " ")))
		}
	}
	var parts []string
	switch {
	case len(waiting) == 0 && !l.recovered:
		parts = append(parts, "reading what runs")
	case len(serving) > 0 && l.recovered:
		parts = append(parts, "serving on "+strings.Join(serving, " and "))
	}
	if len(waiting) > 0 {
		parts = append(parts, "waiting for "+strings.Join(waiting, " and "))
	}
	return strings.Join(parts, "; ")
}

func (l *statusLine) tell() {
	if text := l.text(); text != l.told {
		l.told = text
		_, _ = daemon.SdNotify(false, "STATUS="+text)
	}
}
