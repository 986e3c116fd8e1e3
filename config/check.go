package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// problem is a setting whose value is wrong.
type problem struct {
	key string
	err error
}

// check reports everything that is wrong with the values.
func (c *Config) check() []problem {
	all := []problem{
		{"listen", each(c.Listen, unixAddress)},
		{"listen", notEmpty(c.Listen)},
		{"engine", oneOf(c.Engine, EngineAuto, EngineDocker, EngineNative)},
		{"engines", each(c.Engines, func(v string) error { return oneOf(v, EngineDocker, EngineNative) })},
		{"cgroup_driver", optional(c.CgroupDriver, func(v string) error { return oneOf(v, "cgroupfs", "systemd") })},
		{"runtime_name", optional(c.RuntimeName, word)},
		{"root_dir", absolute(c.RootDir)},
		{"run_dir", absolute(c.RunDir)},
		{"run_dir", otherThan(c.RunDir, "root_dir", c.RootDir)},
		{"seccomp_dir", optional(c.SeccompDir, absolute)},
		{"container_log", oneOf(c.ContainerLog, "cri", "json-file")},
		{"container_log_max_size", zeroOr(int64(c.ContainerLogMax), 1<<20)},
		{"compatibility", oneOf(c.Compatibility, "", Dockershim, CRIDockerd)},
		{"compatibility_root", optional(c.CompatibilityRoot, absolute)},
		{"docker.endpoint", localEngine(c.Docker.Endpoint)},
		{"docker.log_max_size", atLeast(int64(c.Docker.LogMaxSize), 64<<10)},
		{"docker.log_max_files", atLeast(int64(c.Docker.LogMaxFiles), 1)},
		{"network.mode", oneOf(c.Network.Mode, NetworkCNI, NetworkBridge)},
		{"network.conf_dir", absolute(c.Network.ConfDir)},
		{"network.bin_dirs", each(c.Network.BinDirs, absolute)},
		{"network.bin_dirs", notEmpty(c.Network.BinDirs)},
		{"network.cache_dir", optional(c.Network.CacheDir, absolute)},
		{"network.pod_cidrs", each(c.Network.PodCIDRs, cidr)},
		{"network.template", optional(c.Network.Template, absolute)},
		{"adopt.roots", each(c.Adopt.Roots, absolute)},
		{"adopt.cni_cache_dirs", each(c.Adopt.CNICacheDirs, absolute)},
		{"images.pause", imageReference(c.Images.Pause)},
		{"images.pinned", each(c.Images.Pinned, imageReference)},
		{"images.registry_dirs", each(c.Images.RegistryDirs, absolute)},
		{"images.credentials", optional(c.Images.Credentials, absolute)},
		{"images.token_servers", each(c.Images.TokenServers, urlHost)},
		{"streaming.address", hostPort(c.Streaming.Address)},
		{"streaming", certificate(c.Streaming)},
		{"nri.socket_path", unixAddress("unix://" + c.NRI.SocketPath)},
		{"nri.plugin_path", absolute(c.NRI.PluginPath)},
		{"nri.plugin_config_path", absolute(c.NRI.PluginConfigPath)},
		{"nri.plugin_registration_timeout", positive(c.NRI.PluginRegistrationTimeout)},
		{"nri.plugin_request_timeout", positive(c.NRI.PluginRequestTimeout)},
		{"metrics.listen", optional(c.Metrics.Listen, loopbackOrUnix)},
		{"metrics.pprof", optional(c.Metrics.Pprof, unixAddress)},
		{"tracing.endpoint", optional(c.Tracing.Endpoint, hostPort)},
		{"log.level", between(c.Log.Level, 0, 10)},
	}
	all = append(all, c.checkHandlers()...)
	return slices.DeleteFunc(all, func(p problem) bool { return p.err == nil })
}

func optional(v string, check func(string) error) error {
	if v == "" {
		return nil
	}
	return check(v)
}

func each(values []string, check func(string) error) error {
	var errs []error
	for _, v := range values {
		errs = append(errs, check(v))
	}
	return errors.Join(errs...)
}

