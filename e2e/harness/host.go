package harness

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func readString(file string) string {
	data, _ := os.ReadFile(file) // "" for a process that is gone
	return string(data)
}

// Canary is a folder of the host that a hostile pod or image tries to reach, for gate HOST0.
type Canary struct {
	// Dir holds the files, Secret is their content, which may appear nowhere.
	Dir, Secret string

	node   *Node
	before []string
	sysctl map[string]string
}

// hostSysctls are those that hostile pods are known to go for.
var hostSysctls = []string{"kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/shm_rmid_forced", "vm/overcommit_memory"}

// HostUnchanged is gate HOST0: it makes the canary now, and the cleanup checks that the canary, the host's mount table and
// sysctls are as before, and that the canary's content is in no log of the daemon and of the pods.
func (n *Node) HostUnchanged(t T) *Canary {
	t.Helper()
	c := &Canary{Dir: WorkDir(t, "c"), Secret: "canary-" + ID() + ID(), node: n, sysctl: map[string]string{}}
	for name, mode := range map[string]os.FileMode{"file": 0o644, "secret": 0o600, "dir/file": 0o644} {
		file := filepath.Join(c.Dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatalf("making the canary: %v", err)
		}
		if err := os.WriteFile(file, []byte(c.Secret), mode); err != nil {
			t.Fatalf("making the canary: %v", err)
		}
	}
	c.before = fingerprint(c.Dir)
	mounts := slices.DeleteFunc(mountsUnder("/"), n.ownMount)
	for _, name := range hostSysctls {
		c.sysctl[name] = readString("/proc/sys/" + name)
	}
	t.Cleanup(func() {
		c.check(t)
		Eventually(t, 10*time.Second, "the mount table to be as before", func() error {
			after := slices.DeleteFunc(mountsUnder("/"), n.ownMount)
			if !slices.Equal(mounts, after) {
				return fmt.Errorf("before %d mounts, now %d: come %v, gone %v", len(mounts), len(after), difference(after, mounts), difference(mounts, after))
			}
			return nil
		})
	})
	return c
}

// ownMount recognizes the mounts of the engine and the daemon, which gate LEAK0 looks after.
func (n *Node) ownMount(point string) bool {
	return strings.HasPrefix(point, n.Shim.dir+"/") || n.engine().ownMount(point)
}

func difference(list, without []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(without, s) })
}

func (c *Canary) check(t T) {
	t.Helper()
	if after := fingerprint(c.Dir); !slices.Equal(c.before, after) {
		t.Errorf("the canary changed:\nbefore %v\nnow    %v", c.before, after)
	}
	for name, before := range c.sysctl {
		if after := readString("/proc/sys/" + name); after != before {
			t.Errorf("sysctl %s was %q and is %q", name, before, after)
		}
	}
	for _, dir := range []string{c.node.Shim.LogFile, c.node.Shim.PodLogs, c.node.Shim.RootDir, c.node.Shim.RunDir} {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(c.Secret)) {
				t.Errorf("the canary's content is in %s", path)
			}
			return nil
		})
	}
}

// fingerprint is one line a file: name, mode, owner, time of change, content.
func fingerprint(dir string) []string {
	var lines []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			lines = append(lines, path+": "+err.Error())
			return nil
		}
		info, err := d.Info()
		if err != nil {
			lines = append(lines, path+": "+err.Error())
			return nil
		}
		stat := info.Sys().(*syscall.Stat_t)
		var sum [sha256.Size]byte
		if info.Mode().IsRegular() {
			sum = sha256.Sum256([]byte(readString(path)))
		}
		lines = append(lines, fmt.Sprintf("%s %v %d:%d %d %x", path, info.Mode(), stat.Uid, stat.Gid, info.ModTime().UnixNano(), sum[:4]))
		return nil
	})
	return lines
}
