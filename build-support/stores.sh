#!/usr/bin/env bash
# Prints the directory of the object stores that the tests read, and installs what is not there: MinIO and fake-gcs-server by
# Go, Azurite by npm, nginx as a package.
set -euo pipefail
cd "$(dirname "$0")/.."

gcs=github.com/fsouza/fake-gcs-server@v1.56.1
azurite=azurite@3.37.0
cache=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}
out=$cache/stores

source build-support/packages.sh
export PATH=$PATH:/usr/sbin
need golang command -v go
need npm command -v npm
need nginx-light command -v nginx
need python3 command -v python3
install_missing

mkdir -p "$out"
exec 9>"$out.lock"
flock -w 900 9 || { echo "another run installs the emulators and holds $out.lock" >&2; exit 1; }
if [ ! -x "$out/fake-gcs-server" ]; then
    echo "building fake-gcs-server once for this machine; this takes some minutes" >&2
    GOBIN=$out go install "$gcs" >&2
fi
ln -sf "$(build-support/minio.sh)" "$out/minio"
if [ ! -e "$out/node_modules/azurite/package.json" ]; then
    echo "installing Azurite once for this machine" >&2
    npm install --prefix "$out" --no-audit --no-fund --silent "$azurite" >&2
fi
echo "$out"
