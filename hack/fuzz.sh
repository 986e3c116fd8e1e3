#!/bin/sh
# fuzz.sh TIME: runs every fuzz test of the module for so long, one after another. It goes on after a finding, and fails then.
set -eu
cd "$(dirname "$0")/.."
failed=$(mktemp) log=$(mktemp) files=$(mktemp)
trap 'rm -f "$failed" "$log" "$files"' EXIT
go list -f '{{$p := .ImportPath}}{{$d := .Dir}}{{range .TestGoFiles}}{{$p}} {{$d}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$p}} {{$d}}/{{.}}{{"\n"}}{{end}}' ./... >"$files"
while read -r package file; do
	for name in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "$package $name"
		go test "$package" -run '^$' -fuzz "^$name\$" -fuzztime "$1" >"$log" 2>&1 && status=0 || status=$?
		cat "$log"
		# Go tells of an input that it was busy with when the time was over as of a failure, without naming the input.
		if [ $status = 0 ] || grep -qx ' *context deadline exceeded' "$log" && ! grep -q 'Failing input' "$log"; then
			continue
		fi
		echo "$package $name" >>"$failed"
	done
done <"$files"
if [ -s "$failed" ]; then
	echo 'These found something; the input is in the package, below testdata/fuzz:' && cat "$failed" && exit 1
fi
