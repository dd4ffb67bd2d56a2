# shellcheck shell=sh disable=SC2034,SC2154  # A, B and IMAGE are for the script that sources this; `here` is its folder
# Sourced by tour.sh and compare.sh: the target is the Vagrant cluster, reached from the host by ssh.
A=node2
B=node3
SETTINGS="--config=/var/lib/kube-proxy/config.conf --extra-config=/var/lib/kube-proxy/extra.conf"
cache=$here/.cache
ssh_config=$cache/ssh-config
mkdir -p "$cache"
(cd "$here" && vagrant ssh-config) >"$ssh_config.new" || { echo "is the cluster up? (vagrant up)" >&2; exit 1; }
mv "$ssh_config.new" "$ssh_config"

# One connection for each machine, kept for the next command.
at() {  # MACHINE COMMAND LINE
    machine=$1
    shift
    ssh -q -n -F "$ssh_config" -o ControlMaster=auto -o ControlPersist=60 -o "ControlPath=/tmp/lab-%C" "$machine" "$*"
}
at_with_input() {
    machine=$1
    shift
    ssh -q -F "$ssh_config" -o ControlMaster=auto -o ControlPersist=60 -o "ControlPath=/tmp/lab-%C" "$machine" "$*"
}
kube() { at node1 "kubectl $*"; }

IMAGE=$(kube "-n kube-system get ds ipvsproxy -o jsonpath='{.spec.template.spec.containers[0].image}'")

apply() { at_with_input node1 kubectl apply -f - >/dev/null; }

prepare() {
    finish
    namespace tour
}

namespace() {  # NAME [TENANT]
    kube "create namespace $1" >/dev/null
    [ -z "${2:-}" ] || kube "label namespace $1 ipvsproxy.io/tenant=$2" >/dev/null
    kube "-n $1 create configmap who --from-file=/ipvsproxy/vagrant/who.py" >/dev/null
}

# The manifests of deploy/kustomize/tenant-dns-blue for another tenant. The image is that of the cluster's DNS, and node1
# has it.
tenant_dns() {  # TENANT NAMESPACE: CoreDNS for the names of a namespace, and of "default"
    dns_image=$(kube "-n kube-system get deployment coredns -o jsonpath='{.spec.template.spec.containers[0].image}'")
    at_with_input node1 "TENANT=$1 NAMESPACE=$2 IMAGE=$dns_image sh -eu" <<'END'
folder=$(mktemp -d)
cp -r /ipvsproxy/deploy/kustomize/tenant-dns /ipvsproxy/deploy/kustomize/tenant-dns-blue "$folder"
cd "$folder/tenant-dns-blue"
sed -i "s/blue/$TENANT/" kustomization.yaml namespace.yaml
sed -i "s/namespaces .*/namespaces $NAMESPACE default/" tenant.conf
cat >>kustomization.yaml <<MORE
images:
  - name: coredns/coredns
    newName: ${IMAGE%:*}
    newTag: ${IMAGE##*:}
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: tenant-dns}
      spec:
        replicas: 1
        template:
          spec:
            nodeSelector: {kubernetes.io/hostname: node1}
            tolerations: [{operator: Exists}]
MORE
kubectl apply -k . >/dev/null
kubectl -n "$TENANT-dns" rollout status --timeout=120s "deployment/tenant-dns-$TENANT" >/dev/null
rm -r "$folder"
END
}

finish() {
    kube "delete namespace tour tour-blue tour-green blue-dns --ignore-not-found --wait" >/dev/null
    kube "delete clusterrole,clusterrolebinding tenant-dns-blue --ignore-not-found" >/dev/null
    at client "for at in 203.0.113.80 198.51.100.80; do sudo ip route del \$at 2>/dev/null; done; true"
    at client "sudo ip route del unreachable 203.0.113.80 2>/dev/null; sudo ip route del unreachable 198.51.100.80 2>/dev/null; true"
}

wait_for_pods() {
    for pod; do
        kube "-n $(namespace_of "$pod") wait --for=condition=Ready --timeout=120s pod/${pod#*/}" >/dev/null
    done
}
field() { kube "-n $(namespace_of "$1") get service ${1#*/} -o jsonpath='$2'"; }

load_balance() {  # SERVICE ADDRESS
    status="{\"status\":{\"loadBalancer\":{\"ingress\":[{\"ip\":\"$2\"}]}}}"
    kube "-n tour patch service $1 --subresource=status --type=merge -p '$status'" >/dev/null
}

address() {  # MACHINE 4|6: on the LAN
    at "$1" ". /etc/lab-network && echo \$ADDRESS$2"
}

addresses() {  # a machine's or a pod's, one a line
    case $1 in
        node* | client) at "$1" "ip -o address show scope global | awk '\$2 != \"kube-ipvs0\" { split(\$4, a, \"/\"); print a[1] }'" ;;
        *) kube "-n $(namespace_of "$1") get pod ${1#*/} -o jsonpath='{.status.podIPs[*].ip}'" ;;
    esac
}

who_in() {  # MACHINE OR POD, then words for who.py
    from=$1
    shift
    case $from in
        node* | client) at "$from" "who $*" ;;
        *) kube "-n $(namespace_of "$from") exec ${from#*/} -- /opt/ipvsproxy/bin/python /who/who.py $*" ;;
    esac
}
ask() { who_in "$1" ask "$2" "$3"; }
look_up() { who_in "$1" name "$2"; }

route() {  # ADDRESS NODE|nowhere: of the client
    if [ "$2" = nowhere ]; then
        at client "sudo ip route replace unreachable $1"
    else
        at client "sudo ip route del unreachable $1 2>/dev/null; sudo ip route replace $1 via $(address "$2" 4)"
    fi
}

on() {  # NODE PROGRAM ARGUMENT: one argument, however long
    at "$1" "sudo $2 '$3'"
}

proxy() {  # NODE, then words for ipvsproxy
    node=$1
    shift
    found=$(kube "-n kube-system get pod -l app.kubernetes.io/name=ipvsproxy --field-selector spec.nodeName=$node -o name")
    kube "-n kube-system exec $found -c ipvsproxy -- ipvsproxy $* $SETTINGS --hostname-override=$node"
}

hairpin_mode() {  # NODE on|off: of all its pods
    at "$1" "for port in \$(ls /sys/class/net/cni0/brif); do sudo bridge link set dev \$port hairpin $2; done"
}
