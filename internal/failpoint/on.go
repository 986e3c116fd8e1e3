//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// EnvFile names a file of lines "STEP=ACTION"; ACTION is kill, error, sleep:DURATION, each optionally with "*N" (the
// N-th hit only). The file is read at each hit, so that a test changes it while the daemon runs. A line "trace=PATH"
// appends the name of every step hit to PATH.
const EnvFile = "CRISHIM_FAILPOINTS"

var (
	mu   sync.Mutex
	hits = map[string]int{}
)

// Hit acts as the file says for the step.
func Hit(step string) error {
	path := os.Getenv(EnvFile)
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	mu.Lock()
	hits[step]++
	n := hits[step]
	mu.Unlock()
	for line := range strings.Lines(string(data)) {
		name, action, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		if name == "trace" {
			if f, err := os.OpenFile(action, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
				_, _ = fmt.Fprintln(f, step)
				_ = f.Close()
			}
			continue
		}
		if name != step {
			continue
		}
		if base, count, ok := strings.Cut(action, "*"); ok {
			if count != fmt.Sprint(n) {
				continue
			}
			action = base
		}
		switch {
		case action == "kill":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case action == "error":
			return fmt.Errorf("failpoint %s", step)
		case strings.HasPrefix(action, "sleep:"):
			if d, err := time.ParseDuration(strings.TrimPrefix(action, "sleep:")); err == nil {
				time.Sleep(d)
			}
		}
	}
	return nil
}
