// Package config is the operator's settings: one TOML file, every key of which is a flag too, with defaults, checked as a
// whole.
//
// A command registers flags with Flags and reads everything with Load. A new setting is one field of Config with its tags
// and default, and, if it can be wrong, one line in checks; its flag, its line in the sample file and its place in
// `crishim config` follow from the field. A setting that is taken away gets a line in removed, so that an old file is
// told what to do. Only the sections [handlers.NAME], of which there may be any number, have no flags.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// DefaultPath is where the file is looked for; there it may be absent.
const DefaultPath = "/etc/crishim/config.toml"

// Config is all settings. Sizes are bytes ("50MiB" in the file), durations as in "90s".
type Config struct {
	Listen            []string  `toml:"listen" help:"CRI sockets, unix:///PATH; a second one may be an old shim's"`
	SocketGroup       string    `toml:"socket_group" help:"group that may use the CRI sockets, beside root; with crishim.socket set SocketGroup= in that unit instead"`
	Engine            string    `toml:"engine" help:"default engine, for pods without a runtime handler: auto, docker or native; auto takes docker where a Docker Engine is installed at the first start, else native"`
	Engines           []string  `toml:"engines" help:"engines that are on, beside the default one: docker, native; each one's name is a runtime handler, by which a RuntimeClass moves pods to it"`
	CgroupDriver      string    `toml:"cgroup_driver" help:"cgroup driver of the native engine, the kubelet's: cgroupfs or systemd; empty: that of the node's Docker Engine where one is or was on beside it, else systemd where it is init"`
	RuntimeName       string    `toml:"runtime_name" help:"name in container ids as the kubelet and its users see them; empty: docker or crishim, by the engine of the first start"`
	RootDir           string    `toml:"root_dir" help:"records and caches that survive a reboot"`
	RunDir            string    `toml:"run_dir" help:"pinned namespaces and sockets, gone after a reboot"`
	SeccompDir        string    `toml:"seccomp_dir" help:"folder of the Localhost seccomp profiles: the kubelet's"`
	ContainerLog      string    `toml:"container_log" help:"cri: logs in CRI format; json-file: dockershim's links to Docker's files"`
	ContainerLogMax   Size      `toml:"container_log_max_size" help:"size at which a log in CRI format is set aside (as NAME-overflow, of which one is kept) and begun anew, for output that is faster than the kubelet's rotation; more than the kubelet's containerLogMaxSize; 0B is off"`
	Compatibility     string    `toml:"compatibility" help:"dockershim or cri-dockerd: pods made from now on are left so that this shim can take them back, with its checkpoints, its links to Docker's logs and its CNI cache; empty is off"`
	CompatibilityRoot string    `toml:"compatibility_root" help:"that shim's own folder; empty: /var/lib/dockershim or /var/lib/cri-dockerd"`
	DrainTimeout      Duration  `toml:"drain_timeout" help:"time for calls in flight when the daemon is told to end"`
	Checkpoint        bool      `toml:"checkpoint" help:"let containers and pods be checkpointed, and restored from archives and from images that say they are checkpoints, where the engine can; a restored process has whatever rights its checkpoint says, so whoever may choose a pod's image is root of the node then"`
	Docker            Docker    `toml:"docker"`
	Network           Network   `toml:"network"`
	Adopt             Adopt     `toml:"adopt"`
	Images            Images    `toml:"images"`
	Streaming         Streaming `toml:"streaming"`
	NRI               NRI       `toml:"nri"`
	Metrics           Metrics   `toml:"metrics"`
	Tracing           Tracing   `toml:"tracing"`
	Log               Log       `toml:"log"`

	// Handlers are the operator's runtime handlers by name.
	Handlers map[string]Handler `toml:"handlers"`
}

// Docker is the Docker Engine.
type Docker struct {
	Endpoint    string `toml:"endpoint" help:"Docker Engine's socket, unix:///PATH"`
	LogMaxSize  Size   `toml:"log_max_size" help:"size at which Docker rotates its own copy of a container's log"`
	LogMaxFiles int    `toml:"log_max_files" help:"how many files of that copy Docker keeps"`
}

