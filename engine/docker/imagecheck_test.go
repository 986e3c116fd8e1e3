package docker

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestWorkingDirectoriesThatAreOpenFiles(t *testing.T) {
	for number := range 65 {
		for _, format := range []string{"/proc/self/fd/%d", "/proc/1/fd/%d", "proc/self/fd/%d", "//proc//thread-self/./fd/%d/x", "/a/../proc/self/task/1/fd/%d", "/dev/fd/%d"} {
			if dir := fmt.Sprintf(format, number); !isOpenFile(dir) {
				t.Errorf("%s is one", dir)
			}
		}
	}
	for _, dir := range []string{"", "/", "/proc", "/proc/self", "/opt/proc/self/fd/7", "/fd/7", "/dev/fdx", "/proc/../fd/7"} {
		if isOpenFile(dir) {
			t.Errorf("%q is none", dir)
		}
	}
}

// Rows: S26 (part)
func TestLabelsOfAnImageAreHidden(t *testing.T) {
	labels, annotations := map[string]string{"app": "mine", "io.kubernetes.pod.uid": "u"}, map[string]string{"note": "", "hash": "1"}
	made, err := makeLabels(labels, annotations, map[string]string{labelType: typeContainer, labelSandbox: testContainer, labelMounts: ""})
	if err != nil {
		t.Fatal(err)
	}
	image := map[string]string{
		"app": "x", "vendor": "x", "two\nlines": "x", labelType: "x", labelProbe: "/root", labelMounts: "x", labelImage: `["app"]`, "annotation.hash": "x",
		"annotation.evil": "x", "io.kubernetes.container.hash": "x", "com.docker.x": "x", "containerd.io/restart.loguri": "binary:///x",
	}
	if err := hideImageLabels(made, image); err != nil {
		t.Fatal(err)
	}
	// Docker gives a container what the image has and the request has not.
	all := maps.Clone(image)
	maps.Copy(all, made)
	for key, value := range all {
		if value == "x" && key != "vendor" && key != "two\nlines" {
			t.Errorf("Docker has %q of the image", key)
		}
	}
	gotLabels, gotAnnotations := splitLabels(all, false)
	if !maps.Equal(gotLabels, labels) || !maps.Equal(gotAnnotations, annotations) {
		t.Errorf("read back %v and %v", gotLabels, gotAnnotations)
	}
	plain, err := makeLabels(labels, annotations, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := hideImageLabels(plain, nil); err != nil {
		t.Fatal(err)
	}
	if gotLabels, _ := splitLabels(plain, false); !maps.Equal(gotLabels, labels) {
		t.Errorf("of an image without labels: %v", gotLabels)
	}
	// Another shim's containers name no labels.
	if gotLabels, _ := splitLabels(map[string]string{"a": "b", labelImage: "no list"}, false); !maps.Equal(gotLabels, map[string]string{"a": "b"}) {
		t.Errorf("of a list that is none: %v", gotLabels)
	}
}

// Rows: S11 (part)
func TestUserFilesAreLookedAtBeforeAnExec(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := unix.Mkfifo(outside, 0o600); err != nil {
		t.Fatal(err)
	}
	huge := func(file string) error { return errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<40)) }
	for name, row := range map[string]struct {
		make    func(file string) error
		refused bool
	}{
		"a file":                {func(file string) error { return os.WriteFile(file, []byte(passwd), 0o600) }, false},
		"nothing":               {func(string) error { return nil }, false},
		"a link that dangles":   {func(file string) error { return os.Symlink("/absent", file) }, false},
		"a link that leads out": {func(file string) error { return os.Symlink(outside, file) }, false},
		"a link to itself":      {func(file string) error { return os.Symlink("passwd", file) }, false},
		"a FIFO":                {func(file string) error { return unix.Mkfifo(file, 0o600) }, true},
		"a link to a FIFO": {func(file string) error {
			return errors.Join(unix.Mkfifo(file+"-", 0o600), os.Symlink("/etc/passwd-", file))
		}, true},
		"a folder":               {func(file string) error { return os.Mkdir(file, 0o700) }, true},
		"a terabyte of nothing":  {huge, true},
		"the socket of somebody": {func(file string) error { return unix.Mknod(file, unix.S_IFSOCK|0o600, 0) }, true},
	} {
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o700), row.make(filepath.Join(root, "etc", "passwd"))); err != nil {
			t.Fatal(err)
		}
		var e Engine
		e.processes.m.Store(testContainer, firstProcess{root: root})
		if err := e.checkExec(testContainer); errdefs.IsFailedPrecondition(err) != row.refused || (err != nil) != row.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	var e Engine
	if err := e.checkExec(testContainer); err != nil {
		t.Errorf("a container that nothing is known of: %v", err)
	}
}
