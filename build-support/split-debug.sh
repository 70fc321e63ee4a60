#!/usr/bin/env bash
# split-debug.sh PROGRAM: takes the debug information out of a program and puts it beside it, as PROGRAM.debug, where debuggers
# and the program's own backtraces find it. What is handed out is then a fifth as large.
set -euo pipefail
program=$1
if readelf --sections --wide "$program" | grep -q '\.gnu_debuglink'; then
    exit 0 # done already
fi
objcopy --only-keep-debug "$program" "$program.debug"
# A new file: cargo's own copy is the same inode.
(cd "$(dirname "$program")" && objcopy --strip-all --add-gnu-debuglink="$(basename "$program").debug" \
    "$(basename "$program")" "$(basename "$program").stripped")
mv "$program.stripped" "$program"
