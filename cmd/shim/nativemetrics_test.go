package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"crishim/cni"
	"crishim/engine/native"
	"crishim/engine/native/helper"
	"crishim/internal/mounttree"
	"crishim/state"
)

func TestTheNativeEngineHasMetrics(t *testing.T) {
	if !helper.Built() {
		t.Skip("built without the native engine (make helper)")
	}
	dir := t.TempDir()
	for _, bad := range []string{"pods/.bad-a", "records/.bad-b", "exits/.bad-c", "images/records/d.json.bad"} {
		path := filepath.Join(dir, "root", bad)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	eng, err := native.New(native.Options{RootDir: dir + "/root", RunDir: dir + "/run"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(eng.Close(), mounttree.Unmount(dir)); err != nil {
			t.Error(err)
		}
	}()
	store, err := state.Open(dir+"/state", dir+"/state-run")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	network, err := cni.New(cni.Options{ConfDir: dir, BinDirs: []string{dir}, CacheDir: dir + "/c", OwedDir: dir + "/o"})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registerMetrics(registry, store, network, nodeEngines{nativeEngine{eng}})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]int{}
	for _, family := range families {
		series[family.GetName()] = len(family.GetMetric())
		if family.GetHelp() == "" {
			t.Errorf("%s has no help", family.GetName())
		}
		if n := family.GetMetric()[0].GetGauge().GetValue(); family.GetName() == "crishim_records_quarantined" && n != 4 {
			t.Errorf("%g records are told as set aside, want 4", n)
		}
	}
	for name, want := range map[string]int{"crishim_monitors": 1, "crishim_monitors_lost_total": 1, "crishim_image_pulls_total": 3, "crishim_image_store_bytes": 1, "crishim_image_unpack_seconds_total": 1, "crishim_clamped_containers_total": 1} {
		if series[name] != want {
			t.Errorf("%d series of %s, want %d", series[name], name, want)
		}
	}
}
