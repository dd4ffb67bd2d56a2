# shellcheck shell=sh disable=SC2034,SC2154  # A, B and IMAGE are for the script that sources this; `here` is its folder
# Sourced by tour.sh and compare.sh: the target is the Vagrant cluster, reached from the host by ssh.
A=node2
B=node3
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
    kube "create namespace tour" >/dev/null
    kube "-n tour create configmap who --from-file=/ipvsproxy/vagrant/who.py" >/dev/null
}

finish() {
    kube "delete namespace tour --ignore-not-found --wait" >/dev/null
    at client "for at in 203.0.113.80 198.51.100.80; do sudo ip route del \$at 2>/dev/null; done; true"
    at client "sudo ip route del unreachable 203.0.113.80 2>/dev/null; sudo ip route del unreachable 198.51.100.80 2>/dev/null; true"
}

wait_for_pods() { kube "-n tour wait --for=condition=Ready --timeout=120s $(printf 'pod/%s ' "$@")" >/dev/null; }
field() { kube "-n tour get service $1 -o jsonpath='$2'"; }

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
        *) kube "-n tour get pod $1 -o jsonpath='{.status.podIPs[*].ip}'" ;;
    esac
}

who_in() {  # MACHINE OR POD, then words for who.py
    from=$1
    shift
    case $from in
        node* | client) at "$from" "who $*" ;;
        *) kube "-n tour exec $from -- /opt/ipvsproxy/bin/python /who/who.py $*" ;;
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
    kube "-n kube-system exec $found -c ipvsproxy -- ipvsproxy $* --config=/var/lib/kube-proxy/config.conf --hostname-override=$node"
}

hairpin_mode() {  # NODE on|off: of all its pods
    at "$1" "for port in \$(ls /sys/class/net/cni0/brif); do sudo bridge link set dev \$port hairpin $2; done"
}
