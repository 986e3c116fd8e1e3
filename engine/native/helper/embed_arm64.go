package helper

import "embed"

// embedded has the helper where `make` built it before the daemon, else only .gitignore.
//
//go:embed all:embedded/arm64
var embedded embed.FS

const name = "embedded/arm64/crishim-monitor"
