package e2e

import (
	"fmt"
	"testing"
	"time"

	"crishim/e2e/harness"
)

// A kubelet that speaks only runtime.v1alpha2 runs the core of pods, exec, logs and restarts. It has no figures of a network: it
// takes those from its own cAdvisor, which knows only containerd's and CRI-O's pods.
func TestKubelet122(t *testing.T) {
	wholeKubelet(t)
	recordKubelet(t, harness.Kubelet122, len(kubeletCore))
	n := node(t)
	host := t.TempDir()
	k := harness.StartKubelet(t, n, harness.KubeletOptions{Version: harness.Kubelet122})
	runKubeletCore(t, n, k, host, "statistics and metrics name processor, memory, files and network")
	harness.Eventually(t, time.Minute, "figures of a container", func() error {
		stats, err := k.StatsSummary("volumes")
		if err != nil {
			return err
		}
		if len(stats.Containers) != 1 || stats.Containers[0].Memory.WorkingSetBytes == 0 || stats.Containers[0].RootFS.UsedBytes == nil {
			return fmt.Errorf("they are %+v", stats)
		}
		return nil
	})
}
