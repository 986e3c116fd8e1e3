package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"crishim/engine"
	"crishim/internal/pause"
)

// Pod is what a pod's containers share; "" for what is the host's.
type Pod struct {
	Shm        string `json:"shm,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
	Hostname   string `json:"hostname,omitempty"`
	ResolvConf string `json:"resolvConf,omitempty"`
}

// shmSize is Docker's and containerd's.
const shmSize = "65536k"

// MakePod writes the pod's files and mounts its /dev/shm; mountLabel is SELinux's, "" without. Repeating it makes them anew.
func (s *Store) MakePod(ctx context.Context, id engine.PodID, spec *engine.PodSpec, mountLabel string) (Pod, error) {
	p, err := s.makePod(ctx, id, spec, mountLabel)
	if err != nil {
		return Pod{}, fmt.Errorf("make the files of pod %s: %w", id, err)
	}
	return p, nil
}

func (s *Store) makePod(ctx context.Context, id engine.PodID, spec *engine.PodSpec, mountLabel string) (Pod, error) {
	if err := s.RemovePod(ctx, id); err != nil {
		return Pod{}, err
	}
	var m *Idmap
	if spec.Namespaces.User != nil {
		m = &Idmap{Namespace: spec.Namespaces.User}
	}
	uid, gid, err := m.root()
	if err != nil {
		return Pod{}, err
	}
	dir := s.pod(id)
	if err := makeDir(dir, 0o700, uid, gid); err != nil {
		return Pod{}, err
	}
	p := Pod{Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname"), ResolvConf: filepath.Join(dir, "resolv.conf")}
	for _, f := range []struct {
		path string
		text func(*engine.PodSpec) (string, error)
	}{{p.Hosts, hosts}, {p.Hostname, hostname}, {p.ResolvConf, resolvConf}} {
		text, err := f.text(spec)
		if err != nil {
			return Pod{}, err
		}
		if err := makeFile(f.path, []byte(text), 0o644, uid, gid); err != nil {
			return Pod{}, err
		}
		if err := label.SetFileLabel(f.path, mountLabel); err != nil {
			return Pod{}, fmt.Errorf("label %s: %w", f.path, err)
		}
	}
	if spec.Namespaces.IPC == engine.NamespaceNode {
		return p, nil
	}
	p.Shm = filepath.Join(dir, "shm")
	if err := makeDir(p.Shm, 0o700, uid, gid); err != nil {
		return Pod{}, err
	}
	options := label.FormatMountLabel(fmt.Sprintf("mode=1777,size=%s,uid=%d,gid=%d", shmSize, uid, gid), mountLabel)
	if err := unix.Mount("shm", p.Shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return Pod{}, fmt.Errorf("mount a tmpfs at %s: %w", p.Shm, err)
	}
	return p, nil
}

// RemovePod takes the pod's files away. OK when there are none.
func (s *Store) RemovePod(ctx context.Context, id engine.PodID) error {
	if err := checkID(string(id)); err != nil {
		return err
	}
	if err := removeMounts(ctx, s.pod(id), filepath.Join(s.pod(id), "shm")); err != nil {
		return fmt.Errorf("remove the files of pod %s: %w", id, err)
	}
	return nil
}

// word refuses what would begin another line or word of a file (docs/reliability.md S15).
func word(what, s string) (string, error) {
	if s == "" || len(s) > 1024 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 }) {
		return "", invalid("%s %.80q is no word", what, s)
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

func hostname(spec *engine.PodSpec) (string, error) {
	name, err := Hostname(spec)
	return name + "\n", err
}

const (
	hostResolvConf = "/etc/resolv.conf"
	// stubResolvConf's servers are on the host's loopback, which a pod's network does not have; upstreamResolvConf has the
	// real ones.
	stubServer         = "127.0.0.53"
	upstreamResolvConf = "/run/systemd/resolve/resolv.conf"
)

func resolvConf(spec *engine.PodSpec) (string, error) {
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

// PauseRoot is a root file system with nothing in it but /pause and folders to mount on. It is made at the first call, and
// shared by all pods, read-only: after a boot many of them ask at once.
func (s *Store) PauseRoot() (string, error) {
	s.pausing.Lock()
	defer s.pausing.Unlock()
	target := filepath.Join(s.run, "pause")
	mounted, err := mountinfo.Mounted(target)
	if err == nil && mounted {
		return target, nil
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = s.makePause(filepath.Join(s.state, "pause"), target)
	}
	if err != nil {
		return "", fmt.Errorf("make the root of pause processes: %w", err)
	}
	return target, nil
}

// makePause: the program is in STATE, because RUN may be mounted noexec, and seen through RUN, whose parents let users of
// other namespaces pass.
func (s *Store) makePause(dir, target string) error {
	for _, d := range []string{dir, filepath.Join(dir, "proc"), filepath.Join(dir, "dev"), filepath.Join(dir, "sys"), target} {
		if err := makeDir(d, 0o755, 0, 0); err != nil {
			return err
		}
	}
	// Written anew, as an earlier version may have left another, and whole before it has its name.
	program := filepath.Join(dir, "pause")
	part := program + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeFile(part, pause.Program(), 0o755, 0, 0); err != nil {
		return err
	}
	if err := os.Rename(part, program); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
