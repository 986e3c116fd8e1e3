//go:build cgo

package run

import "crishim/engine/native/monitor"

// startError gives a failed start its exit code.
func startError(id string, err error) error { return monitor.ClassifyStart(id, err) }
