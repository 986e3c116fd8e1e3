#!/bin/sh
# fuzz.sh TIME: runs every fuzz test of the module for so long, one after another.
set -eu
cd "$(dirname "$0")/.."
go list -f '{{$p := .ImportPath}}{{$d := .Dir}}{{range .TestGoFiles}}{{$p}} {{$d}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$p}} {{$d}}/{{.}}{{"\n"}}{{end}}' ./... |
	while read -r package file; do
		for name in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
			echo "$package $name"
			go test "$package" -run '^$' -fuzz "^$name\$" -fuzztime "$1" || exit 1
		done
	done
