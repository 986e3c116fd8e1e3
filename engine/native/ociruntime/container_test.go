package ociruntime

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is read and registered in a container's cgroup, of kills for want of memory, would be the whole host's in the root.
func TestTheRootCgroupIsNoContainers(t *testing.T) {
	for data, want := range map[string]map[string]string{
		"9:name=systemd:/\n4:memory:/\n1:cpu,cpuacct:/\n":   {},
		"4:memory:/pod/c\n1:cpu,cpuacct:/pod/c\n5:misc:/\n": {"memory": "/sys/fs/cgroup/memory/pod/c", "cpu": "/sys/fs/cgroup/cpu/pod/c", "cpuacct": "/sys/fs/cgroup/cpuacct/pod/c"},
	} {
		if got := parseCgroups(data); !maps.Equal(got, want) {
			t.Errorf("of %q: %v, want %v", data, got, want)
		}
	}
}

// Its words are told as long as it is asked again; then what is here of the container goes without it.
func TestAProgramThatRemovesNothingIsGivenUp(t *testing.T) {
	r := &Runtime{Root: t.TempDir(), Guard: func(do func() error) error { return do() }}
	program := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho it is broken >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the next container of the same id has its own tries
		dir := filepath.Join(r.Root, "c")
		if err := os.MkdirAll(filepath.Join(dir, stateDir, "c"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, programFile), []byte(program), 0o600); err != nil {
			t.Fatal(err)
		}
		for range removeTries - 1 {
			if err := r.Remove("c"); err == nil || !strings.Contains(err.Error(), "it is broken") {
				t.Errorf("%v", err)
			}
		}
		if err := r.Remove("c"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("its folder: %v", err)
		}
	}
}

// What it leaves running may have its output open, and is not waited for.
func TestAProgramThatLeavesSomethingRunningHasEnded(t *testing.T) {
	defer func(was time.Duration) { outputDelay = was }(outputDelay)
	outputDelay = 10 * time.Millisecond
	dir := t.TempDir()
	program, goOn := filepath.Join(dir, "runtime"), filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(goOn, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\nread line < "+goOn+" &\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := &container{cli: cli{&Runtime{Guard: func(do func() error) error { return do() }}, "c", program, dir, false}}
	if err := c.Resume(); err != nil {
		t.Error(err)
	}
	if f, err := os.OpenFile(goOn, os.O_WRONLY, 0); err != nil { // which ends it
		t.Error(err)
	} else {
		_ = f.Close()
	}
}
