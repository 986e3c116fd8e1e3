#!/bin/sh
# test-docker.sh ENGINE: the end-to-end tests on a Docker Engine: 20.10 is the one of Debian's docker.io, else the path of a
# dockerd. E2E_DOCKER_PATH are folders with the containerd and runc that it needs, before PATH.
set -eu
cd "$(dirname "$0")/.."
case $1 in
20.10) E2E_DOCKERD=$(command -v dockerd) ;;
/*) E2E_DOCKERD=$1 ;;
*) echo "ENGINE is 20.10 or the absolute path of a dockerd, not $1" >&2; exit 1 ;;
esac
export E2E_DOCKERD
[ -z "${E2E_DOCKER_PATH:-}" ] || PATH=$E2E_DOCKER_PATH:$PATH
"$E2E_DOCKERD" --version
exec go test -count=1 -timeout 30m -p 1 ./e2e
