#!/bin/sh
# Stops with one line where Go >= 1.26 or git is absent.
set -eu
command -v git >/dev/null || { echo "crishim needs git on PATH: apt-get install git" >&2; exit 1; }
command -v go >/dev/null || { echo "crishim needs Go >= 1.26 on PATH: see https://go.dev/doc/install" >&2; exit 1; }
version=$(go env GOVERSION)
echo "$version" | awk -F '[.go]+' '{ exit !($2 > 1 || $2 == 1 && $3 >= 26) }' || {
	echo "crishim needs Go >= 1.26, this is $version: see https://go.dev/doc/install" >&2
	exit 1
}
