#!/usr/bin/env bash
# Prints the directory of the programs of a Kubernetes cluster, and of the tools that its tests use, and builds those that are
# not there: with Go, from the modules that the projects publish. Installs the Debian packages that a node needs.
#
# Cold this takes some 12 minutes of processor time and 5 GB of Go's caches. KUBERNETES_PROGRAMS names those of the cluster, none if it is
# empty, and KUBERNETES_TOOLS the tools to have beside them: "helm promtool csi-sanity", if it is not set.
set -euo pipefail
cd "$(dirname "$0")/../.."

kubernetes=1.34.2
etcd=v3.6.4 # the version that kubernetes' go.mod names
coredns=v1.12.4
helm=v3.18.6
csi_sanity=v5.4.0
prometheus=v0.305.0
programs=${KUBERNETES_PROGRAMS-kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl etcd coredns}
tools=${KUBERNETES_TOOLS-helm promtool csi-sanity}

source build-support/packages.sh
export PATH=$PATH:/usr/sbin:/sbin
need golang command -v go
if [[ " $programs " == *" kubelet "* ]]; then
    need gcc command -v gcc
    need containerd command -v containerd
    need runc command -v runc
    need containernetworking-plugins test -x /usr/lib/cni/bridge
    need iptables command -v iptables
    need conntrack command -v conntrack
    need iproute2 command -v ip
    need openssl command -v openssl
    need busybox-static command -v busybox
    need procps command -v sysctl
fi
# A package must not start its service: the lab starts its own containerd.
policy=/usr/sbin/policy-rc.d
if [ ${#missing[@]} -ne 0 ] && [ "$(id -u)" -eq 0 ] && [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
install_missing
[ -z "$(trap -p EXIT)" ] || rm -f $policy

cache=${WEIR_BUILD_CACHE:-$HOME/.cache/weir-build}
out=$cache/kubernetes-$kubernetes-$(cksum <<<"$etcd $coredns $helm $csi_sanity $prometheus" | cut -d' ' -f1)
are_there() {
    local name
    for name in "$@"; do [ -x "$out/$name" ] || return 1; done
}
# shellcheck disable=SC2086
if are_there $programs $tools; then
    echo "$out"
    exit 0
fi
mkdir -p "$out"
exec 9>"$out.lock"
flock -w 3600 9 || { echo "another run builds Kubernetes and holds $out.lock" >&2; exit 1; }
work=$(mktemp -d "$cache/kubernetes.XXXXXX")
trap 'rm -rf "$work"' EXIT

# What the modules say of a toolchain must not fetch another Go.
export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="-mod=mod -buildvcs=false ${GOFLAGS-}"

# build NAME PACKAGE [LINKER-FLAGS], in the module of the current directory
build() {
    [ ! -x "$out/$1" ] || return 0
    local began=$SECONDS
    echo "building $1 once for this machine" >&2
    go build -trimpath -ldflags "-s -w ${3-}" -o "$work/$1" "$2" 2>&1 | { grep -v '^go: downloading' || true; } >&2
    mv "$work/$1" "$out/$1"
    echo "built $1 in $((SECONDS - began)) s" >&2
}

# module NAME MODULE VERSION…: an empty module that requires these, which becomes the current directory. `go install` refuses
# modules with `replace` and `exclude` lines; as a requirement they are built without those.
module() {
    mkdir -p "$work/module-$1"
    cd "$work/module-$1"
    printf 'module %s\n\ngo 1.24.0\n\ngodebug default=go1.24\n' "$1" >go.mod
    printf 'package main\n\nfunc main() {}\n' >main.go
    shift
    printf 'require %s %s\n' "$@" >>go.mod
}

# The parts of one release, which share their packages.
parts=
for name in $programs; do [ "$name" = coredns ] || parts="$parts $name"; done
if ! are_there $parts; then
    module lab k8s.io/kubernetes "v$kubernetes" go.etcd.io/etcd/server/v3 "$etcd"
    # Kubernetes' go.mod replaces its staging modules with directories that the published module lacks.
    source=$(cd / && go mod download -json "k8s.io/kubernetes@v$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
    sed -n "s#^[[:space:]]*\(k8s\.io/[a-z0-9-]*\) => \./staging/.*#replace \1 => \1 v0.${kubernetes#1.}#p" "$source" >>go.mod
    version=k8s.io/component-base/version
    flags="-X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<<"$kubernetes") -X $version.gitTreeState=clean"
    for name in $parts; do
        case $name in
            etcd) build etcd go.etcd.io/etcd/server/v3 ;;
            *) build "$name" "k8s.io/kubernetes/cmd/$name" "$flags" ;;
        esac
    done
fi

if [[ " $programs " = *' coredns '* ]] && ! are_there coredns; then
    module dns github.com/coredns/coredns "$coredns"
    # Only the plugins that a cluster's names need.
    {
        printf 'package main\n\nimport (\n\t"github.com/coredns/coredns/coremain"\n'
        printf '\t_ "github.com/coredns/coredns/plugin/%s"\n' bind cache errors kubernetes template
        printf ')\n\nfunc main() { coremain.Run() }\n'
    } >main.go
    build coredns .
fi

for tool in $tools; do
    are_there "$tool" || case $tool in
        helm) module helm helm.sh/helm/v3 "$helm" && build helm helm.sh/helm/v3/cmd/helm ;;
        csi-sanity)
            module sanity github.com/kubernetes-csi/csi-test/v5 "$csi_sanity"
            build csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
            ;;
        promtool)
            module prometheus github.com/prometheus/prometheus "$prometheus"
            # Without the clients of all clouds where targets may be looked for, which are most of it.
            source=$(go list -m -f '{{.Dir}}' github.com/prometheus/prometheus)
            cp "$source"/cmd/promtool/*.go . && chmod u+w ./*.go && rm ./*_test.go
            sed -i '/"github.com\/prometheus\/prometheus\/plugins"/d' ./*.go
            build promtool .
            ;;
        *) echo "there is no tool $tool" >&2 && exit 2 ;;
    esac
done
echo "$out"
