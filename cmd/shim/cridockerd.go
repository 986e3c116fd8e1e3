package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crishim/config"
)

// Started under the name cri-dockerd the program is the daemon with that one's flags: its unit files, and the drop-ins that
// installers write for them, start it unchanged, on the same socket and over the same pods. What those flags mean here is
// said in the log; the configuration file counts for all that they do not say.

const criDockerdUsage = `cri-dockerd is crishim here: each flag of cri-dockerd is taken for crishim's own setting, and the log says which.
Settings that no flag of cri-dockerd stands for are read from the configuration file, see crishim config.

Usage: cri-dockerd [FLAGS]

`

// runAsCRIDockerd is run with cri-dockerd's command line.
func runAsCRIDockerd(ctx context.Context, args []string, out io.Writer) error {
	d := &dropIn{getenv: os.Getenv, handed: handedSockets}
	switch err := d.parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		_, err := fmt.Fprint(out, criDockerdUsage, d.flags.FlagUsages())
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", err, errUsage)
	case d.printVersion:
		_, err := fmt.Fprintln(out, "cri-dockerd", version, "(crishim)")
		return err
	}
	if err := d.translate(); err != nil {
		return err
	}
	for _, line := range d.said {
		klog.InfoS("As cri-dockerd: " + line)
	}
	for _, line := range d.warned {
		klog.Warning("As cri-dockerd: " + line)
	}
	return serve(ctx, d.settings, out)
}

// dropIn makes our settings of cri-dockerd's command line.
type dropIn struct {
	getenv func(string) string
	// handed are the paths of the sockets that systemd gave the process.
	handed func() ([]string, error)

	flags        *pflag.FlagSet // cri-dockerd's
	printVersion bool
	// settings are ours, with what follows from flags set.
	settings *pflag.FlagSet
	// said is what became of the flags, a sentence each; warned of those among them that do nothing here.
	said, warned []string
}

// parse reads the flags as cri-dockerd does; unknown ones are an error.
func (d *dropIn) parse(args []string) error {
	d.flags = pflag.NewFlagSet(config.CRIDockerd, pflag.ContinueOnError)
	d.flags.SetOutput(io.Discard)
	d.flags.SortFlags = false
	for _, f := range criDockerdFlags {
		switch f.value {
		case "true", "false":
			d.flags.Bool(f.name, f.value == "true", f.help)
		default:
			d.flags.String(f.name, f.value, f.help)
		}
	}
	d.flags.Bool("version", false, "print the version")
	d.flags.Bool("buildinfo", false, "print the version")
	d.flags.String("config", config.DefaultPath, "crishim's configuration file")
	if err := d.flags.Parse(args); err != nil {
		return err
	}
	if d.flags.NArg() > 0 {
		return fmt.Errorf("unknown command %q", d.flags.Arg(0))
	}
	for _, name := range []string{"version", "buildinfo"} {
		if on, err := d.flags.GetBool(name); err == nil && on {
			d.printVersion = true
		}
	}
	return nil
}

// translate decides settings from the flags; all that is wrong comes at once.
func (d *dropIn) translate() error {
	d.settings = pflag.NewFlagSet("crishim", pflag.ContinueOnError)
	serveFlags(d.settings)
	// What the name alone says can be said otherwise in the file.
	errs := []error{
		config.Propose(d.settings, "engine", config.EngineDocker),
		config.Propose(d.settings, "compatibility", config.CRIDockerd),
	}
	for _, f := range criDockerdFlags {
		given := d.flags.Lookup(f.name)
		if f.apply == nil || (!given.Changed && !f.always) {
			continue
		}
		if err := f.apply(d, given.Value.String()); err != nil {
			errs = append(errs, fmt.Errorf("--%s=%s: %w", f.name, given.Value, err))
		}
	}
	if c := d.flags.Lookup("config"); c.Changed {
		errs = append(errs, d.settings.Set("config", c.Value.String()))
	}
	return errors.Join(errs...)
}

// set gives one of our settings its value, and says so.
func (d *dropIn) set(flag, name, value string) error {
	if err := d.settings.Set(name, value); err != nil {
		return err
	}
	d.said = append(d.said, fmt.Sprintf("--%s is the setting --%s=%s", flag, name, value))
	return nil
}

