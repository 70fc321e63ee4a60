#!/usr/bin/env bash
# Prints the path of MinIO, an S3 server that the tests and measurements read, and builds it when it is not there.
set -euo pipefail

minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
bin=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}/bin

if [ ! -x "$bin/minio" ]; then
    command -v go >/dev/null || {
        echo "MinIO is built with Go, which is missing; install it" >&2
        exit 1
    }
    mkdir -p "$bin"
    exec 9>"$bin/lock"
    flock -w 900 9 || { echo "another run builds MinIO and holds $bin/lock" >&2; exit 1; }
    if [ ! -x "$bin/minio" ]; then
        echo "building MinIO once for this machine; this takes some minutes" >&2
        GOBIN=$bin go install "$minio" >&2
    fi
fi
echo "$bin/minio"
