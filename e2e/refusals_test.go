package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// Each row is refused within a second, with a code that says whose fault it is, and changes nothing (NoLeaks, HostUnchanged).
//
// Rows: S24, S28, S29, S21 (part)
func TestBadPodsAreRefused(t *testing.T) {
	n := node(t)
	n.HostUnchanged(t)
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"no metadata":                   func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil },
		"no name":                       func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" },
		"no uid":                        func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" },
		"name with slashes":             func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "../../etc" },
		"name with a NUL":               func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\x00b" },
		"name with a newline":           func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\nb" },
		"namespace that adds a CNI arg": func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "a;K8S_POD_NAME=b" },
		"uid with dots":                 func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "../x" },
		"name of 10 KiB":                func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("n", 10<<10) },
		"host name with a newline":      func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a\nb" },
		"log directory that climbs":     func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory += "/../../x" },
		"relative log directory":        func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" },
		"cgroup parent that climbs":     func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" },
		"sysctl that smuggles another": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls["kernel.shm_rmid_forced"] = "1\nkernel.core_pattern=|/x"
		},
		"sysctl of the host": func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls["kernel.core_pattern"] = "|/evil" },
		"sysctl with a path": func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls["net/../kernel/core_pattern"] = "x" },
		"net sysctl on the host's net": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
			c.Linux.Sysctls["net.ipv4.ip_forward"] = "0"
		},
		"host port out of range":          func(c *runtimeapi.PodSandboxConfig) { hostPort(70000, 80)(c) },
		"container port out of range":     func(c *runtimeapi.PodSandboxConfig) { hostPort(8080, 0)(c); c.PortMappings[0].ContainerPort = -1 },
		"host IP that is none":            func(c *runtimeapi.PodSandboxConfig) { hostPort(8080, 80)(c); c.PortMappings[0].HostIp = "1.2.3" },
		"DNS server that is no address":   func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Servers = []string{"1.2.3.4\noptions evil"} },
		"DNS search with a newline":       func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a\nnameserver 6.6.6.6"} },
		"label with the daemon's own key": func(c *runtimeapi.PodSandboxConfig) { c.Labels["io.kubernetes.docker.type"] = "container" },
		"gid without a uid": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		},
		"seccomp profile that climbs": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/../../etc/passwd"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if harness.Native() && name == "label with the daemon's own key" {
				t.Skip("this test is about a Docker Engine: no other has labels of its own")
			}
			config := n.PodConfig("bad")
			n.PreparePod(t, config)
			change(config)
			began := time.Now()
			reply, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
			wantRefusal(t, err, began)
			if reply.GetPodSandboxId() != "" {
				_, _ = n.Shim.Runtime.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: reply.PodSandboxId}) // the test failed already
			}
		})
	}
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{})
	wantCode(t, "no configuration at all", err, codes.InvalidArgument)
	_, err = n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig("handler"), RuntimeHandler: "no-such-handler"})
	if code := harness.Code(err); code != codes.InvalidArgument && code != codes.NotFound {
		t.Errorf("unknown runtime handler: %v", err)
	}
}

func wantRefusal(t *testing.T, err error, began time.Time) {
	t.Helper()
	switch code := harness.Code(err); code {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.Unimplemented, codes.NotFound:
	default:
		t.Errorf("%v (%v), want InvalidArgument or the like", err, code)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the refusal took %v", took)
	}
}

// Rows: S10 (part), S28
func TestBadContainersAreRefused(t *testing.T) {
	n := node(t)
	canary := n.HostUnchanged(t)
	pod := n.RunPod(t, "bad")
	image := n.Registry.Ref(harness.Busybox)
	for _, file := range []string{"symlink.log", "dir.log"} {
		path := filepath.Join(pod.Config.LogDirectory, file)
		var err error
		if file == "dir.log" {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.Symlink(canary.Dir+"/file", path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(canary.Dir, filepath.Join(pod.Config.LogDirectory, "linked")); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"no metadata":                func(c *runtimeapi.ContainerConfig) { c.Metadata = nil },
		"no name":                    func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "" },
		"name with slashes":          func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "../x" },
		"no image":                   func(c *runtimeapi.ContainerConfig) { c.Image = nil },
		"absent image":               func(c *runtimeapi.ContainerConfig) { c.Image.Image = n.Registry.Ref("absent") },
		"log path that climbs":       func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../x.log" },
		"log path that is a symlink": func(c *runtimeapi.ContainerConfig) { c.LogPath = "symlink.log" },
		"log path through a symlink": func(c *runtimeapi.ContainerConfig) { c.LogPath = "linked/file" },
		"log path that is a folder":  func(c *runtimeapi.ContainerConfig) { c.LogPath = "dir.log" },
		"user id beyond 32 bits": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32}
		},
		"negative user id": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: -1}
		},
		"user name that is a number":  func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "4294967296" },
		"user that the image has not": func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" },
		"gid without a uid": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		},
		"unknown capability": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH"}}
		},
		"environment name with =": func(c *runtimeapi.ContainerConfig) {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "A=B", Value: []byte("c")})
		},
		"environment with a NUL": func(c *runtimeapi.ContainerConfig) {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "A", Value: []byte("b\x00c")})
		},
		"argument with a NUL": func(c *runtimeapi.ContainerConfig) { c.Args = []string{"a\x00b"} },
		"relative container path": func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: "x"}}
		},
		"container path that climbs": func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: "/a/../../b"}}
		},
		"relative host path": func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "tmp", ContainerPath: "/x"}}
		},
		"recursive and writable": func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: "/x", RecursiveReadOnly: true}}
		},
		"device that is none": func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rw"}}
		},
		"device with odd permissions": func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rwx"}}
		},
		"unknown CDI device": func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/device=none"}}
		},
		"negative memory":     func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = -5 },
		"cpuset that is none": func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.CpusetCpus = "0;1" },
		"target of another pod": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: strings.Repeat("0", 64)}
		},
		"seccomp profile that climbs": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: canary.Dir + "/file"}
		},
		"AppArmor profile that is absent": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			config := pod.ContainerConfig("bad", image, "true")
			change(config)
			began := time.Now()
			c, err := pod.TryCreate(config)
			wantRefusal(t, err, began)
			if c != nil {
				c.Remove()
			}
		})
	}
	config := pod.ContainerConfig("orphan", image, "true")
	_, err := n.Shim.Runtime.CreateContainer(ctx(t), &runtimeapi.CreateContainerRequest{PodSandboxId: strings.Repeat("0", 64), Config: config, SandboxConfig: pod.Config})
	wantCode(t, "a container of an unknown pod", err, codes.NotFound)
	pod.Stop()
	_, err = pod.TryCreate(pod.ContainerConfig("late", image, "true"))
	wantCode(t, "a container of a stopped pod", err, codes.FailedPrecondition)
}

// Rows: S52 (part)
func TestOversizeMessageIsRefusedAndTheNextIsServed(t *testing.T) {
	n := node(t)
	config := n.PodConfig("big")
	config.Annotations["big"] = strings.Repeat("x", 20<<20)
	began := time.Now()
	_, err := n.Shim.Runtime.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantRefusal(t, err, began)
	if _, err := n.Shim.Runtime.Version(ctx(t), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
