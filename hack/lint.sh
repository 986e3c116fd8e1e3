#!/bin/sh
# lint.sh: gofmt, go vet and staticcheck over the module; anything they say fails.
set -eu
cd "$(dirname "$0")/.."
unformatted=$(gofmt -l $(git ls-files -co --exclude-standard '*.go'))
[ -z "$unformatted" ] || { echo "not formatted by gofmt:" $unformatted >&2; exit 1; }
go vet ./...
mkdir -p .cache
(cd e2e/tools/lint && go build -o ../../../.cache/staticcheck honnef.co/go/tools/cmd/staticcheck)
.cache/staticcheck ./...
