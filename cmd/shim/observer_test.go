package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/cni"
	"crishim/config"
	"crishim/engine"
	"crishim/internal/atomicfile"
	"crishim/state"
)

// The daemon that observes makes its folder, answers there even while no engine does, and takes all away that it made.
func TestObserveWritesInItsOwnFolderOnly(t *testing.T) {
	dir := t.TempDir()
	root, runDir, conf := filepath.Join(dir, "root"), filepath.Join(dir, "run"), filepath.Join(dir, "net.d")
	for path, text := range map[string]string{
		filepath.Join(root, "state", "pods", "x.json"): "{}", filepath.Join(root, "cni", "results", "net-x-eth0"): "{}", filepath.Join(conf, "10.conflist"): "{",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- runArgs(ctx, "serve", "--observe", "--config=/dev/null", "--root-dir="+root, "--run-dir="+runDir, "--network-conf-dir="+conf, "--docker-endpoint=unix://"+filepath.Join(dir, "none.sock"))
	}()
	socket := filepath.Join(runDir, observeFolder, "crishim.sock")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket does not appear")
		}
	}
	for path := range tree(t, dir) {
		if _, was := before[path]; !was && path != runDir && !strings.HasPrefix(path, filepath.Join(runDir, observeFolder)) {
			t.Errorf("%s was made", path)
		}
	}
	if _, err := os.Stat(filepath.Join(runDir, observeFolder, "root", "cni", "results", "net-x-eth0")); err != nil {
		t.Errorf("the cache was not copied: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for path, was := range before {
		if now := tree(t, dir)[path]; now != was {
			t.Errorf("%s is %q, was %q", path, now, was)
		}
	}
	if _, err := os.Stat(filepath.Join(runDir, observeFolder)); !os.IsNotExist(err) {
		t.Errorf("the observer's folder is left: %v", err)
	}
}

// startObserver returns once it serves. end makes it end, done tells how it did, and folder is what it takes away then.
func startObserver(t *testing.T) (end func(), done <-chan error, folder string) {
	t.Helper()
	dir := t.TempDir()
	folder = filepath.Join(dir, "run", observeFolder)
	ctx, end := context.WithCancel(t.Context())
	t.Cleanup(end)
	ended := make(chan error, 1)
	go func() {
		ended <- runArgs(ctx, "serve", "--observe", "--config=/dev/null", "--root-dir="+filepath.Join(dir, "root"), "--run-dir="+filepath.Join(dir, "run"), "--docker-endpoint=unix://"+filepath.Join(dir, "none.sock"))
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(folder, "crishim.sock")); err == nil {
			return end, ended, folder
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket does not appear")
		}
	}
}

// An observer is run by hand, in a terminal: it reloads nothing, and ends with the terminal as the daemon before it had signals of its
// own, but leaves nothing behind.
func TestTheObserverEndsWithItsTerminal(t *testing.T) {
	_, done, folder := startObserver(t)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on without its terminal")
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("the observer's folder is left: %v", err)
	}
}

