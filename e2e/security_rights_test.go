package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/e2e/harness"
)

// rights are the lines of /proc/PID/status that say what a process may.
type rights map[string]string

func parseRights(text string) rights {
	r := rights{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
			r[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return r
}

// bothRights runs a container and returns the rights of its first process and of an exec in it.
func bothRights(t *testing.T, pod *harness.Pod, image string, change func(*runtimeapi.ContainerConfig)) (first, exec rights) {
	t.Helper()
	config := pod.ContainerConfig("c"+harness.ID(), image, "sh", "-c", "cat /proc/self/status; exec sleep 1000")
	change(config)
	c, err := attempt(t, pod, config)
	if err != nil {
		t.Fatal(err)
	}
	c.WaitLog("Seccomp:")
	first, exec = parseRights(harness.JoinLog(c.WaitLines(1), "stdout")), parseRights(c.Output("cat /proc/self/status"))
	c.Stop(0)
	c.Remove()
	if len(first) < 9 {
		t.Fatalf("rights %v", first)
	}
	return first, exec
}

func capabilitiesOf(t *testing.T, r rights, set string) uint64 {
	t.Helper()
	bits, err := strconv.ParseUint(r[set], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return bits
}

// Capabilities by their number, and what Docker gives where nothing is asked for.
const (
	capChown, capNetAdmin, capNetRaw = 1 << 0, 1 << 12, 1 << 13
	defaultCapabilities              = 0xa80425fb
)

// Rows: S18, S19 (part)
func TestCapabilitiesAreThoseAskedFor(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "capabilities")
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	most := capabilitiesOf(t, parseRights(string(own)), "CapBnd") // what this machine itself may give
	for _, row := range []struct {
		add, drop []string
		want      uint64
	}{
		{nil, nil, defaultCapabilities},
		{[]string{"NET_ADMIN"}, nil, defaultCapabilities | capNetAdmin},
		{[]string{"CAP_NET_ADMIN"}, []string{"CHOWN"}, defaultCapabilities&^capChown | capNetAdmin},
		{nil, []string{"ALL"}, 0},
		{[]string{"NET_RAW"}, []string{"ALL"}, capNetRaw},
		{[]string{"ALL"}, []string{"NET_ADMIN", "CHOWN"}, ^uint64(capNetAdmin | capChown)},
		{nil, []string{"CAP_NET_RAW", "chown"}, defaultCapabilities &^ (capNetRaw | capChown)},
	} {
		for _, user := range []int64{0, 1000} {
			t.Run(fmt.Sprintf("%v without %v for %d", row.add, row.drop, user), func(t *testing.T) {
				first, exec := bothRights(t, pod, n.Registry.Ref(harness.Busybox), func(c *runtimeapi.ContainerConfig) {
					c.Linux.SecurityContext.RunAsUser = id(user)
					c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: row.add, DropCapabilities: row.drop}
				})
				for who, r := range map[string]rights{"the container": first, "an exec": exec} {
					bounding := capabilitiesOf(t, r, "CapBnd")
					want := row.want & most
					if len(row.add) == 1 && row.add[0] == "ALL" {
						want &= 1<<38 - 1 // the kernel's newest are not known to every engine
						bounding &= 1<<38 - 1
					}
					if bounding != want {
						t.Errorf("%s: bounding set %x, want %x", who, bounding, want)
					}
					for _, set := range []string{"CapInh", "CapAmb"} {
						if got := capabilitiesOf(t, r, set); got != 0 {
							t.Errorf("%s: %s is %x", who, set, got)
						}
					}
					for _, set := range []string{"CapEff", "CapPrm"} {
						got, want := capabilitiesOf(t, r, set), capabilitiesOf(t, r, "CapBnd")
						if user != 0 {
							want = 0
						}
						if got != want {
							t.Errorf("%s: %s is %x, want %x", who, set, got, want)
						}
					}
				}
			})
		}
	}
	refused := map[string]*runtimeapi.Capability{"unknown": {AddCapabilities: []string{"SUPER"}}, "unknown to drop": {DropCapabilities: []string{"CAP_"}}}
	if ambient := (&runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_RAW"}}); harness.Native() {
		first, exec := bothRights(t, pod, n.Registry.Ref(harness.Busybox), func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.Capabilities = id(1000), ambient
		})
		for who, r := range map[string]rights{"the container": first, "an exec": exec} {
			for _, set := range []string{"CapAmb", "CapEff", "CapPrm", "CapInh"} {
				if got := capabilitiesOf(t, r, set); got != capNetRaw {
					t.Errorf("%s with an ambient capability: %s is %x, want %x", who, set, got, capNetRaw)
				}
			}
		}
	} else {
		refused["ambient, which Docker cannot"] = ambient
	}
	for what, asked := range refused {
		config := pod.ContainerConfig("bad", n.Registry.Ref(harness.Busybox), forever...)
		config.Linux.SecurityContext.Capabilities = asked
		if c, err := pod.TryCreate(config); err == nil {
			t.Errorf("%s: it was made", what)
			c.Remove()
		}
	}
}

