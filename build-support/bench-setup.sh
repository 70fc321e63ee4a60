#!/usr/bin/env bash
# Installs what Weir is measured against: MinIO, as the server that the data comes from, and other mounts of Debian.
# Does nothing for what is there. Other mounts that cannot be installed are left out of the results.
set -euo pipefail

"$(dirname "$0")/minio.sh" >/dev/null || { echo "run with SERVER=builtin to measure without MinIO" >&2; exit 1; }

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
