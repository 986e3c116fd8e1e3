package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"crishim/e2e/harness"
)

// cniSide is the plugins alone, on network namespaces without a process.
type cniSide struct {
	b    *testing.B
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	dir  string
}

func newCNISide(b *testing.B, network *harness.CNI) *cniSide {
	b.Helper()
	list, err := libcni.ConfListFromFile(network.ConfFile)
	if err != nil {
		b.Fatalf("reading the pod network's configuration: %v", err)
	}
	dir := harness.WorkDir(b, "n")
	return &cniSide{b: b, list: list, dir: dir, cni: libcni.NewCNIConfigWithCacheDir([]string{network.BinDir}, filepath.Join(dir, "cache"), nil)}
}

func (c *cniSide) start(t times) (any, error) {
	netns, err := newNetNS(c.dir)
	if err != nil {
		return nil, err
	}
	rt := &libcni.RuntimeConf{ContainerID: filepath.Base(netns), NetNS: netns, IfName: "eth0"}
	if err := t.measure(opRunPod, func() error {
		_, err := c.cni.AddNetworkList(c.b.Context(), c.list, rt)
		return err
	}); err != nil {
		return nil, err
	}
	t[opToRunning] = t[opRunPod]
	return rt, nil
}

func (c *cniSide) exec(any, times) error { return nil }

func (c *cniSide) end(pod any, t times) error {
	rt := pod.(*libcni.RuntimeConf)
	if err := t.measure(opStopPod, func() error { return c.cni.DelNetworkList(c.b.Context(), c.list, rt) }); err != nil {
		return err
	}
	if err := unix.Unmount(rt.NetNS, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", rt.NetNS, err)
	}
	return os.Remove(rt.NetNS)
}

// newNetNS pins a new network namespace in dir and returns its path.
func newNetNS(dir string) (string, error) {
	path := filepath.Join(dir, "b"+harness.ID()+harness.ID())
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		return "", err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return "", fmt.Errorf("making a network namespace: %w", err)
	}
	return path, nil
}