// The user of a container is the same over its attempts, a restart of the daemon and a pull that comes between: by number, by name and
// as the image has it.
//
// Rows: S22
func TestTheUserStaysOverAttempts(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "attempts")
	busybox := n.Registry.Ref(harness.Busybox)
	users := map[string]struct {
		change func(*securityContext)
		want   string // uid and gid
	}{
		"number": {func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1234), id(5678) }, "1234 5678"},
		"name":   {func(s *securityContext) { s.RunAsUsername = "default-user" }, "1000 1000"},
		"image":  {func(*securityContext) {}, "0 0"},
	}
	running := map[string]*harness.Container{}
	check := func(when string) {
		t.Helper()
		for name, user := range users {
			if got := strings.TrimSpace(running[name].Output("echo $(id -u) $(id -g)")); got != user.want {
				t.Errorf("%s, %s: it runs as %s, want %s", when, name, got, user.want)
			}
			linux := running[name].Status().User.GetLinux()
			if got := fmt.Sprint(linux.GetUid(), linux.GetGid()); got != user.want {
				t.Errorf("%s, %s: its status says %s, want %s", when, name, got, user.want)
			}
		}
	}
	for attempt := range uint32(4) {
		for name, user := range users {
			if c := running[name]; c != nil {
				c.Stop(0)
			}
			config := pod.Attempt(attempt, pod.ContainerConfig(name, busybox, forever...))
			user.change(config.Linux.SecurityContext)
			running[name] = pod.Create(config)
			running[name].Start()
		}
		check(fmt.Sprintf("attempt %d", attempt))
		switch attempt {
		case 0:
			n.Shim.Restart()
			check("after a restart")
		case 1:
			if _, err := n.Shim.Images.PullImage(ctx(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}); err != nil {
				t.Fatal(err)
			}
			check("after a pull")
		case 2:
			n.Shim.KillAndRestart()
		}
	}
	pod.Remove()
}

