//go:build !amd64 && !arm64

package helper

import "embed"

// The native engine is built for amd64 and arm64.
var embedded embed.FS

const name = ""
