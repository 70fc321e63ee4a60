#!/usr/bin/env bash
# A Kubernetes of real nodes on this machine, for the tests: etcd, apiserver, scheduler, controllers and cluster DNS, and for each
# node a kubelet, containerd and kube-proxy with real pods.
#
# All of it is below one process of a PID namespace of its own. When that one ends, the kernel ends all others, and with them go
# their mounts, devices and firewall rules. What is outside of it, a state directory and control groups, `down` removes.
#
#   lab.sh up [NODES]            starts it, and waits until the nodes (1) are ready: node-1, node-2, …
#   lab.sh down                  ends it
#   lab.sh kubectl ARGS…         kubectl, as the cluster's administrator
#   lab.sh exec COMMAND…         a command on node-1, in the cluster's network
#   lab.sh on N COMMAND…         a command on node N
#   lab.sh start NAME COMMAND…   a program on node-1 that runs until `lab.sh stop NAME`
#   lab.sh node [SIZE]           one more node; with SIZE, such as 2G, on a disk of its own, with what kubelet leaves free by default
#   lab.sh fake NAME [KEY=VALUE…]  a node that only looks like one, with these labels: pods are placed on it, and do not run; without
#                                the label kubernetes.io/os no DaemonSet of Weir's wants to
#   lab.sh image ARCHIVE         imports an image on all nodes
#   lab.sh restart PART [N]      etcd, apiserver, controllers, scheduler, dns; of node N containerd, kubelet, proxy
#   lab.sh log PART [N]          the log of one
#
# WEIR_LAB is its state directory (/tmp/weir-lab), on a file system that overlayfs takes. With WEIR_LAB_TIED=1 the lab ends when the
# standard input of `up` does. Each node has directories of its own for what kubelet, containerd and Weir keep; the rest of the file
# system is this machine's. Nothing inside reaches the outside by network, and no image comes from a registry.
set -Eeuo pipefail
trap 'echo "lab: line $LINENO: $BASH_COMMAND" >&2' ERR

here=$(dirname "$(realpath "$0")")
state=${WEIR_LAB:-/tmp/weir-lab}
cgroup=/weir-lab-$(cksum <<<"$state" | cut -d' ' -f1)
controllers='cpu cpuacct cpuset memory devices freezer blkio pids'
# Directories that each node has for itself.
own_dirs='/var/lib/kubelet /var/lib/cni /var/lib/weir /var/log'
made=.made-by-weir-lab
domain=cluster.local
# Node N is NODES.N, its pods are PODS.N.x.
nodes_net=10.99.0 pods_net=10.244 services_net=10.96.0.0/16 api_service=10.96.0.1
master_ip=$nodes_net.1
# Deadlines, in seconds.
start_limit=120 stop_limit=30

say() { echo "lab: $*" >&2; }
fail() { say "$*"; exit 1; }

wait_for() { # wait_for WHAT COMMAND…
    local what=$1 end=$((SECONDS + start_limit))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "no $what after $start_limit s; the logs are in $state/log"
        sleep 0.2
    done
}

# Process 1 of the lab as this machine sees it; fails when the lab is down.
init() {
    local pid
    pid=$(cat "$state/init.pid" 2>/dev/null) && [ "$(readlink "/proc/$pid/exe")" = "$(realpath "$state/pause")" ] && echo "$pid"
}

programs() { cat "$state/programs"; }

# on N COMMAND…: in the namespaces of node N
on() {
    local number=$1 pid
    shift
    pid=$(init) || fail "the lab is down"
    local enter=(nsenter -t "$pid" -m -n -p -u -i --wd="$PWD" --)
    # The process that holds the namespaces of a further node is named as the lab sees it.
    [ "$number" = 1 ] || enter+=(nsenter -t "$(cat "$state/node-$number/pid")" -m -n -u -i --wd="$PWD" --)
    PATH="$(programs):$PATH:/usr/sbin:/sbin" KUBECONFIG=$state/admin.conf "${enter[@]}" "$@"
}

kubectl() { on 1 kubectl "$@"; }

# start NODE PART COMMAND…: a program that runs on
start() {
    local name=$2-$1
    # shellcheck disable=SC2016
    on "$1" bash -c 'setsid "${@:3}" >>"$2" 2>&1 </dev/null & echo $! >"$1"' _ "$state/run/$name" "$state/log/$name" "${@:3}"
}

