package streaming

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

func (o *Options) setDefaults() {
	o.Address = cmp.Or(o.Address, "127.0.0.1:0")
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 4*time.Hour)
	o.CreationTimeout = cmp.Or(o.CreationTimeout, 30*time.Second)
	o.TokenTTL = cmp.Or(o.TokenTTL, time.Minute)
	o.MaxInFlight = cmp.Or(o.MaxInFlight, 1000)
	o.silence = cmp.Or(o.silence, 30*time.Second)
}

// Check returns what New would refuse, beside an address that is taken.
func (o Options) Check() error {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	_, err := o.tlsConfig()
	return err
}

// validate reports all errors at once.
func (o *Options) validate() error {
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("streaming server: %w: %w", fmt.Errorf(format, args...), errdefs.ErrInvalidArgument))
	}
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil {
		refuse("address %q is not host:port", o.Address)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		refuse("address %q has no port within 0 and 65535", o.Address)
	} else if !o.AllowRemote && !isLoopback(host) {
		refuse("address %q is not a loopback address and can be reached from other hosts: use 127.0.0.1, or set streaming.allow_remote = true, with streaming.cert and streaming.key", o.Address)
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		refuse("a certificate and a key file are needed together")
	}
	if o.CertFile != "" && o.TLS != nil {
		refuse("both certificate files and a TLS configuration are given")
	}
	for name, d := range map[string]time.Duration{"idle timeout": o.IdleTimeout, "creation timeout": o.CreationTimeout, "token lifetime": o.TokenTTL} {
		if d < 0 {
			refuse("%s %s is negative", name, d)
		}
	}
	if o.MaxInFlight < 0 {
		refuse("%d requests in flight are less than none", o.MaxInFlight)
	}
	return errors.Join(errs...)
}

// isLoopback refuses names other than localhost: what a name stands for changes.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

// tlsConfig is nil for plain HTTP.
func (o *Options) tlsConfig() (*tls.Config, error) {
	var config *tls.Config
	switch {
	case o.TLS != nil:
		config = o.TLS.Clone()
	case o.CertFile != "":
		pair := &keyPair{certFile: o.CertFile, keyFile: o.KeyFile}
		if _, err := pair.get(nil); err != nil {
			return nil, err
		}
		config = &tls.Config{GetCertificate: pair.get}
	default:
		return nil, nil
	}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	config.NextProtos = []string{"http/1.1"}
	return config, nil
}

// keyPair is a certificate on disk that is read again when it has changed. While the new files do not fit together (one
// is replaced after the other) the old pair is served on.
type keyPair struct {
	certFile, keyFile string

	mu       sync.Mutex
	modified [2]time.Time
	loaded   *tls.Certificate
}

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var modified [2]time.Time
	for i, path := range []string{k.certFile, k.keyFile} {
		if info, err := os.Stat(path); err == nil {
			modified[i] = info.ModTime()
		}
	}
	if k.loaded != nil && modified == k.modified {
		return k.loaded, nil
	}
	cert, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		if k.loaded != nil {
			return k.loaded, nil
		}
		return nil, fmt.Errorf("streaming server: read the certificate: %w", err)
	}
	k.loaded, k.modified = &cert, modified
	return k.loaded, nil
}
