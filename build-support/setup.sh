#!/usr/bin/env bash
# Installs the Debian packages that the build and the tests need. Does nothing when they are there.
set -euo pipefail

source "$(dirname "$0")/packages.sh"
need g++ command -v g++
need libclang-dev bash -c "compgen -G '/usr/lib/llvm-*/lib/libclang.so*'"
need fuse3 command -v fusermount3
need iproute2 command -v ip
install_missing