# ---- certificates and callers ------------------------------------------------

# A certificate of the cluster's authority: issue NAME SUBJECT [ALTERNATIVE-NAMES]
issue() {
    local dir=$state/pki
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/$1.key" -subj "$2" 2>/dev/null |
        openssl x509 -req -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 30 -out "$dir/$1.crt" \
            -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}") 2>/dev/null
}

# Callers are known by tokens: caller FILE USER [GROUP] writes a kubeconfig
caller() {
    local token
    token=$(openssl rand -hex 16)
    echo "$token,$2,$2,\"${3-}\"" >>"$state/tokens"
    cat >"$1" <<E
apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: "https://$master_ip:6443", certificate-authority: $state/pki/ca.crt}}]
users: [{name: me, user: {token: $token}}]
contexts: [{name: lab, context: {cluster: lab, user: me}}]
E
}

make_identities() {
    local dir=$state/pki number
    mkdir -p "$dir"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/ca.key" -out "$dir/ca.crt" -days 30 \
        -subj /CN=lab 2>/dev/null
    issue apiserver /CN=apiserver "IP:$master_ip,IP:$api_service,IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    issue apiserver-client /O=system:masters/CN=apiserver
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$dir/accounts.key" 2>/dev/null
    openssl pkey -in "$dir/accounts.key" -pubout -out "$dir/accounts.pub"
    caller "$state/admin.conf" admin system:masters
    caller "$state/controllers.conf" system:kube-controller-manager
    caller "$state/scheduler.conf" system:kube-scheduler
    caller "$state/proxy.conf" system:kube-proxy
    caller "$state/dns.conf" dns system:masters
    # The apiserver reads its tokens once.
    for number in 1 2 3 4 5 6 7 8; do caller "$state/kubelet-$number.conf" "system:node:node-$number" system:nodes; done
}

# ---- parts -------------------------------------------------------------------

start_etcd() {
    start 1 etcd etcd --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
}

start_apiserver() {
    local dir=$state/pki
    start 1 apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address=$master_ip \
        --service-cluster-ip-range=$services_net --allow-privileged=true --profiling=false --authorization-mode=Node,RBAC \
        --enable-admission-plugins=NodeRestriction --client-ca-file="$dir/ca.crt" --token-auth-file="$state/tokens" \
        --tls-cert-file="$dir/apiserver.crt" --tls-private-key-file="$dir/apiserver.key" \
        --kubelet-client-certificate="$dir/apiserver-client.crt" --kubelet-client-key="$dir/apiserver-client.key" \
        --kubelet-preferred-address-types=InternalIP --service-account-issuer="https://kubernetes.default.svc.$domain" \
        --service-account-key-file="$dir/accounts.pub" --service-account-signing-key-file="$dir/accounts.key"
}

start_controllers() {
    local dir=$state/pki
    start 1 controllers kube-controller-manager --kubeconfig="$state/controllers.conf" --leader-elect=false --bind-address=127.0.0.1 \
        --use-service-account-credentials=true --service-account-private-key-file="$dir/accounts.key" --root-ca-file="$dir/ca.crt" \
        --service-cluster-ip-range=$services_net --profiling=false
}

start_scheduler() {
    start 1 scheduler kube-scheduler --kubeconfig="$state/scheduler.conf" --leader-elect=false --bind-address=127.0.0.1 --profiling=false
}

start_dns() { start 1 dns coredns -conf "$state/Corefile"; }
start_containerd() { start "$1" containerd containerd --config "$state/node-$1/containerd.toml"; }
start_proxy() { start "$1" proxy kube-proxy --config="$state/node-$1/proxy.yaml"; }
start_kubelet() {
    start "$1" kubelet kubelet --config="$state/node-$1/kubelet.yaml" --kubeconfig="$state/kubelet-$1.conf" \
        --hostname-override="node-$1" --node-ip="$nodes_net.$1" -v=2
}

