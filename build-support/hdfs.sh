#!/usr/bin/env bash
# Prints the directory of the jars of a whole HDFS cluster (NameNode, DataNode, client), and fetches them when they are
# not there; installs a JDK, Maven and a Kerberos KDC, which the tests start as they start the cluster.
set -euo pipefail
cd "$(dirname "$0")/.."

source build-support/packages.sh
export PATH=$PATH:/usr/sbin
need default-jdk-headless command -v javac
need maven command -v mvn
need krb5-kdc command -v krb5kdc
need krb5-admin-server command -v kadmin.local
need krb5-user command -v kinit
need libgssapi-krb5-2 bash -c 'ldconfig -p | grep libgssapi_krb5.so.2'
install_missing

cache=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}
# The script is part of the key: other jars are another cluster.
out=$cache/hdfs-$(cksum <build-support/hdfs.sh | cut -d' ' -f1)
if [ -d "$out" ]; then
    echo "$out"
    exit 0
fi
mkdir -p "$cache"
exec 9>"$cache/hdfs.lock"
flock -w 900 9 || { echo "another run fetches HDFS and holds $cache/hdfs.lock" >&2; exit 1; }
if [ -d "$out" ]; then
    echo "$out"
    exit 0
fi

work=$(mktemp -d "$cache/hdfs.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching HDFS once for this machine (90 MB)" >&2
for artifact in \
    org.apache.hadoop:hadoop-client-api:3.4.2 \
    org.apache.hadoop:hadoop-client-runtime:3.4.2 \
    org.apache.hadoop:hadoop-client-minicluster:3.4.2 \
    org.slf4j:slf4j-api:1.7.36 \
    org.slf4j:slf4j-simple:1.7.36 \
    commons-logging:commons-logging:1.2 \
    ch.qos.reload4j:reload4j:1.2.22; do
    mvn -B -q org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
        -Dartifact="$artifact" -DoutputDirectory="$work" >&2
done
(cd "$work" && sha256sum --quiet -c - >&2) <<'SUMS'
daddea1ea0be0f56978ab3006b8ac92834afeefbd9b7e4e6316fca57df0fa636  commons-logging-1.2.jar
607c0299f4df33013bd0a0f37c8cf255c635bbaddd247b8fec68c210cc17d19f  hadoop-client-api-3.4.2.jar
ae2406c544825b7734b8aad4f87eff60d9ec422284f0b16c2856032083b63c77  hadoop-client-minicluster-3.4.2.jar
18d071c7f72f8a946677b398a57af9c7afa2dd41a81023c310f99373fec200b3  hadoop-client-runtime-3.4.2.jar
222f90d3e69541218ef6e70547749d693bd4c1846817e5bd7949b3e28950f99f  reload4j-1.2.22.jar
d3ef575e3e4979678dc01bf1dcce51021493b4d11fb7f1be8ad982877c16a1c0  slf4j-api-1.7.36.jar
2f39bed943d624dfa8f4102d0571283a10870b6aa36f197a8a506f147010c10f  slf4j-simple-1.7.36.jar
SUMS
mv "$work" "$out"
trap - EXIT
echo "$out"
