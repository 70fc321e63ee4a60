#!/usr/bin/env bash
# Prints the directory of a static librocksdb.a that matches the locked librocksdb-sys crate, and builds it when it
# is not there. The crate's own build compiles its 340 sources one by one with -O3 (10 minutes on two cores, again in
# every target directory); here they are compiled once per machine, joined into few large units with -O1, because most
# of the time goes into parsing the same headers and the master's few writes per second need no more.
#
# Sources that Weir does not use (rocksdb-unused.txt: transactions, backups, tools) are left out. The API for C, one source
# for all of it, does name them: in functions that the linker drops as unused, each being a section of its own, with what
# they name. A function that is used and names them is an error of the linker; its source is then to go from the list.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/version = |"/, ""); print }' Cargo.lock)
cache=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}
# Script and list are part of the key: other flags and sources make another library.
unused=build-support/rocksdb-unused.txt
out=$cache/rocksdb-$version-$(uname -m)-$(cat build-support/rocksdb.sh "$unused" | cksum | cut -d' ' -f1)
if [ -f "$out/librocksdb.a" ]; then
    echo "$out"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/rocksdb.lock"
flock -w 1800 9 || { echo "another build of RocksDB holds $cache/rocksdb.lock" >&2; exit 1; }
if [ -f "$out/librocksdb.a" ]; then
    echo "$out"
    exit 0
fi

cargo fetch --locked >&2
source=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -type d -name "librocksdb-sys-$version" | head -1)
[ -n "$source" ] || { echo "the sources of librocksdb-sys $version are not in the cargo registry" >&2; exit 1; }
work=$(mktemp -d "$cache/rocksdb-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "compiling RocksDB ($version) once for this machine; this takes a few minutes" >&2

flags=(-std=c++20 -O1 -g0 -fPIC -w -ffunction-sections -fdata-sections -DNDEBUG -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DOS_LINUX
    -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT
    -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT -DROCKSDB_SUPPORT_THREAD_LOCAL
    -I "$source" -I "$source/rocksdb/include" -I "$source/rocksdb")

sed 's|^ *||' "$source/rocksdb_lib_sources.txt" | grep -vxF -f "$unused" -e util/build_version.cc |
    sed "s|^|$source/rocksdb/|" >"$work/sources"
echo "$source/build_version.cc" >>"$work/sources"
# Two units for each processor: more would parse the headers again, fewer would leave some without work at the end and take
# more than the 2 GiB of memory that a unit of four takes.
units=$((2 * $(nproc)))
split --number=l/$((units < 4 ? 4 : units)) --numeric-suffixes --suffix-length=3 "$work/sources" "$work/unit."

# compile UNIT: one object for the joined unit; where two of its sources do not go together, an object for each.
compile() {
    sed 's|.*|#include "&"|' "$1" >"$1.cc"
    if ! c++ "${flags[@]}" -c "$1.cc" -o "$1.o" 2>"$1.log"; then
        local n=0
        while read -r file; do
            c++ "${flags[@]}" -c "$file" -o "$1.$((n++)).o"
        done <"$1"
    fi
}
export -f compile
declare -p flags >"$work/flags"
export work
find "$work" -name 'unit.[0-9][0-9][0-9]' | sort |
    xargs -P "$(nproc)" -I{} bash -euc 'source "$work/flags"; compile {}' >&2

ar crs "$work/librocksdb.a" "$work"/unit.*.o
mkdir -p "$out"
mv "$work/librocksdb.a" "$out/librocksdb.a"
echo "$out"