// Rows: S16
func TestGroupsAreThoseOfThePolicy(t *testing.T) {
	n := node(t)
	pod := n.RunPod(t, "groups")
	const merge, strict = runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict
	for _, row := range []struct {
		what     string
		change   func(*securityContext)
		uid, gid string
		// own are the groups by the request, image those that the image's /etc/group adds.
		own, image []int
	}{
		{"nothing", func(*securityContext) {}, "0", "0", []int{0}, nil},
		{"a user with a group of the image", func(s *securityContext) { s.RunAsUser = id(1000) }, "1000", "1000", []int{1000}, []int{50000}},
		{"and another primary group", func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1000), id(7) }, "1000", "7", []int{7}, []int{50000}},
		{"and supplementary ones", func(s *securityContext) { s.RunAsUser, s.SupplementalGroups = id(1000), []int64{4001, 4000} }, "1000", "1000", []int{1000, 4000, 4001}, []int{50000}},
		{"the primary one twice", func(s *securityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id(1000), id(4000), []int64{4000}
		}, "1000", "4000", []int{4000}, []int{50000}},
		{"a user that the image does not know", func(s *securityContext) { s.RunAsUser, s.SupplementalGroups = id(4321), []int64{9} }, "4321", "0", []int{0, 9}, nil},
		{"by name", func(s *securityContext) { s.RunAsUsername = "default-user" }, "1000", "1000", []int{1000}, []int{50000}},
		{"by name, with a group", func(s *securityContext) { s.RunAsUsername, s.RunAsGroup = "www-data", id(7) }, "33", "7", []int{7}, nil},
		{"root with groups", func(s *securityContext) { s.RunAsUser, s.SupplementalGroups = id(0), []int64{5} }, "0", "0", []int{0, 5}, nil},
		{"a great number", func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1<<31-1), id(1<<31-1) }, "2147483647", "2147483647", []int{1<<31 - 1}, nil},
	} {
		for _, policy := range []runtimeapi.SupplementalGroupsPolicy{merge, strict} {
			t.Run(row.what+" "+policy.String(), func(t *testing.T) {
				first, exec := bothRights(t, pod, n.Registry.Ref(harness.Busybox), func(c *runtimeapi.ContainerConfig) {
					c.Linux.SecurityContext.SupplementalGroupsPolicy = policy
					row.change(c.Linux.SecurityContext)
				})
				want := slices.Clone(row.own)
				if policy == merge {
					want = append(want, row.image...)
				}
				slices.Sort(want)
				for who, r := range map[string]rights{"the container": first, "an exec": exec} {
					groups := map[string]bool{}
					for _, g := range strings.Fields(r["Groups"]) {
						groups[g] = true
					}
					ok := len(groups) == len(want)
					for _, g := range want {
						ok = ok && groups[strconv.Itoa(g)]
					}
					if !ok || !strings.HasPrefix(r["Uid"], row.uid+" ") || !strings.HasPrefix(r["Gid"], row.gid+" ") {
						t.Errorf("%s is %v, want %s:%s %v", who, r, row.uid, row.gid, want)
					}
				}
			})
		}
	}
}

