package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestUsersOfPodsGetThroughTheRunFolder(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o027))
	base := t.TempDir()
	run, root := filepath.Join(base, "run"), filepath.Join(base, "root")
	mode := func(dir string) os.FileMode {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	for _, before := range []os.FileMode{0, 0o700, 0o755} { // absent, an older daemon's, an operator's
		if before != 0 {
			if err := os.Chmod(run, before); err != nil {
				t.Fatal(err)
			}
		}
		if err := makeFolders(run, root); err != nil {
			t.Fatal(err)
		}
		if got, want := mode(run), before|0o711; got != want {
			t.Errorf("the run folder was %o and is %o, want %o", before, got, want)
		}
	}
	if got := mode(root); got&0o007 != 0 {
		t.Errorf("the root folder is open to everybody: %o", got)
	}
}

// Rows: S65 (part)
func TestFoldersAreClosedToTheWritesOfOthers(t *testing.T) {
	base := t.TempDir()
	run, root := filepath.Join(base, "run"), filepath.Join(base, "root")
	for _, dir := range []string{run, root} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeFolders(run, root); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{run, root} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s is %v, %v", dir, info.Mode(), err)
		}
	}
}