// Network is pod networking.
type Network struct {
	Mode     string   `toml:"mode" help:"cni, or docker-bridge for a single node without CNI"`
	ConfDir  string   `toml:"conf_dir" help:"CNI configuration folder"`
	BinDirs  []string `toml:"bin_dirs" help:"CNI plugin folders"`
	CacheDir string   `toml:"cache_dir" help:"libcni's cache; empty: in root_dir, or with compatibility where old shims have it, /var/lib/cni/cache"`
	GC       bool     `toml:"gc" help:"let CNI plugins free what no pod of ours holds, at the start and each hour; only where nobody else uses the network"`
	PodCIDRs []string `toml:"pod_cidrs" help:"the node's pod CIDRs where no kubelet tells them; what one tells counts over it, also after a restart"`
	Template string   `toml:"template" help:"CNI configuration template written to conf_dir when the node's pod CIDR is known"`
}

// Adopt is the taking over of pods that another shim made. Only the Docker engine has such.
type Adopt struct {
	Roots        []string `toml:"roots" help:"folders of dockershim and cri-dockerd, whose checkpoints tell the host ports of their pods; read, and emptied of a pod that is removed"`
	CNICacheDirs []string `toml:"cni_cache_dirs" help:"libcni caches of those shims, which tell the networks of their pods"`
}

// Images is pulls and the pause image.
type Images struct {
	Pause          string   `toml:"pause" help:"image that holds a pod's namespaces; built in where it cannot be pulled"`
	Pinned         []string `toml:"pinned" help:"further images that the kubelet must not remove"`
	RegistryDirs   []string `toml:"registry_dirs" help:"folders of HOST/hosts.toml with mirrors and CAs, as containerd has them, or of HOST/*.crt, as Docker has them"`
	Credentials    string   `toml:"credentials" help:"Docker config.json with the node's registry credentials"`
	TokenServers   []string `toml:"token_servers" help:"HOST or HOST:PORT of token servers that get the credentials of registries on other domains, which otherwise get none (api.scaleway.com for rg.fr-par.scw.cloud)"`
	PullNoProgress Duration `toml:"pull_no_progress" help:"end a pull that makes no progress for so long; 0s never does"`
}

// Streaming is the server of exec, attach and port-forward.
type Streaming struct {
	Address     string   `toml:"address" help:"host:port; port 0 takes a free one"`
	AllowRemote bool     `toml:"allow_remote" help:"permit an address that other hosts reach"`
	Cert        string   `toml:"cert" help:"TLS certificate (PEM)"`
	Key         string   `toml:"key" help:"TLS key (PEM)"`
	IdleTimeout Duration `toml:"idle_timeout" help:"end a stream without traffic after so long; 0s never does"`
}

// NRI is the Node Resource Interface of the native engine. It is off unless somebody wants it: whoever can connect to its
// socket, or write to its folders, changes every container of the node, as root.
type NRI struct {
	Enable                    bool     `toml:"enable" help:"let NRI plugins see and change pods and containers; the native engine only"`
	SocketPath                string   `toml:"socket_path" help:"socket that plugins connect to"`
	PluginPath                string   `toml:"plugin_path" help:"folder of plugins that are started with the daemon"`
	PluginConfigPath          string   `toml:"plugin_config_path" help:"folder of those plugins' configurations"`
	PluginRegistrationTimeout Duration `toml:"plugin_registration_timeout" help:"time for a plugin to register after it was started or has connected"`
	PluginRequestTimeout      Duration `toml:"plugin_request_timeout" help:"time for a plugin to answer; then it is disconnected"`
	RequiredPlugins           []string `toml:"required_plugins" help:"names of plugins without which no container is created"`
}

// Metrics is what operators look at.
type Metrics struct {
	Listen string `toml:"listen" help:"/metrics and /healthz on a loopback host:port or unix:///PATH; empty is off"`
	Pprof  string `toml:"pprof" help:"Go profiles on this root-only unix:///PATH; empty is off"`
}

// Tracing is OpenTelemetry.
type Tracing struct {
	Endpoint string `toml:"endpoint" help:"OTLP gRPC collector, host:port, without TLS; calls that their caller samples, as a kubelet with tracing does; empty is off"`
}

// Log is klog.
type Log struct {
	Level int `toml:"level" help:"0 to 10; 2 shows what changes, 6 every call"`
}

