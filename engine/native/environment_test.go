package native

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"crishim/engine"
)

// A container's environment is its own: nothing of it reaches the processes that make it, whatever their library reads.
//
// Rows: S30
func TestAnEnvironmentIsTheContainersAlone(t *testing.T) {
	b := serving(t)
	pod, spec := b.runPod(t)
	hostile := map[string]string{
		"_LIBCONTAINER_INITTYPE": "standard", "_LIBCONTAINER_INITPIPE": "3", "_LIBCONTAINER_LOGLEVEL": "9", "_LIBCONTAINER_STATEDIR": "/", "LD_PRELOAD": "/tmp/x.so",
		"GODEBUG": "gctrace=1", "GOTRACEBACK": "crash", "PATH": "/bin", "HOME": "/tmp", "lower.case-name": "a=b=c", "EMPTY": "", "LINES": "1\n2",
	}
	s := b.containerSpec(t, pod, spec, "c", "")
	s.Command = []string{"sleep", "1000"}
	for name, value := range hostile {
		s.Env = append(s.Env, engine.EnvVar{Name: name, Value: []byte(value)})
	}
	st, err := b.CreateContainer(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = b.StartContainer(t.Context(), st.ID, s); err != nil {
		t.Fatal(err)
	}
	environ := func(pid int) map[string]string {
		t.Helper()
		var data []byte
		eventually(t, 10*time.Second, "its environment is in its place", func() bool {
			data, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			return err == nil && len(data) > 0
		})
		all := map[string]string{}
		for entry := range strings.SplitSeq(strings.TrimSuffix(string(data), "\x00"), "\x00") {
			name, value, _ := strings.Cut(entry, "=")
			all[name] = value
		}
		return all
	}
	inside := environ(st.PID)
	for name, value := range hostile {
		if got, ok := inside[name]; !ok || got != value {
			t.Errorf("%s is %q in the container, want %q", name, got, value)
		}
	}
	for name := range inside {
		if _, ok := hostile[name]; !ok && name != "HOSTNAME" {
			t.Errorf("%s=%q came from elsewhere", name, inside[name])
		}
	}
	for name, value := range environ(b.monitorPID(t, pod)) {
		if given, ok := hostile[name]; ok && name != "PATH" && name != "HOME" && given == value {
			t.Errorf("the monitor has %s=%q of the container", name, value)
		}
	}
	if got := b.sh(t, st.ID, "echo $_LIBCONTAINER_INITTYPE $GODEBUG"); got != "standard gctrace=1\n" {
		t.Errorf("an exec has %q", got)
	}
	large := b.containerSpec(t, pod, spec, "large", "exit 0")
	for i := range 20 {
		large.Env = append(large.Env, engine.EnvVar{Name: fmt.Sprintf("E%d", i), Value: bytes.Repeat([]byte("x"), 100<<10)})
	}
	made, err := b.CreateContainer(t.Context(), large)
	if err == nil {
		_, err = b.StartContainer(t.Context(), made.ID, large)
	}
	if err == nil {
		t.Error("an environment of 2 MB is taken")
	}
	b.removePod(t, pod)
}
