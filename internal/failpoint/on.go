//go:build failpoint

package failpoint

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// EnvFile names a file of lines "STEP=ACTION"; ACTION is kill, term, error, sleep:DURATION or hold (until the file's text
// changes), each optionally with "*N" (the N-th hit only, counted since the file's text last changed). The step "any" is each
// of them but those of the log pumps,
// which work at their own time. The file is read at each hit, so that a test changes it while the daemon runs. A line
// "trace=PATH" appends the name of every step hit to PATH, and a tab and the action where one was taken.
const EnvFile = "CRISHIM_FAILPOINTS"

// HelperEnvFile is EnvFile for what the daemon starts and what outlives it (Environ): that has steps of its own, which are
// armed apart from the daemon's.
const HelperEnvFile = "CRISHIM_HELPER_FAILPOINTS"

// Environ is what a process needs in its environment that is to hit failpoints as HelperEnvFile says.
func Environ() []string {
	if file := os.Getenv(HelperEnvFile); file != "" {
		return []string{EnvFile + "=" + file}
	}
	return nil
}

var (
	mu   sync.Mutex
	text string
	hits map[string]int
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
	action, trace := decide(string(data), step)
	if trace != "" {
		record(trace, strings.TrimSuffix(step+"\t"+action, "\t"))
	}
	switch {
	case action == "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case action == "term":
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
	case action == "error":
		return fmt.Errorf("failpoint %s", step)
	case strings.HasPrefix(action, "sleep:"):
		if d, err := time.ParseDuration(strings.TrimPrefix(action, "sleep:")); err == nil {
			time.Sleep(d)
		}
	case action == "hold":
		for held := data; err == nil && bytes.Equal(data, held); data, err = os.ReadFile(path) {
			time.Sleep(holdInterval)
		}
	}
	return nil
}

// holdInterval is between looks whether a step goes on.
const holdInterval = 5 * time.Millisecond

// decide counts the hit and finds its action, "" for none, and the file to trace to.
func decide(file, step string) (action, trace string) {
	mu.Lock()
	defer mu.Unlock()
	if file != text || hits == nil {
		text, hits = file, map[string]int{}
	}
	hits[step]++
	counted := !strings.HasPrefix(step, "logpump/")
	if counted {
		hits["any"]++
	}
	for line := range strings.Lines(file) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		base, count, numbered := strings.Cut(value, "*")
		switch {
		case name == "trace":
			trace = value
		case (name == step || name == "any" && counted) && (!numbered || count == fmt.Sprint(hits[name])):
			action = base
		}
	}
	return action, trace
}

func record(path, line string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(line + "\n") // a test that misses a step says so
	_ = f.Close()
}
