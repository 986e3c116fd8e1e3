package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/engine"
)

// The bounds of the Engine API that this package is written for.
const (
	minAPIVersion = "1.41"
	maxAPIVersion = "1.51"
)

// runtimeFeaturesKey is where engines from API 1.44 on put the OCI runtime's "features" document, as JSON, in
// /info Runtimes[].status.
const runtimeFeaturesKey = "org.opencontainers.runtime-spec.features"

// facts is what one connection learnt about the engine and the host: everything that lowering depends on. Immutable.
type facts struct {
	api            string
	version        string
	rootDir        string
	storageDriver  string
	cgroupDriver   engine.CgroupDriver
	cgroupV2       bool
	cgroupRoot     string
	swapLimit      bool
	selinux        bool
	appArmor       bool
	seccomp        bool
	cdi            bool
	defaultRuntime string
	handlers       map[string]engine.HandlerFeatures
	// oomScoreAdjMin is the lowest oom_score_adj that a container may get here.
	oomScoreAdjMin int64
	// recursiveReadonly are the handlers with which Docker itself makes recursive read-only mounts.
	recursiveReadonly map[string]bool
	// prepares: mounts can be made on the host for Docker to bind (hostMounts).
	prepares bool
	// seesMounts: the engine sees what is mounted on the host.
	seesMounts bool
	bridge     bool
	giveBack   bool
	log        logOptions
	warnings   []string
}

// logOptions are for Docker's own copy of a container's output.
type logOptions struct {
	maxSize  int64 // bytes a file
	maxFiles int
}

func (f *facts) atLeast(api string) bool { return versions.GreaterThanOrEqualTo(f.api, api) }

// refuse says why an engine cannot be driven, with what to do; nil when it can.
func refuse(info *system.Info, api string) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("this Docker Engine cannot be used: "+format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
	}
	if versions.LessThan(api, minAPIVersion) {
		return fail("its API is %s, at least %s is needed (Docker 20.10 or newer)", api, minAPIVersion)
	}
	if info.OSType != "" && info.OSType != "linux" {
		return fail("it runs %s containers, not linux", info.OSType)
	}
	for _, option := range securityOptions(info) {
		switch option {
		case "rootless":
			return fail("it runs rootless, pods need one that runs as root")
		case "userns":
			return fail("userns-remap is on, take it out of daemon.json")
		}
	}
	if state := info.Swarm.LocalNodeState; state != "" && state != "inactive" {
		return fail("it is a swarm node (%s), run \"docker swarm leave\" first", state)
	}
	if st, err := os.Stat(info.DockerRootDir); err != nil || !st.IsDir() {
		return fail("its data folder %s is not on this host (a remote engine, or one in a container)", info.DockerRootDir)
	}
	return nil
}

// securityOptions are the names in /info SecurityOptions ("name=seccomp,profile=default").
func securityOptions(info *system.Info) []string {
	var names []string
	for _, option := range info.SecurityOptions {
		for field := range strings.SplitSeq(option, ",") {
			if name, ok := strings.CutPrefix(field, "name="); ok {
				names = append(names, name)
			}
		}
	}
	return names
}

