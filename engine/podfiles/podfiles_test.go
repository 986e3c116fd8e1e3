package podfiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"crishim/engine"
)

func TestTexts(t *testing.T) {
	got, err := Texts(&engine.PodSpec{Hostname: "my-pod", DNS: &engine.DNS{
		Servers: []string{"10.0.0.1", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}})
	want := Files{Hosts: localHosts, Hostname: "my-pod\n", ResolvConf: "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n"}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}

	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got, err = Texts(&engine.PodSpec{Hostname: "ignored", Namespaces: engine.Namespaces{Network: engine.NamespaceNode}})
	if err != nil || got.Hosts != string(hosts) || got.Hostname != name+"\n" {
		t.Errorf("in the host's network: %+v, %v", got, err)
	}
}

// Rows: S15 (part)
func TestNothingBecomesAnotherLine(t *testing.T) {
	for what, spec := range map[string]*engine.PodSpec{
		"hostname":      {Hostname: "a\nb"},
		"server":        {Hostname: "a", DNS: &engine.DNS{Servers: []string{"1.1.1.1\nnameserver 2.2.2.2"}}},
		"search domain": {Hostname: "a", DNS: &engine.DNS{Searches: []string{"a b"}}},
		"option":        {Hostname: "a", DNS: &engine.DNS{Options: []string{"a\u0085b"}}},
		"empty word":    {Hostname: "a", DNS: &engine.DNS{Options: []string{""}}},
		"long word":     {Hostname: strings.Repeat("a", 1025)},
	} {
		if _, err := Texts(spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestFilesTakeLittleMoreThanTheirTexts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	defer unix.Umask(unix.Umask(0o077)) // no user's of a container
	dir := t.TempDir()
	files := Files{Hosts: strings.Repeat("127.0.0.1 a\n", 1<<16), Hostname: "pod\n"} // a host's may be long
	if err := files.Mount(dir, 1000, 2000); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for name, want := range map[string]string{"hosts": files.Hosts, "hostname": "pod\n", "resolv.conf": ""} {
		path := filepath.Join(dir, name)
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %.80q, %v", name, got, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode != unix.S_IFREG|0o644 || st.Uid != 1000 || st.Gid != 2000 {
			t.Errorf("%s: mode %#o of %d:%d, %v", name, st.Mode, st.Uid, st.Gid, err)
		}
	}
	file, err := os.OpenFile(filepath.Join(dir, "resolv.conf"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if n, err := file.Write(make([]byte, 1<<20)); !errors.Is(err, unix.ENOSPC) || n < 64<<10 {
		t.Errorf("%d bytes were written: %v", n, err)
	}
}
