#!/bin/sh
# Move one node between kube-proxy and ipvsproxy by its label ipvsproxy=yes, and check each step (switch.md):
#
#     node.sh to NODE      to ipvsproxy
#     node.sh back NODE    to kube-proxy; needs the DaemonSet of deploy/kustomize/handover
#
# TIMEOUT=5m waits longer than three minutes for a pod.
set -eu
timeout=${TIMEOUT:-3m}
label=ipvsproxy
ours=app.kubernetes.io/name=ipvsproxy
cleanup=app.kubernetes.io/name=ipvsproxy-cleanup
theirs=k8s-app=kube-proxy

kube() { kubectl --namespace kube-system "$@"; }

pods() { kube get pods --selector "$1" --field-selector "spec.nodeName=$node" --output name; }

fail() {
    echo "$node: $1" >&2
    exit 1
}

ready() {  # SELECTOR: wait for the pod of this node, which the DaemonSet's controller is about to make
    tries=0
    until pods "$1" | grep -q .; do
        tries=$((tries + 1))
        [ $tries -le 60 ] || return 1
        sleep 1
    done
    kube wait pods --selector "$1" --field-selector "spec.nodeName=$node" --for condition=Ready --timeout "$timeout"
}

gone() {  # SELECTOR
    [ -z "$(pods "$1")" ] ||
        kube wait pods --selector "$1" --field-selector "spec.nodeName=$node" --for delete --timeout "$timeout"
}

to() {
    undo="look at the pod, then: $0 back $node"
    kubectl label --overwrite node "$node" $label=yes
    gone $theirs || fail "kube-proxy has not ended; $undo"
    ready $ours || fail "ipvsproxy is not ready; $undo"
    kube exec "$(pods $ours)" -- ipvsproxy doctor || fail "doctor has found a problem; if it is one of Services: $undo"
}

back() {
    kube get daemonset ipvsproxy-cleanup >/dev/null || fail "first: kubectl apply -k deploy/kustomize/handover"
    kubectl label node "$node" $label-
    ready $theirs || fail "kube-proxy is not ready; what ipvsproxy has left goes on serving. $0 to $node goes forth again"
    gone $ours || fail "ipvsproxy has not ended"
    ready $cleanup || fail "not clean yet: kubectl -n kube-system logs $(pods $cleanup) -c cleanup"
}

[ $# -eq 2 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2; exit 2; }
node=$2
case $1 in
    to | back) "$1" ;;
    *) fail "neither to nor back: $1" ;;
esac
