package native

import (
	"cmp"
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/process"
	"crishim/internal/starving"
)

// A daemon that is at its limit of descriptors as it starts waits, however long that takes: what it cannot ask for is neither
// killed nor told as lost, nor is a record that it cannot read a bad one.
//
// Rows: R03 (part), R14 (part)
func TestADaemonWithoutDescriptorsTakesNothingForLost(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for joinLimit")
	}
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	ended := b.run(t, pod, spec, "ended", "exit 5")
	b.exited(t, ended)
	pid := b.status(t, id).PID
	b.die(t)
	for _, one := range []struct {
		name string
		// steps are made one after the other, the last one without descriptors, for so long.
		steps []func(context.Context) error
		long  time.Duration
		ends  bool // before there are descriptors again
	}{
		{"to list the records", []func(context.Context) error{func(ctx context.Context) error { return b.load(ctx) }}, time.Second, false},
		{"to join the monitor", []func(context.Context) error{func(ctx context.Context) error { return b.load(ctx) },
			func(ctx context.Context) error { return b.recover(ctx) }}, joinLimit + time.Second, false},
		{"before it is told to end", []func(context.Context) error{func(ctx context.Context) error { return b.load(ctx) },
			func(ctx context.Context) error { return b.recover(ctx) }}, time.Second, true},
	} {
		t.Run(one.name, func(t *testing.T) {
			b.open(t)
			last := len(one.steps) - 1
			for _, step := range one.steps[:last] {
				if err := step(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			given := starving.Process(t)
			go func() { done <- one.steps[last](ctx) }()
			select {
			case err := <-done:
				t.Errorf("it went on: %v", err)
				done <- err
			case <-time.After(one.long):
			}
			if one.ends {
				cancel()
				if err := <-done; !process.Starved(err) {
					t.Errorf("ended with %v", err)
				}
				done <- nil
			}
			given()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if len(b.containersOf(pod)) != 2 {
				t.Errorf("%d containers", len(b.containersOf(pod)))
			}
			b.die(t)
		})
	}
	b.back(t)
	if st := b.status(t, id); st.State != engine.ContainerRunning || st.PID != pid {
		t.Errorf("%+v", st)
	}
	if st := b.status(t, ended); st.ExitCode != 5 {
		t.Errorf("%+v", st)
	}
	if s := b.Stats(); s.MonitorsLost != 0 || s.Monitors != 1 {
		t.Errorf("%d monitors lost, %d run", s.MonitorsLost, s.Monitors)
	}
	b.removePod(t, pod)
}

// A monitor that dies while there is no descriptor: its containers are told as ended once they could be killed, not before.
//
// Rows: R03 (part)
func TestWhatCannotBeKilledIsNotToldAsEnded(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	id := b.run(t, pod, spec, "c", "sleep 1000")
	running := b.status(t, id)
	monitor := b.monitorPID(t, pod)
	lost := b.Stats().MonitorsLost
	given := starving.Process(t)
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		given()
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); b.Stats().MonitorsLost == lost && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	noticed := b.Stats().MonitorsLost > lost
	time.Sleep(300 * time.Millisecond) // for what must not happen
	state, lives := b.status(t, id).State, unix.Kill(running.PID, 0) == nil
	given()
	if !noticed {
		t.Error("nobody noticed that the monitor died")
	}
	if state != engine.ContainerRunning || !lives {
		t.Errorf("without descriptors it is %v, its process lives: %v", state, lives)
	}
	b.exited(t, id)
	if st := b.status(t, id); st.ExitCode != codeKilled || st.Reason != reasonMonitorLost {
		t.Errorf("%+v", st)
	}
	if !process.Gone(running.PID, running.StartTicks) {
		t.Error("its process lives")
	}
	b.removePod(t, pod)
}

// Kills in a row share a time, of which waiting for descriptors takes nothing.
func TestKillsInARowShareTheirTime(t *testing.T) {
	const limit = time.Hour
	hangs := func(context.Context) error { time.Sleep(time.Millisecond); return errors.New("it hangs") }
	left, err := killPatiently(t.Context(), limit, "kill", "it", hangs)
	if err != nil || left >= limit {
		t.Errorf("%v is left, %v", left, err)
	}
	var deadlines []time.Time
	_, err = killPatiently(t.Context(), limit, "kill", "it", func(ctx context.Context) error {
		deadline, _ := ctx.Deadline()
		if deadlines = append(deadlines, deadline); len(deadlines) == 1 {
			return unix.EMFILE
		}
		return nil
	})
	if err != nil || len(deadlines) != 2 || !deadlines[1].After(deadlines[0]) {
		t.Errorf("tried until %v, %v", deadlines, err)
	}
	told, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := killPatiently(told, limit, "kill", "it", func(ctx context.Context) error { return cmp.Or(ctx.Err(), error(unix.EMFILE)) }); !errors.Is(err, unix.EMFILE) {
		t.Errorf("without descriptors, when it is told to end: %v", err)
	}
}
