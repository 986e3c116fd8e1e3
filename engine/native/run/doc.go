// Package run owns libcontainer: it makes containers and the processes in them for the monitor (engine/native/monitor/serve),
// from OCI specifications. It is linked into cmd/monitor alone, which must call Init first thing; the daemon has none of it.
//
// It needs cgo (libcontainer's nsenter), and the build tag seccomp for specifications with a seccomp profile.
package run
