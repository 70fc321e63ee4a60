#!/usr/bin/env bash
# Installs what Weir is measured against: MinIO, as the server that the data comes from, and other mounts of Debian.
# Does nothing for what is there. Other mounts that cannot be installed are left out of the results.
set -euo pipefail

minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
bin=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}/bin

if [ ! -x "$bin/minio" ]; then
    command -v go >/dev/null || {
        echo "MinIO is built with Go, which is missing; install it, or run with SERVER=builtin" >&2
        exit 1
    }
    echo "building MinIO once for this machine; this takes some minutes" >&2
    GOBIN=$bin go install "$minio"
fi

missing=()
for package in rclone s3fs; do
    command -v "$package" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "not measured, since not installed: ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
    exit 0
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
    echo "not measured, since not installable: ${missing[*]}" >&2
fi
