package testimage

import (
	"debug/elf"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// elsewhere are applets that programs call by an absolute path outside /bin.
var elsewhere = map[string]string{"env": "/usr/bin/env"}

// Busybox is a small root file system with a shell: program is a busybox of this machine (with the libraries it needs, if
// it is dynamic), every applet a hard link in /bin. A busybox whose shell runs applets without looking at PATH will not do:
// masking /bin/ls must hide ls. Debian's busybox-static is such a one, its busybox is not.
func Busybox(program string) (*Tree, error) {
	tree := &Tree{}
	for _, dir := range []string{"dev", "proc", "sys", "run", "root", "var/run", "usr/bin", "home", "opt"} {
		tree.Dir(dir, 0o755)
	}
	tree.Dir("tmp", 0o1777)
	tree.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"+
		"www-data:x:33:33:www-data:/var/www:/bin/sh\n"+
		"default-user:x:1000:1000::/home/default-user:/bin/sh\n"+
		"nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"))
	tree.File("etc/group", 0o644, []byte("root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\n"+
		"group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n"))
	tree.File("etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n"))
	if err := tree.HostFile("bin/busybox", program, 0o755); err != nil {
		return nil, err
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("asking %s for its applets: %w", program, err)
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			tree.HardLink("bin/"+applet, "bin/busybox")
		}
		if name := elsewhere[applet]; name != "" {
			tree.HardLink(name, "bin/busybox")
		}
	}
	return tree, tree.libraries(program)
}

// libraries adds the loader and the shared libraries that a program needs, to any depth, where the loader looks for them.
func (t *Tree) libraries(program string) error {
	file, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("looking for the libraries of %s: %w", program, err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		data, err := io.ReadAll(segment.Open())
		if err != nil {
			return err
		}
		loader := strings.TrimRight(string(data), "\x00")
		if t.Has(loader) { // libc names it too
			continue
		}
		if err := t.HostFile(loader, loader, 0o755); err != nil {
			return err
		}
	}
	needed, err := file.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, library := range needed {
		source, err := findLibrary(library)
		if err != nil {
			return err
		}
		if t.Has(source) {
			continue
		}
		if err := t.HostFile(source, source, 0o755); err != nil {
			return err
		}
		if err := t.libraries(source); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu/", "/usr/lib/*-linux-gnu/", "/lib/", "/lib64/", "/usr/lib/"} {
		if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("library %s is not on this machine", name)
}