// Default is the settings of an empty file.
func Default() *Config {
	return &Config{
		Listen: []string{"unix:///run/crishim/crishim.sock"}, Engine: EngineAuto, Engines: []string{},
		RootDir: "/var/lib/crishim", RunDir: "/run/crishim", SeccompDir: "/var/lib/kubelet/seccomp", ContainerLog: "cri",
		DrainTimeout: Duration(10e9),
		Docker:       Docker{Endpoint: "unix:///var/run/docker.sock", LogMaxSize: 50 << 20, LogMaxFiles: 3},
		Network:      Network{Mode: NetworkCNI, ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}, PodCIDRs: []string{}},
		Adopt:        Adopt{Roots: []string{"/var/lib/dockershim", "/var/lib/cri-dockerd"}, CNICacheDirs: []string{"/var/lib/cni/cache"}},
		Images: Images{
			Pause: "registry.k8s.io/pause:3.10.1", RegistryDirs: []string{"/etc/crishim/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"},
			Credentials: "/var/lib/kubelet/config.json", TokenServers: []string{}, PullNoProgress: Duration(300e9),
		},
		Streaming: Streaming{Address: "127.0.0.1:0", IdleTimeout: Duration(4 * 3600e9)},
		NRI: NRI{
			SocketPath: "/var/run/nri/nri.sock", PluginPath: "/opt/nri/plugins", PluginConfigPath: "/etc/nri/conf.d",
			PluginRegistrationTimeout: Duration(5e9), PluginRequestTimeout: Duration(5e9), RequiredPlugins: []string{},
		},
		Metrics: Metrics{Listen: "127.0.0.1:9497"},
		Log:     Log{Level: 2},
	}
}

// The engines and network modes.
const (
	EngineAuto    = "auto"
	EngineDocker  = "docker"
	EngineNative  = "native"
	NetworkCNI    = "cni"
	NetworkBridge = "docker-bridge"
)

// The shims that Compatibility names.
const (
	Dockershim = "dockershim"
	CRIDockerd = "cri-dockerd"
)

// removed are keys that were settings once, with what to do instead.
var removed = map[string]string{}

// Flags registers every setting as a flag ("docker.endpoint" is --docker-endpoint), and --config.
func Flags(fs *pflag.FlagSet) {
	fs.String("config", DefaultPath, "configuration file")
	for _, s := range settings(Default()) {
		s.flag(fs)
		section, _, ok := strings.Cut(s.key, ".")
		if !ok {
			section = ""
		}
		fs.Lookup(s.flagName()).Annotations = map[string][]string{sectionOf: {section}}
	}
}

// sectionOf is the annotation of a flag that is a setting.
const sectionOf = "crishim/section"

// Section is the section of the file that a flag of Flags belongs to, "" for what is in none; not ok for another flag.
func Section(f *pflag.Flag) (section string, ok bool) {
	if of := f.Annotations[sectionOf]; len(of) == 1 {
		return of[0], true
	}
	return "", false
}

// Propose gives a setting another default than Default's, as the name by which the program was started asks for it. The file
// and the flags that were set count over it.
func Propose(fs *pflag.FlagSet, key, value string) error {
	for _, s := range settings(Default()) {
		if s.key == key {
			return fs.Lookup(s.flagName()).Value.Set(value)
		}
	}
	return fmt.Errorf("there is no setting %s", key)
}

