// Package podfiles decides what a pod's containers read in /etc/hosts, /etc/hostname and /etc/resolv.conf where the kubelet
// mounts no file of its own there, and puts it in files that containers cannot fill the node with, on every engine.
package podfiles

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

// Files are the texts.
type Files struct{ Hosts, Hostname, ResolvConf string }

// room is what containers may write in addition to a pod's texts: a page of 64 KiB for each file, and one more.
const room = 4 << 16

// Mount mounts a file system at dir, an empty folder, and writes the files into it. It is of memory, and has room for little
// else: nothing counts what a pod writes there. On an error it may be mounted.
func (f Files) Mount(dir string, uid, gid int) error {
	options := fmt.Sprintf("mode=700,uid=%d,gid=%d,size=%d,nr_inodes=16", uid, gid, room+len(f.Hosts)+len(f.Hostname)+len(f.ResolvConf))
	if err := unix.Mount("podfiles", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
	}
	return f.Write(dir, uid, gid)
}

// Write puts the files into dir for containers to read and write: hosts, hostname and resolv.conf, which belong to uid and gid.
func (f Files) Write(dir string, uid, gid int) error {
	for name, text := range map[string]string{"hosts": f.Hosts, "hostname": f.Hostname, "resolv.conf": f.ResolvConf} {
		path := filepath.Join(dir, name)
		// For every user of a container, whatever our umask.
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chmod(path, 0o644), os.Lchown(path, uid, gid)); err != nil {
			return err
		}
	}
	return nil
}

// Texts are a pod's. ErrInvalidArgument where a name would be more than a word of its file.
func Texts(spec *engine.PodSpec) (f Files, err error) {
	if f.Hosts, err = hosts(spec); err != nil {
		return Files{}, err
	}
	name, err := Hostname(spec)
	if err != nil {
		return Files{}, err
	}
	f.Hostname = name + "\n"
	f.ResolvConf, err = ResolvConf(spec)
	return f, err
}

// word refuses what would begin another line or word of a file (docs/reliability.md S15).
func word(what, s string) (string, error) {
	if s == "" || len(s) > 1024 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 }) {
		return "", fmt.Errorf("%s %.80q is no word: %w", what, s, errdefs.ErrInvalidArgument)
	}
	return s, nil
}

const localHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// hosts is what containers see that the kubelet mounts no file of its own into.
func hosts(spec *engine.PodSpec) (string, error) {
	if spec.Namespaces.Network == engine.NamespaceNode {
		return hostFile("/etc/hosts")
	}
	return localHosts, nil
}

// Hostname is the name that a pod's containers know themselves by: the host's in its network, and where the pod has none.
func Hostname(spec *engine.PodSpec) (string, error) {
	name := spec.Hostname
	if spec.Namespaces.Network == engine.NamespaceNode || name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("look up the host's name: %w", err)
		}
	}
	return word("hostname", name)
}

const (
	hostResolvConf = "/etc/resolv.conf"
	// stubResolvConf's servers are on the host's loopback, which a pod's network does not have; upstreamResolvConf has the
	// real ones.
	stubServer         = "127.0.0.53"
	upstreamResolvConf = "/run/systemd/resolve/resolv.conf"
)

// ResolvConf is the DNS configuration as lines, or the host's file where the pod has none: empty where there is no file.
func ResolvConf(spec *engine.PodSpec) (string, error) {
	if spec.DNS != nil {
		return dnsLines(spec.DNS)
	}
	text, err := hostFile(hostResolvConf)
	if err == nil && spec.Namespaces.Network != engine.NamespaceNode && strings.Contains(text, stubServer) {
		if upstream, uerr := hostFile(upstreamResolvConf); uerr == nil && upstream != "" {
			return upstream, nil
		}
	}
	return text, err
}

func dnsLines(dns *engine.DNS) (string, error) {
	var b strings.Builder
	for _, line := range []struct {
		keyword string
		words   []string
		each    bool // a line for each word
	}{{"search", dns.Searches, false}, {"nameserver", dns.Servers, true}, {"options", dns.Options, false}} {
		for i, w := range line.words {
			if _, err := word("DNS "+line.keyword, w); err != nil {
				return "", err
			}
			if i == 0 || line.each {
				b.WriteString(line.keyword)
			}
			b.WriteString(" " + w)
			if line.each || i == len(line.words)-1 {
				b.WriteString("\n")
			}
		}
	}
	return b.String(), nil
}

// maxHostFile is far above what any resolver reads.
const maxHostFile = 1 << 20

// hostFile is "" where there is none.
func hostFile(path string) (string, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxHostFile))
	return string(data), err
}
