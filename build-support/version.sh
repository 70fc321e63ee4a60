#!/usr/bin/env bash
# Prints the path of `weir` as it was at COMMIT, a debug build, and builds it first if it is not there: version.sh COMMIT
#
# Nothing of this checkout's target/ can be shared: Cargo would take the crates of one version for those of the other.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=$(git rev-parse --verify --quiet "$1^{commit}") || {
    echo "commit $1 is not in this clone; git fetch --unshallow gets it" >&2
    exit 1
}
cache=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}
out=$cache/weir-$commit
if [ ! -x "$out" ]; then
    mkdir -p "$cache"
    exec 9>"$out.lock"
    flock -w 3600 9 || { echo "another run builds weir $commit and holds $out.lock" >&2; exit 1; }
fi
if [ ! -x "$out" ]; then
    began=$SECONDS
    echo "building weir $commit once for this machine" >&2
    source=$(mktemp -d "$cache/version.XXXXXX")
    trap 'rm -rf "$source"' EXIT
    git archive "$commit" | tar -x -C "$source"
    rocksdb=$("$source/build-support/rocksdb.sh")
    (cd "$source" && ROCKSDB_LIB_DIR=$rocksdb ROCKSDB_STATIC=1 CARGO_TARGET_DIR=$source/target \
        "${CARGO:-cargo}" build --locked --bin weir >&2)
    strip --strip-debug -o "$out.new" "$source/target/debug/weir"
    mv "$out.new" "$out"
    echo "built it in $((SECONDS - began)) s" >&2
fi
echo "$out"
