// Package sysfs lets the sysfs of a network namespace be written to.
package sysfs

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// AllowWrites lets mounts of sysfs that are not read-only themselves be written to, in the network namespace that path names.
//
// The kernel has one file system for all mounts of sysfs in a network namespace, and it is read-only for all of them where it was
// for the first: that of a container, or of a pause container, which is not privileged. Mounts that are read-only stay so.
func AllowWrites(path string) error {
	done := make(chan error, 1)
	go onItsOwnThread(func() { done <- allowWrites(path) })
	if err := <-done; err != nil {
		return fmt.Errorf("let sysfs be written to in the network namespace %s: %w", path, err)
	}
	return nil
}

// onItsOwnThread runs f on a thread that ends with it, and its namespaces with the thread. The main thread is none: it stays, and
// /proc/self shows its mounts.
func onItsOwnThread(f func()) {
	runtime.LockOSThread() // for good
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onItsOwnThread(f)
	}()
	<-done
}

func allowWrites(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	// What others unmount meanwhile is not kept here.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("a mount namespace of its own: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return err
	}
	return unix.Mount("", "/sys", "", unix.MS_REMOUNT|flags, "")
}
