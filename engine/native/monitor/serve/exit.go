package serve

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crishim/engine/native/monitor"
	"crishim/internal/atomicfile"
	"crishim/internal/failpoint"
	"crishim/internal/seal"
)

// drainTimeout bounds the wait for the output of an exited container where processes outside of it keep it open.
const drainTimeout = 2 * time.Second

// untilExit reaps the container's first process and records its end; only then anybody hears of it.
func (c *container) untilExit(reaped, stopOOM func()) {
	_ = c.watch.Wait()
	finished := time.Now()
	c.watch.Close()
	close(c.dead)
	kills := c.server.ooms.leave(c) // before it is reaped: but for systemd the cgroup is still there
	c.awaitLeave()
	status, err := c.runtime.Wait()
	reaped()
	stopOOM()
	if c.runtime.SharesPIDs() {
		_ = c.runtime.KillAll()
	}
	exit := exitOf(c.id, status, err, kills, c.outlivedOOMKills.Load(), finished)
	exit.Unstarted = !c.askedToStart.Load()
	c.record(exit)
	c.output.drain(drainTimeout)
	c.stdin.end()
	c.mu.Lock()
	c.status, c.exit = monitor.StatusExited, exit
	c.mu.Unlock()
	close(c.exited)
	c.server.events.publish(monitor.EventExit, c.state)
}

func exitOf(id string, status unix.WaitStatus, err error, oomKills, outlived uint64, finished time.Time) *monitor.Exit {
	exit := &monitor.Exit{ID: id, OOMKills: oomKills, FinishedAt: finished}
	exit.Code, exit.Signal = exitCode(status, err)
	// A process that was killed inside a container which then ended by itself, or lived on and was killed, is no reason of the end.
	exit.OOMKilled = oomKills > outlived && exit.Code == 128+int(unix.SIGKILL)
	return exit
}

// exitCode is the shell's: 128 and the signal's number where one ended the process.
func exitCode(status unix.WaitStatus, err error) (code, signal int) {
	switch {
	case err != nil:
		return 255, 0 // reaped by somebody else: cannot happen, and must not look like success
	case status.Signaled():
		return 128 + int(status.Signal()), int(status.Signal())
	}
	return status.ExitStatus(), 0
}

// record writes the exit durably. A full or broken disk must not keep it from being told: then it goes to the run
// directory, which is in memory, and lasts as long as the container could have run.
func (c *container) record(exit *monitor.Exit) {
	data, err := seal.Marshal(exit)
	if err == nil {
		err = failpoint.Around("monitor.exit.record", func() error { return atomicfile.Write(c.exitFile, data, 0o600) })
		if err != nil {
			err = errors.Join(err, atomicfile.Swap(c.server.fallbackExitFile(c.id), data, 0o600))
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "record the exit of container %s: %v\n", c.id, err)
	}
}

// forgetExit removes what an earlier container of the same id left, which would be told as this one's.
func forgetExit(files ...string) error {
	return failpoint.Around("monitor.exit.forget", func() error {
		for _, file := range files {
			if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove how an earlier container of the same id ended: %w", err)
			}
		}
		return nil
	})
}
