#!/usr/bin/env bash
# Makes the root directory of Weir's image, on Debian 12, from its packages: the C library, the certificate authorities, the
# Kerberos library for HDFS, and weir itself. There is no shell in it, and nothing that runs as another user.
#
#   deploy/image.sh ROOT WEIR    makes the directory ROOT, with the program WEIR as /usr/local/bin/weir
set -euo pipefail

root=$1 weir=$2
packages='libc6 libgcc-s1 libstdc++6 libgssapi-krb5-2'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{archives/partial,debs}
: >"$work/status"
ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || apt-get update -qq
# What these packages need beside them is found as for a machine on which nothing is installed.
# shellcheck disable=SC2086
apt-get install -y -qq --download-only --no-install-recommends -o Dir::State::status="$work/status" \
    -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User=root $packages >/dev/null
# Of this package only the files: its scripts would have a whole Perl.
(cd "$work/debs" && apt-get download -qq -o APT::Sandbox::User=root ca-certificates >/dev/null)

mkdir -p "$root"
for package in "$work"/archives/*.deb "$work"/debs/*.deb; do dpkg-deb -x "$package" "$root"; done
mkdir -p "$root"/{etc/ssl/certs,proc,sys,dev,run,var/lib/weir,usr/local/bin}
mkdir -p -m 1777 "$root/tmp"
find "$root/usr/share/ca-certificates" -name '*.crt' | sort | xargs cat >"$root/etc/ssl/certs/ca-certificates.crt"
find "$root/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$root"/usr/share/{ca-certificates,locale,man,lintian,bug} "$root"/usr/lib/*/gconv "$root"/usr/{bin,sbin}/* "$root"/{bin,sbin} "$root/etc/init.d"
printf 'root:x:0:0:root:/:/nonexistent\nweir:x:65532:65532:weir:/:/nonexistent\n' >"$root/etc/passwd"
printf 'root:x:0:\nweir:x:65532:\n' >"$root/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
strip --strip-debug -o "$root/usr/local/bin/weir" "$weir"
chmod 755 "$root/usr/local/bin/weir"
