package handover

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"

	"crishim/migrate/kubeletfiles"
)

// Systemd is Units on this host's own.
type Systemd struct{ conn *dbus.Conn }

// NewSystemd connects; Close it.
func NewSystemd(ctx context.Context) (*Systemd, error) {
	// The connection has no end but Close: it would end with its context, and what an interrupt begins, the way back, needs it.
	conn, err := dbus.NewWithContext(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("systemd cannot be asked: %w", err)
	}
	return &Systemd{conn}, nil
}

// Close ends the connection.
func (s *Systemd) Close() { s.conn.Close() }

// State asks.
func (s *Systemd) State(ctx context.Context, name string) (kubeletfiles.UnitState, bool, error) {
	properties, err := s.conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return kubeletfiles.UnitState{}, false, err
	}
	text := func(property string) string { v, _ := properties[property].(string); return v }
	if text("LoadState") == "not-found" {
		return kubeletfiles.UnitState{}, false, nil
	}
	active := text("ActiveState")
	return kubeletfiles.UnitState{
		Name: name, Active: active == "active" || active == "activating" || active == "reloading",
		Enabled: strings.HasPrefix(text("UnitFileState"), "enabled"),
	}, true, nil
}

// Start returns when the unit has started: for one of Type=notify, when it says so.
func (s *Systemd) Start(ctx context.Context, name string) error {
	return s.job(ctx, name, s.conn.StartUnitContext)
}

// Stop returns when the unit has ended.
func (s *Systemd) Stop(ctx context.Context, name string) error {
	return s.job(ctx, name, s.conn.StopUnitContext)
}

func (s *Systemd) job(ctx context.Context, name string, do func(context.Context, string, string, chan<- string) (int, error)) error {
	result := make(chan string, 1)
	if _, err := do(ctx, name, "replace", result); err != nil {
		return err
	}
	select {
	case r := <-result:
		if r != "done" {
			return errors.New("systemd's job ended with " + r + ": see journalctl -u " + name)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Enable has the unit started at boot.
func (s *Systemd) Enable(ctx context.Context, name string) error {
	_, _, err := s.conn.EnableUnitFilesContext(ctx, []string{name}, false, false)
	return err
}

// Disable undoes Enable.
func (s *Systemd) Disable(ctx context.Context, name string) error {
	_, err := s.conn.DisableUnitFilesContext(ctx, []string{name}, false)
	return err
}

// Reload reads the units anew.
func (s *Systemd) Reload(ctx context.Context) error { return s.conn.ReloadContext(ctx) }
