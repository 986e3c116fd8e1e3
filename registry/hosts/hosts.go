// Package hosts reads certs.d/HOST/hosts.toml, the form in which users of containerd already describe the mirrors, CAs and
// headers of a registry (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
//
// Lookup finds the folder of a registry in a list of folders, as containerd names them (HOST_PORT_, then HOST, then
// _default), and Parse turns its hosts.toml into the endpoints to try in order, the registry itself last. A folder without
// hosts.toml is one of Docker's form: *.crt are CAs, *.cert with *.key what the client shows of itself
// (https://docs.docker.com/engine/security/certificates/). Files are read at each call, so that an edit counts from the next
// pull on.
package hosts

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"k8s.io/klog/v2"
)

// FileName is the file in a registry's folder.
const FileName = "hosts.toml"

// maxFileSize bounds what is read of a hosts.toml or a certificate file.
const maxFileSize = 1 << 20

// Config is what one hosts.toml says of one registry.
type Config struct {
	// Registry is the host as references name it ("docker.io", "reg.example.org:5000").
	Registry string
	// Path is the file, for messages; the folder where there is none.
	Path string
	// Certificates says that the folder has no hosts.toml: it names no mirror, and dockerd reads such folders itself.
	Certificates bool
	// Endpoints are tried in order. The last one is the registry's own server.
	Endpoints []Endpoint
}

// Endpoint is one place that serves the registry's content.
type Endpoint struct {
	// URL is the scheme, the host and the path under which NAME/manifests and NAME/blobs lie ("https://mirror/v2"). It has no
	// query, and its path does not end in "/".
	URL *url.URL
	// Pull serves manifests by digest and blobs; Resolve serves manifests by tag.
	Pull, Resolve bool
	// Server marks the registry's own server, to which credentials for the registry belong; others are mirrors.
	Server bool
	// Header is sent with every request to this endpoint and to no other host.
	Header http.Header
	// TLS is never nil.
	TLS *tls.Config
	// DialTimeout bounds making a connection; 0 leaves the caller's default.
	DialTimeout time.Duration
}

// Lookup returns what the first folder that is there for the registry says of it, nil when there is none. As in containerd a
// registry's own folder counts whatever is in it: _default is for those that have none.
func Lookup(dirs []string, registry string) (*Config, error) {
	if err := checkRegistry(registry); err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		for _, name := range folderNames(registry) {
			folder := filepath.Join(dir, name)
			if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return nil, fmt.Errorf("read the mirrors of %s: %w", registry, err)
			}
			return readFolder(folder, registry, name == "_default")
		}
	}
	return nil, nil
}

// readFolder reads the folder of a registry.
func readFolder(folder, registry string, isDefault bool) (*Config, error) {
	file := filepath.Join(folder, FileName)
	data, err := readFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the mirrors of %s: %w", registry, err)
	}
	if len(data) == 0 {
		config, err := readCertificates(folder, registry, isDefault)
		if err != nil {
			return nil, fmt.Errorf("certificates in %s: %w", folder, err)
		}
		return config, nil
	}
	config, err := Parse(data, registry, folder, isDefault)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	config.Path = file
	return config, nil
}

// readCertificates reads a folder of Docker's form: the registry itself is the only endpoint.
func readCertificates(folder, registry string, isDefault bool) (*Config, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var cas, clients []any
	for _, entry := range entries {
		base, isClient := strings.CutSuffix(entry.Name(), ".cert")
		switch {
		case entry.IsDir():
		case strings.HasSuffix(entry.Name(), ".crt"):
			cas = append(cas, entry.Name())
		case isClient:
			pair := []any{entry.Name()} // which may hold the key, too
			if _, err := os.Stat(filepath.Join(folder, base+".key")); err == nil {
				pair = append(pair, base+".key")
			}
			clients = append(clients, pair)
		}
	}
	file := fileTable{hostTable: hostTable{CA: cas, Client: clients}}
	if len(cas)+len(clients) > 0 {
		// Whoever gives it certificates has it speak TLS, on loopback, too.
		file.Server = strings.Replace(ServerURL(registry), "http://", "https://", 1)
	}
	config := &Config{Registry: registry, Path: folder, Certificates: true}
	return config, file.addServer(config, folder, isDefault)
}

// folderNames are the folders of a registry, most specific first; a colon may not be in file names everywhere.
func folderNames(registry string) []string {
	names := []string{registry, "_default"}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		names = slices.Insert(names, 0, registry[:i]+"_"+registry[i+1:]+"_")
	}
	return names
}