# What machines without all capabilities and controllers need: tolerate_missing_hugetlb_controller, restrict_oom_score_adj and
# oomScoreAdj 0 (no CAP_SYS_RESOURCE), disable_apparmor, cgroupfs below a root of our own, conntrack limits left alone.
configure_node() {
    local number=$1 dir=$state/node-$1 left_free=1Gi left_free_of_images=1Gi
    if [ -e "$dir/disk.img" ]; then left_free=10% left_free_of_images=15%; fi
    mkdir -p "$dir/cni"
    cat >"$dir/containerd.toml" <<E
version = 2
root = "$dir/disk/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "lab.local/pause:1"
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
E
    cat >"$dir/cni/10-lab.conflist" <<E
{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods_net.$number.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
E
    cat >"$dir/kubelet.yaml" <<E
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: $cgroup/node-$number
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
resolvConf: ""
clusterDomain: $domain
clusterDNS: [$master_ip]
volumePluginDir: $dir/volume-plugins
nodeStatusUpdateFrequency: 5s
volumeStatsAggPeriod: 10s
evictionHard: {memory.available: 100Mi, nodefs.available: $left_free, imagefs.available: $left_free_of_images}
imageGCHighThresholdPercent: 100
E
    cat >"$dir/proxy.yaml" <<E
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: node-$number
clusterCIDR: $pods_net.0.0/16
clientConnection: {kubeconfig: $state/proxy.conf}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
E
}

# ---- nodes -------------------------------------------------------------------

make_cgroups() {
    local path=$cgroup/node-$1 name
    if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
        mkdir -p "/sys/fs/cgroup$path"
        for name in cpu cpuset memory io pids; do
            for parent in '' "$cgroup"; do echo "+$name" >"/sys/fs/cgroup$parent/cgroup.subtree_control"; done
        done
        return
    fi
    for name in $controllers systemd; do mkdir -p "/sys/fs/cgroup/$name$path"; done
    for name in cpuset.cpus cpuset.mems; do
        for path in "$cgroup" "$cgroup/node-$1"; do cat "/sys/fs/cgroup/cpuset/$name" >"/sys/fs/cgroup/cpuset$path/$name"; done
    done
}

# The first program in a node's namespaces: makes the node of them, and becomes the process that holds them.
become_node() {
    local number=$1 dir=$state/node-$1 path version1
    [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || version1=1
    mount --make-rprivate /
    mount -t proc proc /proc
    # A sysfs shows the network of who mounts it.
    mount -t sysfs sysfs /sys
    if [ -z "${version1-}" ]; then
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    else
        mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
        for path in $controllers; do
            mkdir "/sys/fs/cgroup/$path"
            mount -t cgroup -o "$path" cgroup "/sys/fs/cgroup/$path"
        done
        mkdir /sys/fs/cgroup/systemd
        mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    fi
    mkdir -p "$dir/disk"
    if [ -e "$dir/disk.img" ]; then mount -o loop "$dir/disk.img" "$dir/disk"; fi
    for path in $own_dirs; do
        mkdir -p "$dir/disk/own$path"
        mount --bind "$dir/disk/own$path" "$path"
    done
    mount -t tmpfs -o mode=755 tmpfs /run
    # Pods may hand mounts on to the node.
    mount --make-rshared /
    hostname "node-$number"
    ip link set lo up
    ip addr add "$nodes_net.$number/32" dev lo
    ip link add cni0 type bridge
    ip addr add "$pods_net.$number.1/24" dev cni0
    ip link set cni0 up
    # A connection to a service is turned to a pod after it has found a route.
    ip route add $services_net dev cni0 src "$nodes_net.$number"
    sysctl -qw net.ipv4.ip_forward=1
    touch "$dir/made"
    if [ "$number" = 1 ]; then exec "$state/pause" ${WEIR_LAB_TIED:+tied}; fi
    exec "$state/pause" </dev/null
}

import_images() { # on a new node
    local archive
    for archive in "$state"/images/*; do on "$1" ctr -n k8s.io images import "$archive" >/dev/null; done
}

start_node() {
    configure_node "$1"
    start_containerd "$1"
    wait_for "containerd on node-$1" on "$1" ctr version
    import_images "$1"
    start_kubelet "$1"
    start_proxy "$1"
}

node_is_ready() { wait_for "ready node-$1" kubectl wait --for=condition=Ready "node/node-$1" --timeout=5s; }

add_node() { # add_node [SIZE]
    local number dir
    init >/dev/null || fail "the lab is down"
    number=$(($(cat "$state/nodes") + 1)) dir=$state/node-$number
    [ -e "$state/kubelet-$number.conf" ] || fail "a lab has at most $((number - 1)) nodes"
    mkdir -p "$dir"
    if [ -n "${1-}" ]; then
        truncate -s "$1" "$dir/disk.img"
        mkfs.ext4 -q -m 0 "$dir/disk.img"
    fi
    make_cgroups "$number"
    # Its namespaces are made from this machine's: a copy of node-1's would hold what is mounted there.
    # shellcheck disable=SC2016
    nsenter -t "$(init)" -p -- bash -c 'setsid unshare --mount --net --uts --ipc -- "$1" become "$2" >"$3/log" 2>&1 </dev/null & echo $! >"$3/pid"' \
        _ "$here/lab.sh" "$number" "$dir"
    wait_for "namespaces of node-$number" test -e "$dir/made"
    on 1 ip link add "node$number" type veth peer name eth0 netns "$(cat "$dir/pid")"
    on 1 ip link set "node$number" up
    on 1 ip route add "$nodes_net.$number/32" dev "node$number" src $master_ip
    on 1 ip route add "$pods_net.$number.0/24" via "$nodes_net.$number" dev "node$number" onlink src $master_ip
    on "$number" ip link set eth0 up
    on "$number" ip route add $master_ip/32 dev eth0 src "$nodes_net.$number"
    on "$number" ip route add default via $master_ip dev eth0 onlink src "$nodes_net.$number"
    start_node "$number"
    echo "$number" >"$state/nodes"
}

make_images() {
    local root=$state/root
    # shellcheck source=/dev/null
    source "$here/pack.sh"
    mkdir -p "$state/images" "$root/pause" "$root/busybox/bin" "$root/busybox/tmp"
    cp "$state/pause" "$root/pause/pause"
    pack lab.local/pause:1 "$state/images/pause" "$root/pause" /pause
    chmod 1777 "$root/busybox/tmp"
    cp "$(command -v busybox)" "$root/busybox/bin/busybox"
    (cd "$root/busybox/bin" && for name in $(./busybox --list); do [ -e "$name" ] || ln -s busybox "$name"; done)
    pack lab.local/busybox:1 "$state/images/busybox" "$root/busybox"
    rm -rf "$root"
}

# ---- commands ----------------------------------------------------------------

up() {
    local count=${1:-1} began=$SECONDS number dir pid
    [ "$(id -u)" = 0 ] || fail "a lab needs root"
    if init >/dev/null; then fail "the lab in $state is up; take it down first"; fi
    dir=$(KUBERNETES_TOOLS=${KUBERNETES_TOOLS-} "$here/fetch.sh")
    down
    mkdir -p "$state"/{run,log,node-1}
    touch "$state/is-a-lab"
    echo "$dir" >"$state/programs"
    echo 1 >"$state/nodes"
    gcc -Os -static -s -o "$state/pause" "$here/pause.c"
    for dir in $own_dirs; do
        [ -d "$dir" ] || { mkdir -p "$dir" && touch "$dir/$made"; }
    done
    make_cgroups 1
    make_identities
    make_images
    # The standard input of `up` is that of the lab: it may be tied to it.
    setsid unshare --mount --net --pid --uts --ipc --fork -- "$here/lab.sh" become 1 >"$state/log/node-1" 2>&1 <&0 &
    pid=$!
    disown
    wait_for namespaces test -e "$state/node-1/made"
    wait_for "process 1 of the lab" eval 'pgrep -P '$pid' >"$state/init.pid" && init'
    cat >"$state/Corefile" <<E
$domain:53 in-addr.arpa:53 {
  bind $master_ip
  errors
  kubernetes $domain in-addr.arpa {
    kubeconfig $state/dns.conf lab
    pods insecure
    ttl 5
  }
  cache 5
}
.:53 {
  bind $master_ip
  template ANY ANY . {
    rcode NXDOMAIN
  }
}
E
    start_etcd
    wait_for etcd on 1 bash -c 'exec 3<>/dev/tcp/127.0.0.1/2379'
    start_apiserver
    start_node 1
    wait_for apiserver kubectl get --raw /readyz
    start_controllers
    start_scheduler
    start_dns
    for number in $(seq 2 "$count"); do add_node; done
    for number in $(seq "$count"); do node_is_ready "$number"; done
    wait_for "service account" kubectl get serviceaccount default
    wait_for DNS on 1 bash -c "exec 3<>/dev/tcp/$master_ip/53"
    say "up after $((SECONDS - began)) s: $count nodes, in $state"
}

down() {
    local pid path end=$((SECONDS + stop_limit))
    if pid=$(init); then
        kill -KILL "$pid"
        while [ -d "/proc/$pid" ]; do
            [ $SECONDS -lt $end ] || fail "process $pid of the lab does not end: something in it is stuck in the kernel"
            sleep 0.1
        done
    fi
    for path in /sys/fs/cgroup"$cgroup" /sys/fs/cgroup/*"$cgroup"; do
        # Its processes may still be on their way out.
        while [ -d "$path" ] && ! find "$path" -depth -type d -exec rmdir {} + 2>/dev/null; do
            [ $SECONDS -lt $end ] || fail "cannot remove $path"
            sleep 0.1
        done
    done
    [ -d "$state" ] || return 0
    [ -e "$state/is-a-lab" ] || fail "$state is no lab's"
    ! grep -q " $state/" /proc/self/mountinfo || fail "something is mounted in $state"
    rm -rf --one-file-system "$state"
    # Another lab has its own directories mounted there, and would lose them.
    ! compgen -G '/sys/fs/cgroup/weir-lab-*' >/dev/null && ! compgen -G '/sys/fs/cgroup/*/weir-lab-*' >/dev/null || return 0
    for path in $own_dirs; do
        [ -e "$path/$made" ] || continue
        rm "$path/$made"
        rmdir "$path" || say "$path is left: it is not empty"
    done
}

fake() {
    local name=$1 labels='' label
    shift
    for label in "$@"; do labels+=", \"${label%%=*}\": \"${label#*=}\""; done
    kubectl apply -f - <<E
apiVersion: v1
kind: Node
metadata: {name: $name, labels: {kubernetes.io/hostname: $name$labels}}
E
    kubectl patch node "$name" --subresource=status --type=merge -p '{"status": {
        "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"}, "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": "'"$(date -u +%FT%TZ)"'"}]}}' >/dev/null
    # A node is ready for as long as it renews its lease.
    # shellcheck disable=SC2016
    start 1 "fake-$name" bash -c 'while kubectl get node "$1"; do
        printf "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: %s, namespace: kube-node-lease},
            spec: {holderIdentity: %s, leaseDurationSeconds: 40, renewTime: \"%s\"}}" "$1" "$1" "$(date -u +%FT%T.000000Z)" | kubectl apply -f -
        sleep 10; done' _ "$name"
    wait_for "ready $name" kubectl wait --for=condition=Ready "node/$name" --timeout=5s
}