func notEmpty(values []string) error {
	if len(values) == 0 {
		return errors.New("at least one is needed")
	}
	return nil
}

func oneOf(v string, allowed ...string) error {
	if !slices.Contains(allowed, v) {
		return fmt.Errorf("%q is not one of %s", v, strings.TrimPrefix(strings.Join(allowed, ", "), ", "))
	}
	return nil
}

func word(v string) error {
	if v == "" || strings.ContainsFunc(v, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-", r) }) {
		return fmt.Errorf("%q is not a word of a-z, 0-9 and -", v)
	}
	return nil
}

func absolute(v string) error {
	if !filepath.IsAbs(v) || filepath.Clean(v) == "/" {
		return fmt.Errorf("%q is not an absolute path below /", v)
	}
	return nil
}

// otherThan refuses two folders that are one: what has a name in both would be one file.
func otherThan(v, key, other string) error {
	if v != "" && filepath.Clean(v) == filepath.Clean(other) {
		return fmt.Errorf("%q is %s too; it has to be a folder of its own", v, key)
	}
	return nil
}

// maxSocketPath is what fits sockaddr_un.
const maxSocketPath = 107

func unixAddress(v string) error {
	path, ok := strings.CutPrefix(v, "unix://")
	if !ok || absolute(path) != nil {
		return fmt.Errorf("%q is not unix:///PATH", v)
	}
	if len(path) > maxSocketPath {
		return fmt.Errorf("%q is longer than the %d characters a socket's path can have", v, maxSocketPath)
	}
	return nil
}

// localEngine refuses engines on other hosts: their containers have no processes, namespaces or log files here.
func localEngine(v string) error {
	if err := unixAddress(v); err != nil {
		return fmt.Errorf("%w; the Docker Engine must run on this host", err)
	}
	return nil
}

func cidr(v string) error {
	if _, err := netip.ParsePrefix(v); err != nil {
		return fmt.Errorf("%q is no range such as 10.244.0.0/24", v)
	}
	return nil
}

func hostPort(v string) error {
	_, port, err := net.SplitHostPort(v)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not host:port", v)
	}
	return nil
}

// urlHost takes what a URL has there: a host, in brackets where it is an IPv6 address, with or without a port.
func urlHost(v string) error {
	if u, err := url.Parse("https://" + v); err != nil || u.Host != v || u.Hostname() == "" {
		return fmt.Errorf("%q is neither HOST nor HOST:PORT", v)
	}
	return nil
}

func loopbackOrUnix(v string) error {
	if strings.HasPrefix(v, "unix://") {
		return unixAddress(v)
	}
	host, _, _ := net.SplitHostPort(v)
	if ip := net.ParseIP(host); hostPort(v) != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is neither a loopback address with a port nor unix:///PATH", v)
	}
	return nil
}

func certificate(s Streaming) error {
	if (s.Cert == "") != (s.Key == "") {
		return errors.New("cert and key belong together")
	}
	for _, path := range []string{s.Cert, s.Key} {
		if path == "" {
			continue
		}
		// Who may not see the key's folder, as the socket's group, is no daemon: its commands need none of them.
		if _, err := os.Stat(path); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return nil
}

func imageReference(v string) error {
	if _, err := reference.ParseDockerRef(v); err != nil {
		return fmt.Errorf("%q is no image reference: %w", v, err)
	}
	return nil
}

func atLeast(v, least int64) error {
	if v < least {
		return fmt.Errorf("%d is less than %d", v, least)
	}
	return nil
}

func zeroOr(v, least int64) error {
	if v == 0 {
		return nil
	}
	return atLeast(v, least)
}

func positive(d Duration) error {
	if d <= 0 {
		return fmt.Errorf("%v is not a time to wait for", d)
	}
	return nil
}

func between(v, low, high int) error {
	if v < low || v > high {
		return fmt.Errorf("%d is not from %d to %d", v, low, high)
	}
	return nil
}