// Who starts it with nohup means it to outlive the terminal.
func TestTheObserverOutlivesItsTerminalUnderNohup(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	end, done, _ := startObserver(t)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-hangups
	select {
	case err := <-done:
		t.Fatalf("it ended, %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A rehearsal beside another one ends, and takes nothing from that, wherever each of them answers.
func TestASecondObserverLeavesTheFirstOneItsFiles(t *testing.T) {
	end, done, folder := startObserver(t)
	runDir := filepath.Dir(folder)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := runArgs(ctx, "serve", "--observe", "--config=/dev/null", "--root-dir="+filepath.Join(filepath.Dir(runDir), "root"), "--run-dir="+runDir,
		"--listen=unix://"+filepath.Join(runDir, "other.sock"), "--docker-endpoint=unix://"+filepath.Join(runDir, "none.sock"))
	if err == nil || !strings.Contains(err.Error(), "another crishim observes") {
		t.Errorf("the second one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(folder, "root", "state", "lock")); err != nil {
		t.Errorf("the second one has taken the first one's records: %v", err)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What a power cut left of a record is observed as the daemon would find it.
func TestTheObserverReadsTheOlderSelfOfATornRecord(t *testing.T) {
	c := config.Default()
	c.RootDir, c.RunDir = t.TempDir(), t.TempDir()
	written, err := state.Open(stateDir(c), filepath.Join(c.RunDir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	pod := state.Pod{ID: "p", Engine: "docker", CreatedAt: time.Now(), Phase: state.PhaseRunning, Spec: engine.PodSpec{Key: engine.PodKey{Name: "p", Namespace: "default", UID: "u"}}}
	if err := errors.Join(written.PutPod(pod), written.Close()); err != nil {
		t.Fatal(err)
	}
	records, err := filepath.Glob(filepath.Join(stateDir(c), "pods", "*"))
	if err != nil || len(records) != 1 {
		t.Fatalf("%v, %v", records, err)
	}
	if err := errors.Join(os.Rename(records[0], atomicfile.Older(records[0])), os.WriteFile(records[0], nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	observed, err := observedStore(c, t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = observed.Close() }()
	if pods := observed.Pods(); len(pods) != 1 || pods[0].ID != "p" {
		t.Errorf("%+v", pods)
	}
}

func runArgs(ctx context.Context, args ...string) error { return run(ctx, args, os.Stderr) }

// tree is every path with the content of files.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all[path] = d.Type().String()
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			all[path] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestIdleNetworkRunsNothing(t *testing.T) {
	dir := t.TempDir()
	network, err := cni.New(cni.Options{ConfDir: dir, BinDirs: []string{dir}, CacheDir: filepath.Join(dir, "c"), OwedDir: filepath.Join(dir, "o")})
	if err != nil {
		t.Fatal(err)
	}
	idle := idleNetwork{network}
	if err := idle.Status(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("status without a configuration: %v", err)
	}
	config := filepath.Join(dir, "10.conf")
	if err := os.WriteFile(config, []byte(`{"cniVersion":"1.1.0","name":"net","type":"plugin"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	// A daemon with it is not ready, and so the node that is compared must not be.
	if network, err = cni.New(cni.Options{ConfDir: dir, BinDirs: []string{dir}, CacheDir: filepath.Join(dir, "c"), OwedDir: filepath.Join(dir, "o")}); err != nil {
		t.Fatal(err)
	}
	if err := (idleNetwork{network}).Status(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "plugin plugin of") {
		t.Errorf("status without the plugin: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "plugin"), []byte("#!/bin/false\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if network, err = cni.New(cni.Options{ConfDir: dir, BinDirs: []string{dir}, CacheDir: filepath.Join(dir, "c"), OwedDir: filepath.Join(dir, "o")}); err != nil {
		t.Fatal(err)
	}
	if err := (idleNetwork{network}).Status(t.Context()); err != nil {
		t.Errorf("status with a plugin that must not be run: %v", err)
	}
	_, _, addErr := idle.Add(t.Context(), nil)
	for name, err := range map[string]error{"Add": addErr, "Del": idle.Del(t.Context(), nil), "GC": idle.GC(t.Context(), nil), "Owe": idle.Owe(nil, ""), "SetPodCIDRs": idle.SetPodCIDRs(nil)} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The observer that could not start says why, at once; that its socket does not answer says nothing.
func TestAComparisonSaysWhyTheObserverEnded(t *testing.T) {
	file, dir := testFile(t, "")
	if err := os.WriteFile(filepath.Join(dir, "run"), nil, 0o600); err != nil { // no folder can be made there
		t.Fatal(err)
	}
	err := run(t.Context(), []string{"adopt", "--compare-only", "--config", file, "--old-endpoint", "unix://" + dir + "/old.sock"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "mkdir "+dir+"/run: not a directory") {
		t.Error(err)
	}
}