// Load reads defaults, then the file, then the flags that were set, and checks the whole. All that is wrong comes in one
// error; what is wrong in the file names its line. The default file may be absent.
func Load(fs *pflag.FlagSet) (*Config, error) {
	path, err := fs.GetString("config")
	if err != nil {
		return nil, err
	}
	c := Default()
	var errs []error
	for _, s := range settings(c) {
		if f := fs.Lookup(s.flagName()); f != nil && !f.Changed && f.Value.String() != f.DefValue {
			errs = append(errs, s.setFlag(f))
		}
	}
	from := map[string]string{} // key → what says where its value comes from
	switch data, err := os.ReadFile(path); {
	case err == nil:
		errs = append(errs, c.decode(path, data)...)
		for key, line := range keyLines(data) {
			from[key] = fmt.Sprintf("%s:%d: ", path, line)
		}
	case errors.Is(err, os.ErrNotExist) && !fs.Changed("config"):
	default:
		errs = append(errs, fmt.Errorf("configuration file: %w", err))
	}
	for _, s := range settings(c) {
		if f := fs.Lookup(s.flagName()); f != nil && f.Changed {
			from[s.key] = "--" + f.Name + ": "
			if err := s.setFlag(f); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, p := range c.check() {
		errs = append(errs, fmt.Errorf("%s%s: %w", from[p.key], p.key, p.err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// setting is one field of Config.
type setting struct {
	key   string // "docker.endpoint"
	help  string
	value reflect.Value
}

// settings walks the fields of c in order, those of sections after those that are not in one.
func settings(c *Config) []setting {
	var all, sections []setting
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		key := field.Tag.Get("toml")
		if field.Type.Kind() == reflect.Map {
			continue // the handlers
		}
		if field.Type.Kind() != reflect.Struct {
			all = append(all, setting{key, field.Tag.Get("help"), v.Field(i)})
			continue
		}
		for j := range field.Type.NumField() {
			sub := field.Type.Field(j)
			sections = append(sections, setting{key + "." + sub.Tag.Get("toml"), sub.Tag.Get("help"), v.Field(i).Field(j)})
		}
	}
	return append(all, sections...)
}

// flagName is the key with dashes; a section's mode is the section itself (--network=docker-bridge).
func (s setting) flagName() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(strings.TrimSuffix(s.key, ".mode"))
}

func (s setting) flag(fs *pflag.FlagSet) {
	switch v := s.value.Interface().(type) {
	case bool:
		fs.Bool(s.flagName(), v, s.help)
	case int:
		fs.Int(s.flagName(), v, s.help)
	case []string:
		fs.StringSlice(s.flagName(), v, s.help)
	case Duration:
		fs.Var(&textFlag{v.String(), "duration"}, s.flagName(), s.help)
	case Size:
		fs.Var(&textFlag{v.String(), "size"}, s.flagName(), s.help)
	default:
		fs.String(s.flagName(), s.value.String(), s.help)
	}
}

// textFlag is a flag whose text setFlag reads; kind is what help calls it.
type textFlag struct{ text, kind string }

func (f *textFlag) String() string        { return f.text }
func (f *textFlag) Set(text string) error { f.text = text; return nil }
func (f *textFlag) Type() string          { return f.kind }

func (s setting) setFlag(f *pflag.Flag) error {
	var err error
	switch target := s.value.Addr().Interface().(type) {
	case *bool:
		*target = f.Value.String() == "true"
	case *int:
		_, err = fmt.Sscan(f.Value.String(), target)
	case *[]string:
		*target = slices.Clone(f.Value.(pflag.SliceValue).GetSlice())
	case interface{ UnmarshalText([]byte) error }:
		err = target.UnmarshalText([]byte(f.Value.String()))
	case *string:
		*target = f.Value.String()
	}
	if err != nil {
		return fmt.Errorf("--%s: %w", f.Name, err)
	}
	return nil
}

// Write prints the settings as a file that Load accepts; with comments, it is the sample file: everything commented out.
func (c *Config) Write(w io.Writer, comments bool) error {
	section := ""
	for _, s := range settings(c) {
		key := s.key
		if head, tail, ok := strings.Cut(s.key, "."); ok {
			key = tail
			if head != section {
				section = head
				if _, err := fmt.Fprintf(w, "\n[%s]\n", section); err != nil {
					return err
				}
			}
		}
		line := fmt.Sprintf("%s = %s\n", key, s.toml())
		if comments {
			line = fmt.Sprintf("# %s\n#%s\n", s.help, line)
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return c.writeHandlers(w, comments)
}

func (s setting) toml() string {
	switch v := s.value.Interface().(type) {
	case bool, int:
		return fmt.Sprint(v)
	case []string:
		quoted := make([]string, len(v))
		for i, e := range v {
			quoted[i] = fmt.Sprintf("%q", e)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case fmt.Stringer:
		return fmt.Sprintf("%q", v.String())
	}
	return fmt.Sprintf("%q", s.value.String())
}
