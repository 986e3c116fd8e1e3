package native

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crishim/engine"
)

// A start that hangs, here in a hook of the OCI spec, holds up neither its pod's end nor other pods.
//
// Rows: R07 (part)
func TestAHangingStartEndsWithItsPod(t *testing.T) {
	defer func(was time.Duration) { hangLimit = was }(hangLimit)
	hangLimit = 300 * time.Millisecond
	b := serving(t)
	pod, s := b.runPod(t)
	other, otherSpec := b.runPod(t)
	spec := b.containerSpec(t, pod, s, "hangs", "sleep 1000")
	st, err := b.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	oci, err := b.readBundle(st.ID)
	if err != nil {
		t.Fatal(err)
	}
	gate := filepath.Join(t.TempDir(), "gate")
	reached := filepath.Join(t.TempDir(), "reached")
	script := `echo > ` + reached + `; for i in $(seq 600); do test -e ` + gate + ` && exit; sleep 0.1; done`
	oci.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}}}}
	if err := b.writeBundle(st.ID, oci); err != nil {
		t.Fatal(err)
	}
	ctx, abort := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { _, err := b.StartContainer(ctx, st.ID, spec); started <- err }()
	defer func() { _ = replaceFile(filepath.Dir(gate), "gate", nil) }()
	eventually(t, 20*time.Second, "the hook runs", func() bool { _, err := os.Stat(reached); return err == nil })
	abort()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("the start: %v", err)
	}
	if state := b.status(t, st.ID).State; state == engine.ContainerRunning {
		t.Errorf("it is %s", state)
	}
	b.removePod(t, pod)
	id := b.run(t, other, otherSpec, "goes-on", "sleep 1000")
	if state := b.status(t, id).State; state != engine.ContainerRunning {
		t.Errorf("another pod's is %s", state)
	}
	b.removePod(t, other)
}