// newFacts keeps what lowering needs; cannotPrepare is why mounts cannot be prepared on the host, nil when they can.
func newFacts(info *system.Info, api string, opts *Options, oomScoreAdjMin int64, cannotPrepare error) *facts {
	f := &facts{
		api:            api,
		version:        info.ServerVersion,
		rootDir:        info.DockerRootDir,
		storageDriver:  info.Driver,
		cgroupDriver:   engine.CgroupfsDriver,
		cgroupV2:       info.CgroupVersion == "2",
		cgroupRoot:     opts.cgroupRoot,
		swapLimit:      info.SwapLimit,
		cdi:            len(info.CDISpecDirs) > 0,
		defaultRuntime: info.DefaultRuntime,
		handlers:       map[string]engine.HandlerFeatures{},

		recursiveReadonly: map[string]bool{},

		oomScoreAdjMin: oomScoreAdjMin,
		prepares:       cannotPrepare == nil,
		seesMounts:     !errors.Is(cannotPrepare, errUnseen),
		bridge:         opts.Network == NetworkBridge,
		giveBack:       opts.GiveBack,
		log:            logOptions{maxSize: opts.LogMaxSize, maxFiles: opts.LogMaxFiles},
	}
	if info.CgroupDriver == "systemd" {
		f.cgroupDriver = engine.SystemdDriver
	}
	for _, name := range securityOptions(info) {
		switch name {
		case "selinux":
			f.selinux = true
		case "apparmor":
			f.appArmor = true
		case "seccomp":
			f.seccomp = true
		}
	}
	for name, runtime := range info.Runtimes {
		f.recursiveReadonly[name] = f.atLeast("1.44") && hasRecursiveReadonly(runtime.Status[runtimeFeaturesKey])
		f.handlers[name] = engine.HandlerFeatures{RecursiveReadonlyMounts: f.recursiveReadonly[name] || f.prepares}
	}
	f.handlers[""], f.recursiveReadonly[""] = f.handlers[info.DefaultRuntime], f.recursiveReadonly[info.DefaultRuntime]
	if cannotPrepare != nil {
		f.warnings = append(f.warnings, fmt.Sprintf(
			"mount options, and below API 1.44 recursive read-only mounts, below 1.48 image volumes, are refused: %v", cannotPrepare))
	}
	if !f.seesMounts {
		f.warnings = append(f.warnings, "what containers write into their /etc/hosts, hostname and resolv.conf has no bound but the run folder's")
	}
	if oomScoreAdjMin > oomScoreAdjLowest {
		f.warnings = append(f.warnings, fmt.Sprintf(
			"this process lacks CAP_SYS_RESOURCE: oom_score_adj of pods is never set below %d", oomScoreAdjMin))
	}
	if !f.seccomp {
		f.warnings = append(f.warnings, "this Docker Engine has no seccomp: every container runs unconfined by it")
	}
	return f
}

// logOnce logs what answers now, and those of its limits that are not logged yet.
func (f *facts) logOnce(logged map[string]bool) {
	klog.InfoS("Docker Engine answers", "version", f.version, "api", f.api, "cgroupDriver", f.cgroupDriver, "storageDriver", f.storageDriver, "root", f.rootDir)
	for _, warning := range f.warnings {
		if !logged[warning] {
			logged[warning] = true
			klog.InfoS("This Docker Engine limits what pods get", "what", warning)
		}
	}
}

// preparesImages says whether the layers of images are folders that can be mounted.
func (f *facts) preparesImages() bool { return f.prepares && f.storageDriver == "overlay2" }

func hasRecursiveReadonly(document string) bool {
	var features struct {
		MountOptions []string `json:"mountOptions"`
	}
	if document == "" || json.Unmarshal([]byte(document), &features) != nil {
		return false
	}
	for _, option := range features.MountOptions {
		if option == "rro" {
			return true
		}
	}
	return false
}

// info is what the server sees of f.
func (f *facts) info() engine.Info {
	return engine.Info{
		Version:      f.version,
		APIVersion:   f.api,
		CgroupDriver: f.cgroupDriver,
		CgroupV2:     f.cgroupV2,
		RootDir:      f.rootDir,
		Handlers:     f.handlers,
		Features: engine.Features{
			SupplementalGroupsPolicy: true,
			RecursiveReadonlyMounts:  f.handlers[""].RecursiveReadonlyMounts,
			MountOptions:             f.prepares,
			ImageVolumes:             f.atLeast("1.48") || f.preparesImages(),
			// cgroup v2 files and hugetlb limits are written by us, right after the start.
			Unified:       f.cgroupV2,
			Hugepages:     f.hugetlbMounted(),
			CDI:           f.cdi,
			Swap:          f.swapLimit,
			NetworkBridge: true,
		},
		Warnings: f.warnings,
	}
}

// oomScoreAdjLowest is the kernel's own lower bound.
const oomScoreAdjLowest = -1000

// restrictedOOMScoreAdj is the lowest oom_score_adj that containers may get: without CAP_SYS_RESOURCE in our bounding
// set (dockerd runs on this host under the same limits) a value below our own cannot be set by anybody.
func restrictedOOMScoreAdj() int64 {
	const capSysResource = unix.CAP_SYS_RESOURCE
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(capSysResource), 0, 0, 0)
	if err != nil || has == 1 {
		return oomScoreAdjLowest
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
