//go:build cgo

package run

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

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
