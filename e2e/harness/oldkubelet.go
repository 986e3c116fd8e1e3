package harness

import (
	"path/filepath"
	"strings"
	"time"
)

// What a kubelet of Kubernetes 1.22 or 1.23 wants otherwise than a current one.

// sinceKubelet123 are the fields of its configuration that it does not know yet.
var sinceKubelet123 = []string{"containerRuntimeEndpoint", "failCgroupV1", "podLogsDir", "containerLogMonitorInterval"}

// old says that the kubelet is of the time when the runtime was chosen by flags.
func (k *Kubelet) old() bool { return k.options.Version != KubeletCurrent }

// KillsOnce says that the kubelet gives up ending a static pod whose manifest is gone at the first error of its runtime, as where the
// daemon is just being restarted, and never removes it: what an old one tries again are pods that it still has.
func (k *Kubelet) KillsOnce() bool { return k.old() }

// runtimeArgs are those flags: for the node's shim, or for the kubelet's own dockershim on the node's Docker Engine, which finds
// pause image and pod network where the shim does.
func (k *Kubelet) runtimeArgs() []string {
	var args []string
	if k.options.Version == Kubelet122 { // later ones look in their own folder
		args = append(args, "--seccomp-profile-root="+filepath.Join(k.RootDir, "seccomp"))
	}
	if !k.options.Dockershim {
		return append(args, "--container-runtime=remote", "--container-runtime-endpoint=unix://"+k.options.Endpoint)
	}
	return append(args,
		"--container-runtime=docker", "--docker-endpoint="+k.node.Docker.Endpoint(), "--docker="+k.node.Docker.Endpoint(),
		"--container-runtime-endpoint="+k.DockershimEndpoint(),
		"--experimental-dockershim-root-directory="+k.DockershimDir(),
		"--pod-infra-container-image="+SharedRegistry(k.t).Ref(Pause),
		"--network-plugin=cni", "--cni-conf-dir="+k.node.CNI.ConfDir, "--cni-cache-dir="+k.DockershimCNICache(),
		"--cni-bin-dir="+strings.Join([]string{k.node.CNI.PluginDir, k.node.CNI.BinDir}, ","),
	)
}

// DockershimDir is where the in-tree dockershim keeps its checkpoints of sandboxes ("sandbox/ID").
func (k *Kubelet) DockershimDir() string { return filepath.Join(k.dir, "dockershim") }

// DockershimEndpoint is where it answers by runtime.v1alpha2.
func (k *Kubelet) DockershimEndpoint() string {
	return "unix://" + filepath.Join(k.dir, "dockershim.sock")
}

// DockershimCNICache is its cache of libcni.
func (k *Kubelet) DockershimCNICache() string { return filepath.Join(k.dir, "cni-cache") }

// LeaveDockershim ends a kubelet that runs pods by its dockershim, does what between does, and starts it again on the node's
// shim: the migration of a node. Its pods live on.
func (k *Kubelet) LeaveDockershim(between func()) {
	k.t.Helper()
	k.switchShim(false, between)
}

// ReturnToDockershim is the way back.
func (k *Kubelet) ReturnToDockershim(between func()) {
	k.t.Helper()
	k.switchShim(true, between)
}

func (k *Kubelet) switchShim(dockershim bool, between func()) {
	k.t.Helper()
	if err := k.Terminate(30 * time.Second); err != nil {
		k.t.Errorf("%v", err)
	}
	between()
	k.options.Dockershim = dockershim
	k.launch()
}
