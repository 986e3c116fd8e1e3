package native

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crishim/engine"
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

func ignoreEnded(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
