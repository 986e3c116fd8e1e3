// Package e2e runs crishim from outside: a real Docker Engine or the native one, real CNI plugins, the daemon as a
// subprocess, and CRI calls as a kubelet makes them. See package harness for what a test has at hand.
//
// The tests read as sentences about the CRI contract. They share one node where they break nothing of it, and every test
// of the shared node checks that it leaves nothing behind.
package e2e
