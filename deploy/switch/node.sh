#!/bin/sh
# Move one node between kube-proxy and ipvsproxy by its label ipvsproxy=yes, and check each step (switch.md):
#
#     node.sh to NODE      to ipvsproxy
#     node.sh back NODE    to kube-proxy; needs the DaemonSet of deploy/kustomize/handover. For some seconds the label is
#                          ipvsproxy=back: neither of the two runs, and what ipvsproxy has left serves
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

waiting() {  # until the cleanup knows what ipvsproxy has left: kube-proxy deletes some of it when it starts
    tries=0
    until kube logs "$(pods $cleanup)" --container cleanup 2>/dev/null | grep -q "Waiting for the rules of kube-proxy"; do
        tries=$((tries + 1))
        [ $tries -le 180 ] || return 1
        sleep 1
    done
}

back() {
    kube get daemonset ipvsproxy-cleanup >/dev/null || fail "first: kubectl apply -k deploy/kustomize/handover"
    undo="what ipvsproxy has left goes on serving. $0 to $node goes forth again"
    kubectl label --overwrite node "$node" $label=back
    gone $ours || fail "ipvsproxy has not ended"
    waiting || fail "the cleanup does not wait for kube-proxy: kubectl -n kube-system logs $(pods $cleanup) -c cleanup; $undo"
    kubectl label node "$node" $label-
    ready $theirs || fail "kube-proxy is not ready; $undo"
    ready $cleanup || fail "not clean yet: kubectl -n kube-system logs $(pods $cleanup) -c cleanup"
}

[ $# -eq 2 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2; exit 2; }
node=$2
case $1 in
    to | back) "$1" ;;
    *) fail "neither to nor back: $1" ;;
esac