image() {
    local number archive
    archive=$state/images/$(basename "$1")
    cp "$1" "$archive"
    for number in $(seq "$(cat "$state/nodes")"); do on "$number" ctr -n k8s.io images import "$archive" >/dev/null; done
}

stop() { # stop NAME [N]
    # shellcheck disable=SC2016
    on "${2:-1}" bash -c 'kill "$1"; for i in $(seq 100); do kill -0 "$1" 2>/dev/null || exit 0; sleep 0.1; done; kill -9 "$1"' \
        _ "$(cat "$state/run/$1-${2:-1}")"
}

restart() {
    declare -F "start_$1" >/dev/null || fail "there is no part $1"
    stop "$@"
    "start_$1" "${2:-1}"
}

command=${1-}
[ $# -eq 0 ] || shift
case $command in
    up | down | fake | image | stop | restart) "$command" "$@" ;;
    start) start 1 "$@" ;;
    node) add_node "$@" && node_is_ready "$(cat "$state/nodes")" ;;
    become) become_node "$@" ;;
    log) cat "$state/log/$1-${2:-1}" ;;
    kubectl | on) trap - ERR && "$command" "$@" ;;
    exec) trap - ERR && on 1 "$@" ;;
    *) sed -n '2,/^set -E/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2 && exit 2 ;;
esac
