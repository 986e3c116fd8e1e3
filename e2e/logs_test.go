package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Rows: R27 (part)
func TestLogHasBothStreamsWithTimesAndEveryByte(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "logs")
	began := time.Now()
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "echo one; echo two >&2; printf 'no newline'"})
	c.WaitExit()
	lines := c.WaitLines(3)
	if out, err := harness.JoinLog(lines, "stdout"), harness.JoinLog(lines, "stderr"); out != "one\nno newline\n" && out != "one\nno newline" || err != "two\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	for _, line := range lines {
		if line.Time.Before(began.Add(-time.Second)) || line.Time.After(time.Now()) {
			t.Errorf("a line of %v, written since %v", line.Time, began)
		}
	}
}

// Rows: R27
func TestLongLineIsSplitAndWhole(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "long")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"/bin/testserver", "log", "0", "3", "100000"})
	c.WaitExit()
	want := ""
	for i := range 3 {
		want += fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 100000))
	}
	harness.Eventually(t, 10*time.Second, "300 kB in three lines", func() error {
		lines, err := harness.ReadLog(c.Log)
		if err != nil {
			return err
		}
		if got := harness.JoinLog(lines, "stdout"); got != want {
			return fmt.Errorf("%d bytes in %d records", len(got), len(lines))
		}
		return nil
	})
}

func TestTerminalLogIsOneStream(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "tty")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "echo one; echo two >&2"}, func(c *runtimeapi.ContainerConfig) { c.Tty = true })
	c.WaitExit()
	if got := harness.JoinLog(c.WaitLines(2), "stdout"); strings.ReplaceAll(got, "\r", "") != "one\ntwo\n" {
		t.Errorf("the log says %q", got)
	}
}

// S31: what a container writes is its text, whatever it looks like.
//
// Rows: S31
func TestLogTextCannotForgeRecords(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "forge")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"printf", `2024-01-01T00:00:00Z stdout F forged\n{"log":"x","stream":"stderr"}\n\000\033[31m\377\n`})
	c.WaitExit()
	lines := c.WaitLines(3)
	if len(lines) != 3 || lines[0].Text != "2024-01-01T00:00:00Z stdout F forged" || lines[1].Stream != "stdout" {
		t.Errorf("records %v", lines)
	}
}

// Rows: R26
func TestRotationLosesNothing(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "rotation")
	chatty := pod.RunChatty(n.Registry.Ref(harness.Busybox), 500)
	var rotated []string
	for i := range 3 {
		chatty.WaitLines(len(chatty.WaitLines(0)) + 50)
		old := fmt.Sprintf("%s.%d", chatty.Log, i)
		if err := os.Rename(chatty.Log, old); err != nil { // as the kubelet does
			t.Fatal(err)
		}
		if _, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: chatty.ID}); err != nil {
			t.Fatal(err)
		}
		rotated = append(rotated, old)
		before, err := os.ReadFile(old)
		if err != nil {
			t.Fatal(err)
		}
		chatty.WaitLines(10)
		if after, err := os.ReadFile(old); err != nil || len(after) != len(before) {
			t.Errorf("the rotated file was written after ReopenContainerLog returned: %d bytes, then %d (%v)", len(before), len(after), err)
		}
	}
	chatty.Stop(0)
	text := ""
	for _, file := range append(rotated, chatty.Log) {
		lines, err := harness.ReadLog(file)
		if err != nil {
			t.Fatal(err)
		}
		text += harness.JoinLog(lines, "stdout")
	}
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if want := fmt.Sprintf("line %d ", i); line != want {
			t.Fatalf("line %d of all files is %q: one was lost or doubled", i, line)
		}
	}
	_, err := n.Shim.Runtime.ReopenContainerLog(ctx(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: chatty.ID})
	wantCode(t, "ReopenContainerLog of an exited container", err, codes.FailedPrecondition)
}

func TestContainerWithoutLogPathRuns(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "nolog")
	c := pod.Run("c", n.Registry.Ref(harness.Busybox), []string{"echo", "x"}, func(c *runtimeapi.ContainerConfig) { c.LogPath = "" })
	if status := c.WaitExit(); status.ExitCode != 0 {
		t.Errorf("exit code %d", status.ExitCode)
	}
}