// checkRegistry keeps a hostile reference from naming another folder. References have parsed domains already; this holds
// for any caller.
func checkRegistry(registry string) error {
	if registry == "" || strings.ContainsAny(registry, "/\\\x00") || strings.Contains(registry, "..") || registry[0] == '.' || registry[0] == '_' {
		return fmt.Errorf("%.100q is not the host of a registry: %w", registry, errdefs.ErrInvalidArgument)
	}
	return nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileSize {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes: %w", name, maxFileSize, errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(name)
}

// hostTable is a [host."URL"] table, and with Server the top of the file.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	OverridePath bool           `toml:"override_path"`
	Header       map[string]any `toml:"header"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type fileTable struct {
	hostTable
	Server string               `toml:"server"`
	Host   map[string]hostTable `toml:"host"`
}

// Parse reads a hosts.toml for registry. Relative file names are taken from dir. isDefault says that the file is that of
// _default: a server in it then serves many registries, so none of their credentials belong to it.
func Parse(data []byte, registry, dir string, isDefault bool) (*Config, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // some editors begin a file of UTF-8 with it
	var file fileTable
	if err := toml.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("parse: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	config := &Config{Registry: registry}
	for _, name := range hostOrder(data) {
		table, ok := file.Host[name]
		if !ok {
			continue
		}
		endpoint, err := table.endpoint(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", redactUser(name), err)
		}
		config.Endpoints = append(config.Endpoints, endpoint)
	}
	if len(config.Endpoints) != len(file.Host) {
		return nil, fmt.Errorf("parse: [host.\"URL\"] must be tables of their own: %w", errdefs.ErrInvalidArgument)
	}
	if err := file.addServer(config, dir, isDefault); err != nil {
		return nil, err
	}
	return config, nil
}

// addServer adds the registry's own server, as the last endpoint.
func (f *fileTable) addServer(config *Config, dir string, isDefault bool) error {
	own := ServerURL(config.Registry)
	server := f.Server
	if server == "" {
		server = own
	}
	endpoint, err := f.endpoint(server, dir)
	if err != nil {
		return fmt.Errorf("server %q: %w", redactUser(server), err)
	}
	ownURL, err := url.Parse(own)
	if err != nil {
		return fmt.Errorf("registry %q: %w: %w", config.Registry, err, errdefs.ErrInvalidArgument)
	}
	// Whoever gives a registry its server owns that choice; the server is then the registry, whatever its host is.
	endpoint.Server = !isDefault || SameHost(endpoint.URL, ownURL)
	// A [host] that is the registry itself is no mirror: containerd's files name it so to give it a CA, skip_verify or headers.
	for i := range config.Endpoints {
		host := config.Endpoints[i].URL
		config.Endpoints[i].Server = SameHost(host, ownURL) || endpoint.Server && SameHost(host, endpoint.URL)
	}
	config.Endpoints = append(config.Endpoints, endpoint)
	return nil
}

// SameServer says that two URLs are of one server, whether they name the default port or not, and in whatever case the host.
func SameServer(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		return cmp.Or(u.Port(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// SameHost says likewise of hosts, whatever the scheme, if they are written the same.
func SameHost(a, b *url.URL) bool { return a.Host == b.Host || SameServer(a, b) }

// ServerURL is where a registry is when nothing says otherwise.
func ServerURL(registry string) string {
	if registry == "docker.io" || registry == "index.docker.io" {
		return "https://registry-1.docker.io"
	}
	if isLoopback(registry) {
		return "http://" + registry
	}
	return "https://" + registry
}

func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// hostOrder lists the keys of host tables as they stand in the file: their order is the order of trying.
func hostOrder(data []byte) []string {
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var parser unstable.Parser
	parser.Reset(data)
	underHost := false // inside a plain [host] table
	for parser.NextExpression() {
		node := parser.Expression()
		var keys []string
		for it := node.Key(); it.Next(); {
			keys = append(keys, string(it.Node().Data))
		}
		switch {
		case node.Kind == unstable.Table:
			underHost = len(keys) == 1 && keys[0] == "host"
			if len(keys) >= 2 && keys[0] == "host" {
				add(keys[1])
			}
		case node.Kind == unstable.KeyValue && underHost && len(keys) >= 1:
			add(keys[0])
		}
	}
	return names
}

func (t *hostTable) endpoint(rawURL, dir string) (Endpoint, error) {
	bad := func(format string, args ...any) (Endpoint, error) {
		return Endpoint{}, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	u, err := endpointURL(rawURL, t.OverridePath)
	if err != nil {
		return Endpoint{}, err
	}
	endpoint := Endpoint{URL: u, Header: http.Header{}, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
	if len(t.Capabilities) == 0 {
		endpoint.Pull, endpoint.Resolve = true, true
	}
	for _, capability := range t.Capabilities {
		switch strings.ToLower(capability) {
		case "pull":
			endpoint.Pull = true
		case "resolve":
			endpoint.Resolve = true
		case "push", "referrers": // nothing is ever pushed, and no signatures are asked for
		default:
			warnOfCapability(capability, redactUser(rawURL), dir)
		}
	}
	for key, value := range t.Header {
		values, err := stringList(value)
		if err != nil || !validHeaderName(key) {
			return bad("header %q must be a name with a string or a list of strings", key)
		}
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n\x00") {
				return bad("header %q has a line break in its value", key)
			}
			endpoint.Header.Add(key, v)
		}
	}
	if t.DialTimeout != "" {
		if endpoint.DialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil || endpoint.DialTimeout < 0 {
			return bad("dial_timeout %q is not a duration such as 3s", t.DialTimeout)
		}
	}
	endpoint.TLS.InsecureSkipVerify = t.SkipVerify
	if endpoint.TLS.RootCAs, err = rootCAs(t.CA, dir); err != nil {
		return Endpoint{}, err
	}
	if endpoint.TLS.Certificates, err = clientCertificates(t.Client, dir); err != nil {
		return Endpoint{}, err
	}
	return endpoint, nil
}

// unknownCapabilities are those that were warned of: files are read at each pull.
var unknownCapabilities sync.Map

// warnOfCapability says once that a capability is ignored. It is no reason to fail pulls: the file is containerd's, too, whose
// next version may know more of them.
func warnOfCapability(capability, host, dir string) {
	if _, told := unknownCapabilities.LoadOrStore([3]string{capability, host, dir}, true); !told {
		klog.InfoS("Ignoring a capability of a hosts.toml, which is none of pull, resolve, push, referrers", "capability", capability, "host", host, "folder", dir)
	}
}

func endpointURL(raw string, overridePath bool) (*url.URL, error) {
	text := raw
	if !strings.Contains(text, "://") {
		if host, _, _ := strings.Cut(text, "/"); isLoopback(host) {
			text = "http://" + text
		} else {
			text = "https://" + text
		}
	}
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%.200q is not an http or https URL of a host and a path only (credentials belong into a config.json): %w",
			redactUser(raw), errdefs.ErrInvalidArgument)
	}
	clean := strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !overridePath && !strings.HasSuffix(clean, "/v2") {
		clean += "/v2"
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: clean}, nil
}

// redactUser keeps a password that was wrongly written into a URL out of the message about it.
func redactUser(raw string) string {
	if i := strings.LastIndexByte(raw, '@'); i >= 0 {
		return "…" + raw[i:]
	}
	return raw
}

func validHeaderName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == "" &&
		!strings.EqualFold(name, "host") && !strings.EqualFold(name, "content-length")
}

// stringList is a TOML value that is one string or a list of them.
func stringList(value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, 0, len(v))
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, errdefs.ErrInvalidArgument
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, errdefs.ErrInvalidArgument
}

// rootCAs are the system's and those of the file; nil, the system's, when the file names none.
func rootCAs(value any, dir string) (*x509.CertPool, error) {
	files, err := stringList(value)
	if err != nil {
		return nil, fmt.Errorf("ca must be a file name or a list of them: %w", err)
	}
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's certificates: %w", err)
	}
	for _, file := range files {
		data, err := readFile(absolute(file, dir))
		if err != nil {
			return nil, fmt.Errorf("read ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("ca %s holds no certificate: %w", file, errdefs.ErrInvalidArgument)
		}
	}
	return pool, nil
}

// clientCertificates reads client = "both.pem", ["both.pem", …] or [["cert.pem", "key.pem"], ["both.pem", ""], …].
func clientCertificates(value any, dir string) ([]tls.Certificate, error) {
	shape := func() error {
		return fmt.Errorf("client must be a file, a list of files, or a list of pairs of certificate and key: %w", errdefs.ErrInvalidArgument)
	}
	items, ok := value.([]any)
	if !ok {
		if value == nil {
			return nil, nil
		}
		items = []any{value}
	}
	var certificates []tls.Certificate
	for _, item := range items {
		files, err := stringList(item)
		if err != nil || len(files) < 1 || len(files) > 2 {
			return nil, shape()
		}
		cert := absolute(files[0], dir)
		key := absolute(cmp.Or(files[len(files)-1], files[0]), dir)
		certificate, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("read client certificate %s: %w", files[0], err)
		}
		certificates = append(certificates, certificate)
	}
	return certificates, nil
}

func absolute(file, dir string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}
