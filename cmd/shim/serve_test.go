package main

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"crishim/cni"
	"crishim/config"
)

func TestTheDaemonKeepsThePodCIDRsThatItWasTold(t *testing.T) {
	c := config.Default()
	c.RootDir, c.Network.ConfDir, c.Network.PodCIDRs = t.TempDir(), filepath.Join(t.TempDir(), "net.d"), []string{"10.1.0.0/24"}
	first, err := cni.New(networkOptions(c))
	if err != nil {
		t.Fatal(err)
	}
	if got := first.PodCIDRs(); !slices.Equal(got, c.Network.PodCIDRs) {
		t.Errorf("before a kubelet told any: %q", got)
	}
	if err := first.SetPodCIDRs([]string{"10.2.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	again, err := cni.New(networkOptions(c))
	if err != nil {
		t.Fatal(err)
	}
	if got := again.PodCIDRs(); !slices.Equal(got, []string{"10.2.0.0/24"}) {
		t.Errorf("after a restart: %q", got)
	}
}

func TestAnIdleTimeoutOfNoneEndsNoStream(t *testing.T) {
	c := config.Default()
	if got := streamingOptions(c).IdleTimeout; got != 4*time.Hour {
		t.Errorf("by default %v", got)
	}
	c.Streaming.IdleTimeout = 0
	if got := streamingOptions(c).IdleTimeout; got < 365*24*time.Hour {
		t.Errorf("0s is %v", got)
	}
}
