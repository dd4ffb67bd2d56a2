#!/bin/sh
# The same Services under ipvsproxy, kube-proxy ipvs and kube-proxy nftables, one after the other, on the cluster of the
# Vagrantfile: how long a sync takes, how soon a change is seen by a client, and what a request takes. From the host:
#
#     vagrant/compare.sh                                      500 Services, all three
#     SERVICES=2000 MODES="ipvsproxy nftables" vagrant/compare.sh
#
# Nodes are cleaned in between. At the end, and after Ctrl-C, ipvsproxy is back. kube-proxy's image is fetched once.
set -eu
here=$(dirname "$0")
# shellcheck source=vagrant/target-cluster.sh
. "$here/target-cluster.sh"
# shellcheck source=vagrant/pods.sh
. "$here/pods.sh"
services=${SERVICES:-500}
modes=${MODES:-ipvsproxy ipvs nftables}
requests=${REQUESTS:-300}
changes=${CHANGES:-10}
port=30090

say() { echo "$*" >&2; }
now_ms() { date +%s%3N; }

pods_and_services() {
    {
        for name in web-a web-b; do
            node=$A
            [ $name = web-a ] || node=$B
            pod_manifest $name "$node"
        done
        probed_service web-a
        i=1
        while [ $i -lt "$services" ]; do
            printf -- '---\napiVersion: v1\nkind: Service\nmetadata: {name: s%s, namespace: tour}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n' $i
            i=$((i + 1))
        done
    } | apply
    wait_for_pods web-a web-b
}

probed_service() {  # POD: the Service that is asked leads to this pod
    printf -- '---\napiVersion: v1\nkind: Service\nmetadata: {name: probed, namespace: tour}\nspec: {type: NodePort, selector: {pod: %s}, ports: [{port: 80, targetPort: 8080, nodePort: %s}]}\n' "$1" $port
}

nodes() { kube "get nodes -o jsonpath='{.items[*].metadata.name}'"; }

# Which of the two DaemonSets has pods is a matter of a label that no node has.
stop_all() {
    kube "-n kube-system delete ds kube-proxy --ignore-not-found --wait" >/dev/null
    kube "-n kube-system patch ds ipvsproxy --type=merge -p '{\"spec\":{\"template\":{\"spec\":{\"nodeSelector\":{\"lab/stopped\":\"yes\"}}}}}'" >/dev/null
    kube "-n kube-system wait --for=delete pod -l app.kubernetes.io/name=ipvsproxy --timeout=120s" >/dev/null
    kube "-n kube-system wait --for=delete pod -l k8s-app=kube-proxy --timeout=120s" >/dev/null
    for node in $(nodes); do
        at "$node" "sudo ctr -n k8s.io run --rm --net-host --privileged $IMAGE clean-\$\$ /usr/local/bin/ipvsproxy cleanup" >/dev/null
    done
}

start_mode() {  # ipvsproxy|ipvs|nftables
    if [ "$1" = ipvsproxy ]; then
        kube "-n kube-system patch ds ipvsproxy --type=merge -p '{\"spec\":{\"template\":{\"spec\":{\"nodeSelector\":{\"lab/stopped\":null}}}}}'" >/dev/null
        kube "-n kube-system rollout status ds/ipvsproxy --timeout=180s" >/dev/null
        return
    fi
    # The cluster's own configuration, with the add-on that it was made without.
    {
        at node1 "sudo sed -e '/^proxy:/d' -e '/^  disabled: true/d' /etc/kubernetes/lab/init.yaml"
        printf -- '---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: %s\n' "$1"
    } | at_with_input node1 "cat >/tmp/compare.yaml"
    at node1 "sudo kubeadm init phase addon kube-proxy --config /tmp/compare.yaml" >/dev/null
    kube "-n kube-system rollout status ds/kube-proxy --timeout=300s" >/dev/null
}

wait_for_answer() {  # POD: from node A's port
    until ask client "$(address "$A" 4)" $port | sort -u | grep -qx "$1 .*"; do
        :
    done
}

# Both programs have this histogram; kube-proxy one for each family. Prints count and sum, in seconds.
syncs() {
    at "$A" "curl -s localhost:10249/metrics" | awk '
        /^kubeproxy_sync_proxy_rules_duration_seconds_count/ { count += $2 }
        /^kubeproxy_sync_proxy_rules_duration_seconds_sum/ { sum += $2 }
        END { print count + 0, sum + 0 }'
}

changes_seen() {  # move the Service from pod to pod; prints the mean time from the API's answer to the client's, in ms
    total=0
    i=0
    while [ $i -lt "$changes" ]; do
        i=$((i + 1))
        pod=web-b
        [ $((i % 2)) = 1 ] || pod=web-a
        probed_service $pod | apply
        began=$(now_ms)
        wait_for_answer $pod
        total=$((total + $(now_ms) - began))
    done
    echo $((total / changes))
}

measure() {  # MODE
    say "$1: $services Services"
    stop_all
    probed_service web-a | apply
    start_mode "$1"
    wait_for_answer web-a
    first=$(syncs)
    seen=$(changes_seen)
    after=$(syncs)
    latency=$(who_in client time "$(address "$A" 4)" $port "$requests")
    echo "$1 $first $after $seen $latency" | awk '{
        syncs = $4 - $2
        printf "%-12s %14.3f %14.1f %14d %12.2f %12.2f\n", $1, $3, syncs ? ($5 - $3) / syncs * 1000 : 0, $6, $7, $8 }'
}

back() {
    trap - EXIT INT TERM
    say "back to ipvsproxy"
    stop_all
    start_mode ipvsproxy
    finish
}

prepare
trap 'back; exit 1' INT TERM
trap back EXIT
pods_and_services
printf '%-12s %14s %14s %14s %12s %12s\n' mode "first syncs s" "one sync ms" "change seen ms" "p50 ms" "p99 ms"
for mode in $modes; do
    measure "$mode"
done
