package main

import (
	"testing"

	"crishim/engine/docker/survey"
)

func TestPodsThatTheOldShimCannotServeWholeAreNamed(t *testing.T) {
	pod := func(name, kind, state string, disabled bool) survey.Container {
		return survey.Container{State: state, NetworkDisabled: disabled, Labels: map[string]string{
			"io.kubernetes.docker.type": kind, "io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.name": name}}
	}
	got := ofNoReturn(&survey.Engine{Containers: []survey.Container{
		pod("old", "podsandbox", "running", false), pod("new", "podsandbox", "running", true), pod("ended", "podsandbox", "exited", true),
		pod("new", "container", "running", true), {State: "running", NetworkDisabled: true},
	}})
	const want = "delete pod ns/new: it was made without the setting compatibility, and what the old shim starts in it has no resolv.conf\n"
	if got != want {
		t.Errorf("%q", got)
	}
}
