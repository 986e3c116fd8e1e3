package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"crishim/engine/native"
)

func (e nativeEngine) quarantined() int { return e.Stats().Quarantined }

func (e nativeEngine) register(registry *prometheus.Registry) {
	gauge := func(name, help string, value func(native.Stats) float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(e.Stats()) }))
	}
	counter := func(name, help string, labels prometheus.Labels, value func(native.Stats) float64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return value(e.Stats()) }))
	}
	gauge("crishim_monitors", "Pods' monitors that run.", func(s native.Stats) float64 { return float64(s.Monitors) })
	counter("crishim_monitors_lost_total", "Monitors that ended while their pods ran; what ran in them was killed.", nil,
		func(s native.Stats) float64 { return float64(s.MonitorsLost) })
	counter("crishim_monitors_killed_total", "Monitors that hung at their pods' end and were killed.", nil,
		func(s native.Stats) float64 { return float64(s.MonitorsKilled) })
	counter("crishim_clamped_containers_total", "Containers that got less than was asked for, as this host allows no more.", nil,
		func(s native.Stats) float64 { return float64(s.Clamped) })
	counter("crishim_seccomp_compiled_total", "Seccomp profiles that were compiled.", nil, func(s native.Stats) float64 { return float64(s.Filters) })
	gauge("crishim_image_store_bytes", "What the image store takes on disk, as last sampled.", func(s native.Stats) float64 { return float64(s.ImageBytes) })
	gauge("crishim_image_pulls_running", "Pulls and imports that go on.", func(s native.Stats) float64 { return float64(s.Images.Running) })
	for result, value := range map[string]func(native.Stats) float64{
		"done":      func(s native.Stats) float64 { return float64(s.Images.Done) },
		"failed":    func(s native.Stats) float64 { return float64(s.Images.Failed) },
		"abandoned": func(s native.Stats) float64 { return float64(s.Images.Abandoned) },
	} {
		counter("crishim_image_pulls_total", "Pulls and imports by how they ended; nobody waited for the abandoned ones any more.", prometheus.Labels{"result": result}, value)
	}
	counter("crishim_image_pull_seconds_total", "What the pulls and imports that are done took, together.", nil, func(s native.Stats) float64 { return s.Images.Seconds })
	counter("crishim_image_fetched_bytes_total", "Compressed content of images that came from registries, as it comes.", nil,
		func(s native.Stats) float64 { return float64(s.Images.FetchedBytes) })
	counter("crishim_image_unpacked_bytes_total", "Content of unpacked layers, as it is unpacked.", nil, func(s native.Stats) float64 { return float64(s.Images.UnpackedBytes) })
	counter("crishim_image_unpack_seconds_total", "Time in which layers were unpacked, without waits for the network; for two at once it counts twice.", nil,
		func(s native.Stats) float64 { return s.Images.UnpackSeconds })
	counter("crishim_image_flush_seconds_total", "What it took to make unpacked layers durable; for two at once it counts twice.", nil,
		func(s native.Stats) float64 { return s.Images.FlushSeconds })
}
