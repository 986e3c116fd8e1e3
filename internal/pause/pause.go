// Package pause carries the program that is pid 1 of a pod sandbox: a static one of a few hundred bytes that holds the
// namespaces, reaps, and ends at SIGTERM.
//
// pause.c is the program, build.sh makes the two committed binaries, and a test holds them to the source.
package pause

import "bytes"

// Program is the executable for this machine.
func Program() []byte { return bytes.Clone(binary) }