func (d *dropIn) warn(format string, args ...any) {
	d.warned = append(d.warned, fmt.Sprintf(format, args...))
}

// criDockerdFlag is a flag of cri-dockerd.
type criDockerdFlag struct {
	name, value, help string // value is its default
	// apply is called where the flag was given, or always.
	apply  func(d *dropIn, value string) error
	always bool
}

// becomes is a flag whose value is that of one of our settings.
func becomes(flag, setting string) func(*dropIn, string) error {
	return func(d *dropIn, value string) error { return d.set(flag, setting, value) }
}

// criDockerdFlags are those of cri-dockerd 0.2 to 0.4.
var criDockerdFlags = []criDockerdFlag{
	{"container-runtime-endpoint", "unix:///var/run/cri-dockerd.sock", "CRI socket; fd:// is systemd's (listen)", criEndpoint, true},
	{"docker-endpoint", "unix:///var/run/docker.sock", "Docker Engine's socket (docker.endpoint)", dockerEndpoint, false},
	{"cri-dockerd-root-directory", "/var/lib/cri-dockerd", "cri-dockerd's folder (compatibility_root)", becomes("cri-dockerd-root-directory", "compatibility-root"), false},
	{"pod-infra-container-image", "registry.k8s.io/pause:3.10", "pause image (images.pause)", becomes("pod-infra-container-image", "images-pause"), false},
	{"image-pull-progress-deadline", "1m0s", "end of a pull without progress (images.pull_no_progress)", becomes("image-pull-progress-deadline", "images-pull-no-progress"), false},
	{"streaming-bind-addr", "", "address of exec, attach and port-forward (streaming.address)", streamingAddress, true},
	{"network-plugin", "cni", "cni, or empty for Docker's bridge (network.mode)", networkPlugin, false},
	{"cni-conf-dir", "/etc/cni/net.d", "CNI configuration folder (network.conf_dir)", becomes("cni-conf-dir", "network-conf-dir"), false},
	{"cni-bin-dir", "/opt/cni/bin", "CNI plugin folders, separated by commas (network.bin_dirs)", becomes("cni-bin-dir", "network-bin-dirs"), false},
	{"cni-cache-dir", "/var/lib/cni/cache", "libcni's cache (network.cache_dir)", becomes("cni-cache-dir", "network-cache-dir"), false},
	{"pod-cidr", "", "pod CIDR where no kubelet tells it (network.pod_cidrs)", podCIDR, false},
	{"log-level", "info", "panic, fatal, error, warn, info, debug or trace (log.level)", logLevel, false},
	{"ipv6-dual-stack", "false", "does nothing: pods have the addresses that their network gives", func(d *dropIn, value string) error {
		if value == "false" {
			d.warn("--ipv6-dual-stack=false does nothing: pods have the addresses that their network gives, of both families")
		}
		return nil
	}, false},
	{"hairpin-mode", "none", "does nothing: only kubenet obeyed it", hairpinMode, false},
	{"network-plugin-mtu", "0", "does nothing: the MTU is in the CNI configuration", func(d *dropIn, value string) error {
		if n, err := strconv.ParseInt(value, 10, 32); err != nil {
			return errors.New("it is no number")
		} else if n != 0 {
			d.warn("--network-plugin-mtu=%d does nothing: set \"mtu\" of the bridge plugin in the CNI configuration", n)
		}
		return nil
	}, false},
	{"runtime-cgroups", "", "does nothing: systemd places the daemon", func(d *dropIn, value string) error {
		if value != "" {
			d.warn("--runtime-cgroups=%s does nothing: systemd places the daemon, set Slice= in its unit, and Docker's in docker.service", value)
		}
		return nil
	}, false},
	{"runtime-request-timeout", "0s", "does nothing: each call has its caller's deadline", func(d *dropIn, value string) error {
		d.warn("--runtime-request-timeout=%s does nothing: each call ends with its caller's deadline", value)
		return nil
	}, false},
}

