package main

import (
	"bytes"
	"testing"
	"time"

	"crishim/engine/native/image"
)

func TestProgressOfImagesIsShown(t *testing.T) {
	steps := []image.Progress{
		{Ref: "app:v1", Phase: "resolving"},
		{Ref: "app:v1", Phase: "fetching", Fetched: 1 << 20, Total: 4 << 20, Layers: 2},
		{Ref: "app:v1", Phase: "unpacking", Fetched: 4 << 20, Total: 4 << 20, Layers: 2, Ready: 1},
		{Ref: "app:v1", Phase: "done", Fetched: 4 << 20, Elapsed: 1500 * time.Millisecond},
		{Ref: "other:v1", Phase: "failed"},
	}
	const begin = "\r\x1b[K"
	var lines, terminal bytes.Buffer
	for _, p := range steps {
		progressTo(&lines)(p)
		progressBar(&terminal)(p)
	}
	if want := "app:v1: resolving\napp:v1: fetching, 1.0 of 4.0 MiB, 0 of 2 layers\n" +
		"app:v1: unpacking, 4.0 of 4.0 MiB, 1 of 2 layers\napp:v1: done, 4.0 MiB in 1.5s\n"; lines.String() != want {
		t.Errorf("%q", lines.String())
	}
	if want := begin + "[                    ] app:v1: resolving" +
		begin + "[=====               ] app:v1: fetching, 1.0 of 4.0 MiB, 0 of 2 layers" +
		begin + "[==========          ] app:v1: unpacking, 4.0 of 4.0 MiB, 1 of 2 layers" +
		begin + "app:v1: done, 4.0 MiB in 1.5s\n" + begin; terminal.String() != want {
		t.Errorf("%q", terminal.String())
	}
}
