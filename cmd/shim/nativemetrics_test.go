package main

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"crishim/engine/native"
	"crishim/engine/native/helper"
	"crishim/internal/mounttree"
)

func TestTheNativeEngineHasMetrics(t *testing.T) {
	if !helper.Built() {
		t.Skip("built without the native engine (make helper)")
	}
	dir := t.TempDir()
	eng, err := native.New(native.Options{RootDir: dir + "/root", RunDir: dir + "/run"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(eng.Close(), mounttree.Unmount(dir)); err != nil {
			t.Error(err)
		}
	}()
	registry := prometheus.NewRegistry()
	nativeEngine{eng}.register(registry)
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
	}
	for name, want := range map[string]int{"crishim_monitors": 1, "crishim_monitors_lost_total": 1, "crishim_image_pulls_total": 3, "crishim_image_store_bytes": 1, "crishim_image_unpack_seconds_total": 1, "crishim_clamped_containers_total": 1} {
		if series[name] != want {
			t.Errorf("%d series of %s, want %d", series[name], name, want)
		}
	}
}
