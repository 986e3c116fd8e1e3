//go:build cgo

package run

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// criuPatience is how long CRIU may go on with a checkpoint that nobody waits for any more: it ends well what it has begun with the
// container's processes. One that hangs, on a disk or by a fault of its own, would keep them frozen, and the container from being
// removed. Tests lower it.
var criuPatience = time.Minute

// killCRIU kills the CRIU that is started from now on, each criuPatience after the end of ctx, until over is called. One that another
// container of the pod is being checkpointed by since goes with it.
func killCRIU(ctx context.Context) (over func()) {
	others := criuProcesses()
	done, ended := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(criuPatience):
			}
			for _, pid := range criuProcesses() {
				if !slices.Contains(others, pid) {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
	})
	return func() {
		close(done)
		if !stop() {
			<-ended
		}
	}
}

// criuProcesses are our children that are CRIU. One of a container's that is called so, too, is in a cgroup of its own.
func criuProcesses() (pids []int) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for field := range strings.FieldsSeq(string(data)) {
			name, err := os.ReadFile("/proc/" + field + "/comm")
			if err != nil || string(name) != "criu\n" {
				continue
			}
			cgroup, err := os.ReadFile("/proc/" + field + "/cgroup")
			pid, perr := strconv.Atoi(field)
			if err == nil && perr == nil && bytes.Equal(cgroup, own) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// criuError adds what CRIU's log says of its reason, and whether CRIU is there at all. The operation is as in the log's name.
func criuError(operation string, err error, work string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("checkpoints need the program criu: %w: %w", err, errdefs.ErrNotImplemented)
	}
	return fmt.Errorf("%w: %s", err, criuReason(filepath.Join(work, operation+".log")))
}

// maxReasons bounds the errors of a log that are told; the first one is the cause, mostly.
const maxReasons = 3

// criuReason is the first errors of CRIU's log.
func criuReason(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return "CRIU left no log"
	}
	defer func() { _ = file.Close() }()
	var reasons []string
	for lines := bufio.NewScanner(file); lines.Scan() && len(reasons) < maxReasons; {
		if _, reason, ok := strings.Cut(lines.Text(), "Error ("); ok {
			_, reason, _ = strings.Cut(reason, "): ")
			reasons = append(reasons, fmt.Sprintf("%.200s", strings.TrimSpace(reason)))
		}
	}
	if len(reasons) == 0 {
		return "CRIU's log has no error"
	}
	return "CRIU: " + strings.Join(reasons, "; ")
}
