#!/usr/bin/env bash
# Makes the image lab.local/weir:test, as an archive for the lab: image.sh WEIR ARCHIVE. What is in it beside the program WEIR is
# made once for this machine.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
weir=$1 archive=$2
source "$here/pack.sh"

cache=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}
base=$cache/image-$(cksum <"$here/../../deploy/image.sh" | cut -d' ' -f1)
if [ ! -d "$base" ]; then
    work=$(mktemp -d "$cache/image.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    "$here/../../deploy/image.sh" "$work/root" /bin/true
    mv -T "$work/root" "$base" || [ -d "$base" ] # another run has made it meanwhile
fi
root=$(mktemp -d "$archive.XXXXXX")
trap 'rm -rf "$root" "${work-}"' EXIT
chmod 755 "$root"
cp -a "$base/." "$root"
strip --strip-debug -o "$root/usr/local/bin/weir" "$weir"
pack lab.local/weir:test "$archive" "$root" /usr/local/bin/weir
