package native

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/engine/native/monitor"
	"crishim/internal/process"
)

// oomScoreAdj is what was asked for, or the lowest that this host allows.
func (e *Engine) oomScoreAdj(r *engine.Resources) int {
	return max(int(r.OOMScoreAdj), e.host.OOMScoreAdjMin)
}

// changeOOMScoreAdj sets it for the container's processes, those excepted that have set their own, and for its execs to come.
func (e *Engine) changeOOMScoreAdj(c *container, from, to int) error {
	if from == to {
		return nil
	}
	oci, err := e.readBundle(c.ID)
	if err != nil {
		return err
	}
	oci.Process.OOMScoreAdj = &to
	if err := e.writeBundle(c.ID, oci); err != nil {
		return diskError(err)
	}
	pids, err := e.cgroups.Processes(c.Cgroup.Path)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := changeOOMScoreAdj(pid, c.Cgroup.Path, from, to); err != nil {
			return fmt.Errorf("set oom_score_adj of process %d to %d: %w", pid, to, err)
		}
	}
	return nil
}

// changeOOMScoreAdj of the process pid if it is in the cgroup. Its folder is held open: a later process of the same pid has
// another.
func changeOOMScoreAdj(pid int, cgroup string, from, to int) error {
	proc, err := os.OpenRoot("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return ignoreEnded(err)
	}
	defer func() { _ = proc.Close() }()
	groups, err := proc.ReadFile("cgroup")
	if err != nil || !bytes.Contains(groups, []byte(":"+cgroup+"\n")) && !bytes.Contains(groups, []byte(":"+cgroup+"/")) {
		return ignoreEnded(err)
	}
	now, err := proc.ReadFile("oom_score_adj")
	if err != nil || string(bytes.TrimSpace(now)) != strconv.Itoa(from) {
		return ignoreEnded(err)
	}
	file, err := proc.OpenFile("oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return ignoreEnded(err)
	}
	_, err = file.WriteString(strconv.Itoa(to))
	return ignoreEnded(errors.Join(err, file.Close()))
}

// oomScoreOf is what the container's processes have, 0 where the specification names none.
func oomScoreOf(oci *specs.Spec) int {
	if oci.Process == nil || oci.Process.OOMScoreAdj == nil {
		return 0
	}
	return *oci.Process.OOMScoreAdj
}

// adjustExec: libcontainer gives an exec what the container was made with, not what it was updated to. What it forks before
// this keeps the old one.
func adjustExec(x *monitor.Exec, score int) {
	proc, err := os.OpenRoot("/proc/" + strconv.Itoa(x.PID))
	if err != nil {
		return
	}
	defer func() { _ = proc.Close() }()
	now, err := proc.ReadFile("oom_score_adj")
	if err != nil || string(bytes.TrimSpace(now)) == strconv.Itoa(score) {
		return
	}
	if ticks, err := process.StartTicks(x.PID); err != nil || ticks != x.StartTicks {
		return
	}
	if file, err := proc.OpenFile("oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, _ = file.WriteString(strconv.Itoa(score)) // it has ended, or is one that chose another
		_ = file.Close()
	}
}

func ignoreEnded(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