// criEndpoint is a path, or systemd's socket, which is named by its path too.
func criEndpoint(d *dropIn, value string) error {
	switch scheme, rest, ok := strings.Cut(value, "://"); {
	case !ok:
		return d.set("container-runtime-endpoint", "listen", "unix://"+value) // a path alone
	case scheme == "unix":
		return d.set("container-runtime-endpoint", "listen", value)
	case scheme == "fd" && rest == "":
		paths, err := d.handed()
		if err != nil {
			return err
		}
		if len(paths) == 0 {
			return errors.New("systemd gave no socket: start cri-docker.socket first, or name a path, unix:///run/cri-dockerd.sock")
		}
		for i := range paths {
			paths[i] = "unix://" + paths[i]
		}
		return d.set("container-runtime-endpoint", "listen", strings.Join(paths, ","))
	}
	return errors.New("CRI is served on unix:///PATH, or on systemd's socket with fd://, alone")
}

// dockerEndpoint is the environment's where it is empty, as for Docker's own client.
func dockerEndpoint(d *dropIn, value string) error {
	if value == "" {
		if value = d.getenv("DOCKER_HOST"); value == "" {
			return nil
		}
	}
	return d.set("docker-endpoint", "docker-endpoint", value)
}

// streamingAddress may be an address without a port. Without the flag cri-dockerd listened everywhere.
func streamingAddress(d *dropIn, value string) error {
	if value == "" {
		d.said = append(d.said, "exec, attach and port-forward are served on loopback, where the kubelet is; cri-dockerd listened on all addresses")
		return nil
	}
	address, err := netip.ParseAddrPort(value)
	if err != nil {
		addr, err := netip.ParseAddr(value)
		if err != nil {
			return errors.New("it is neither an IP address nor one with a port")
		}
		address = netip.AddrPortFrom(addr, 0)
	}
	if !address.Addr().IsLoopback() {
		if err := d.set("streaming-bind-addr", "streaming-allow-remote", "true"); err != nil {
			return err
		}
		d.warn("--streaming-bind-addr=%s lets other hosts reach exec, attach and port-forward; the kubelet needs loopback only", value)
	}
	return d.set("streaming-bind-addr", "streaming-address", address.String())
}

func networkPlugin(d *dropIn, value string) error {
	switch value {
	case "cni":
		return d.set("network-plugin", "network", config.NetworkCNI)
	case "":
		return d.set("network-plugin", "network", config.NetworkBridge)
	case "kubenet":
		return errors.New("there is no kubenet here: write a CNI configuration of the plugins bridge, host-local and portmap to /etc/cni/net.d " +
			"(set network.template in " + config.DefaultPath + " to have it written when the node's pod CIDR is known), and use --network-plugin=cni")
	}
	return errors.New("there is no such network plugin, use cni or \"\"")
}

func podCIDR(d *dropIn, value string) error {
	if value == "" {
		return nil
	}
	return d.set("pod-cidr", "network-pod-cidrs", value)
}

// logLevel: the two upper levels of cri-dockerd logged bodies of requests to Docker, with what is secret in them.
func logLevel(d *dropIn, value string) error {
	levels := map[string]string{"panic": "0", "fatal": "0", "error": "0", "warn": "0", "warning": "0", "info": "2", "debug": "4", "trace": "6"}
	level, ok := levels[strings.ToLower(value)]
	if !ok {
		return errors.New("it is not one of panic, fatal, error, warn, info, debug, trace")
	}
	return d.set("log-level", "log-level", level)
}

func hairpinMode(d *dropIn, value string) error {
	switch value {
	case "none":
	case "hairpin-veth", "promiscuous-bridge":
		d.warn("--hairpin-mode=%s does nothing: only kubenet obeyed it; with CNI it is \"hairpinMode\" of the bridge plugin", value)
	default:
		return errors.New("it is not one of promiscuous-bridge, hairpin-veth, none")
	}
	return nil
}

// handedSockets leaves the sockets to whoever serves on them.
func handedSockets() ([]string, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS=%q of systemd is no number", os.Getenv("LISTEN_FDS"))
	}
	var paths []string
	const first = 3 // SD_LISTEN_FDS_START
	for fd := first; fd < first+n; fd++ {
		name, err := unix.Getsockname(fd)
		if err != nil {
			return nil, fmt.Errorf("file %d of systemd: %w", fd, err)
		}
		local, ok := name.(*unix.SockaddrUnix)
		if !ok || !strings.HasPrefix(local.Name, "/") {
			return nil, fmt.Errorf("file %d of systemd is no unix socket with a path; CRI is served on such alone", fd)
		}
		paths = append(paths, local.Name)
	}
	return paths, nil
}