// Each is decided by the container's own context: not by its pod's, and not by what is missing.
//
// Rows: S20, S19 (part)
func TestConfinementIsTheContainersOwn(t *testing.T) {
	n := node(t)
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind}
	}
	runtimeDefault, unconfined := seccomp(runtimeapi.SecurityProfile_RuntimeDefault), seccomp(runtimeapi.SecurityProfile_Unconfined)
	masked, readonly := []string{"/proc/kcore", "/etc/nsswitch.conf"}, []string{"/proc/sys", "/opt"}
	for _, privileged := range []bool{false, true} {
		pod := n.RunPod(t, "confined", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.Privileged = privileged
			if privileged {
				c.Linux.SecurityContext.Seccomp = unconfined
			}
		})
		for _, row := range []struct {
			what          string
			change        func(*runtimeapi.ContainerConfig)
			seccomp, nnp  string
			masks, guards bool
		}{
			{"as the kubelet asks", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.Seccomp, c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = runtimeDefault, masked, readonly
			}, "2", "0", true, true},
			{"with no new privileges", func(c *runtimeapi.ContainerConfig) {
				s := c.Linux.SecurityContext
				s.Seccomp, s.NoNewPrivs, s.MaskedPaths = runtimeDefault, true, masked
			}, "2", "1", true, false},
			{"unconfined, as asked", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.Seccomp, c.Linux.SecurityContext.NoNewPrivs, c.Linux.SecurityContext.ReadonlyPaths = unconfined, true, readonly
			}, "0", "1", false, true},
			{"for another user", func(c *runtimeapi.ContainerConfig) {
				s := c.Linux.SecurityContext
				s.Seccomp, s.RunAsUser, s.MaskedPaths, s.ReadonlyPaths = runtimeDefault, id(1000), masked, readonly
			}, "2", "0", true, true},
			{"with every capability", func(c *runtimeapi.ContainerConfig) {
				s := c.Linux.SecurityContext
				s.Seccomp, s.Capabilities, s.MaskedPaths, s.ReadonlyPaths = runtimeDefault, &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}, masked, readonly
			}, "2", "0", true, true},
			{"without a context, which asks for no profile", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext = nil }, "0", "0", false, false},
			{"without a Linux part", func(c *runtimeapi.ContainerConfig) { c.Linux = nil }, "0", "0", false, false},
		} {
			t.Run(fmt.Sprintf("%s in a pod that is privileged: %v", row.what, privileged), func(t *testing.T) {
				first, exec := bothRights(t, pod, n.Registry.Ref(harness.Busybox), row.change)
				for who, r := range map[string]rights{"the container": first, "an exec": exec} {
					if r["Seccomp"] != row.seccomp || r["NoNewPrivs"] != row.nnp {
						t.Errorf("%s has seccomp %s and no_new_privs %s, want %s and %s", who, r["Seccomp"], r["NoNewPrivs"], row.seccomp, row.nnp)
					}
					if bounding := capabilitiesOf(t, r, "CapBnd"); row.what != "with every capability" && bounding != defaultCapabilities {
						t.Errorf("%s has capabilities %x", who, bounding)
					}
				}
				c := pod.Run("p"+harness.ID(), n.Registry.Ref(harness.Busybox), forever, row.change)
				defer c.Remove()
				if got := c.Exec("test", "-s", "/etc/nsswitch.conf").ExitCode != 0; got != row.masks {
					t.Errorf("masked: %v, want %v", got, row.masks)
				}
				if first["Uid"] == "0 0 0 0" {
					if got := c.Exec("touch", "/opt/x").ExitCode != 0; got != row.guards {
						t.Errorf("read-only: %v, want %v", got, row.guards)
					}
				}
			})
		}
	}
	pod := n.RunPod(t, "absent")
	config := pod.ContainerConfig("c", n.Registry.Ref(harness.Busybox), forever...)
	config.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{
		ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: filepath.Join(filepath.Dir(n.Shim.ConfigFile), "seccomp", "absent.json"),
	}
	if c, err := pod.TryCreate(config); err == nil {
		t.Error("a container with an absent profile was made")
		c.Remove()
	}
	config.Linux.SecurityContext.Seccomp, config.Linux.SecurityContext.Privileged = runtimeDefault, true
	if c, err := pod.TryCreate(config); err == nil {
		t.Error("a privileged container was made in a pod that is not")
		c.Remove()
	}
}

// A set-user-id program of an image or a volume gives nothing to a container that may get no new privileges.
//
// Rows: S20 (part)
func TestSetUserIDProgramsGiveNothing(t *testing.T) {
	n := node(t)
	n.HostUnchanged(t)
	volume := harness.WorkDir(t, "u")
	pod := n.RunPod(t, "setuid")
	mounted := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v"}}
	}
	pod.Run("make", n.Registry.Ref(harness.Busybox), []string{"sh", "-c", "cp /bin/testserver /v/s && chmod 6755 /v/s"}, mounted).WaitExit()
	if info, err := os.Stat(filepath.Join(volume, "s")); err != nil || info.Mode()&os.ModeSetuid == 0 {
		t.Fatalf("the program: %v, %v", info, err)
	}
	for _, none := range []bool{true, false} {
		c := pod.Run(fmt.Sprintf("run-%v", none), n.Registry.Ref(harness.Busybox), forever, mounted, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.NoNewPrivs = id(1000), none
		})
		if got := capabilitiesOf(t, parseRights(c.Output("/v/s identity")), "CapEff"); (got == 0) != none {
			t.Errorf("no_new_privs %v: effective capabilities %x", none, got)
		}
	}
}
