#!/usr/bin/env bash
# Installs the Debian packages that the build and the tests need. Does nothing when they are there.
set -euo pipefail

missing=()
need() { # need PACKAGE TEST...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
need g++ command -v g++
need libclang-dev bash -c "compgen -G '/usr/lib/llvm-*/lib/libclang.so*'"
need fuse3 command -v fusermount3

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages: ${missing[*]}; install them as root: apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
