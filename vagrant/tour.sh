#!/bin/sh
# The ways into a cluster, one after the other, each with real requests and the source address that the pod saw; then two
# tenants with Services and a DNS of their own; then three things are broken, and `ipvsproxy doctor` is asked what is
# wrong. Every line is checked: the last one reports how
# many were as expected, and the exit status is 1 if any was not.
#
#     vagrant/tour.sh            in the Vagrant cluster, from the host
#     PAUSE=1 vagrant/tour.sh    waits for Enter after each part
#     make tour                  the same script in the namespace lab: no VMs, no Kubernetes
set -eu
here=$(dirname "$0")
target=${TARGET:-cluster}
# What differs between the two: how manifests are applied, requests are made, and commands run on a node.
# shellcheck source=/dev/null
. "$here/target-$target.sh"
# shellcheck source=vagrant/pods.sh
. "$here/pods.sh"
done_well=0
done_badly=0

part() {
    [ -z "${PAUSE:-}" ] || { printf '\n-- Enter --' && read -r _; }
    printf '\n%s\n\n' "$1"
}

note() { printf '%s\n' "$@" | sed 's/^/  # /'; }

verdict() {  # OK? LINE
    if [ "$1" = yes ]; then
        done_well=$((done_well + 1))
        printf '  %-100s ok\n' "$2"
    else
        done_badly=$((done_badly + 1))
        printf '  %-100s UNEXPECTED, wanted %s\n' "$2" "$3"
    fi
}

all_among() {  # WORDS ALLOWED
    for word in $1; do
        case " $2 " in *" $word "*) ;; *) return 1 ;; esac
    done
}

# FROM asks ADDRESS PORT several times: exactly these pods, in order, must answer (or it must fail in this way: timeout,
# refused, unreachable), and see as source an address of WHO: a node that masquerades, or the asker itself. Changes take a
# moment to arrive everywhere, so it asks again for a while.
expect() {  # FROM ADDRESS PORT ANSWERS [WHO...]
    allowed=""
    for who in ${5:-}; do
        allowed="$allowed $(addresses "$who" | tr '\n' ' ')"
    done
    for try in 1 2 3 4 5 6 7 8 9 10; do
        seen=$(ask "$1" "$2" "$3")
        answers=$(printf '%s\n' "$seen" | cut -d ' ' -f 1 | LC_ALL=C sort -u | xargs)
        sources=$(printf '%s\n' "$seen" | sed -n 's/^[^ ]* //p' | LC_ALL=C sort -u | xargs)
        fine=no
        if [ "$answers" = "$4" ] && all_among "$sources" "$allowed"; then fine=yes; fi
        [ $fine = no ] && [ "$try" != 10 ] || break
        sleep 1
    done
    line=$(printf '%-7s -> %-24s %s' "${1#*/}" "$2 $3" "$answers")
    [ -z "$sources" ] || line="$line saw $sources"
    verdict "$fine" "$line" "$4 ${5:+from $5}"
}

holds() {  # WHAT WANTED SEEN: a value
    fine=no
    [ "$2" != "$3" ] || fine=yes
    verdict "$fine" "$1: $3" "$2"
}

# Ask doctor on a node, and look for words in what it prints first.
diagnosed() {  # NODE WORDS [SERVICE]
    fine=no
    # shellcheck disable=SC2086  # the Service is a word or none
    output=$(proxy "$1" doctor ${3:-} || true)
    printf '%s\n' "$output" | head -n 4 | sed 's/^/      /'
    case $(printf '%s\n' "$output" | head -n 4) in *"$2"*) fine=yes ;; esac
    verdict "$fine" "$1: ipvsproxy doctor ${3:-}" "$2"
}

service() {  # NAME SELECTOR [NODEPORT [ANNOTATION]], then lines of the spec on standard input
    cat <<END
---
apiVersion: v1
kind: Service
metadata:
  name: ${1#*/}
  namespace: $(namespace_of "$1")
  annotations: {${4:-}}
spec:
  selector: {$2}
  ports: [{port: 80, targetPort: 8080${3:+, nodePort: $3}}]
END
    sed 's/^/  /'
}

node_port() { field "$1" '{.spec.ports[0].nodePort}'; }
cluster_ip() { field "$1" '{.spec.clusterIP}'; }

start() {
    part "0. Two pods on two nodes, and a Service"
    prepare
    { pod_manifest web-a "$A"; pod_manifest web-b "$B"; } | apply
    echo 'ipFamilyPolicy: PreferDualStack' | service web 'app: web' | apply
    wait_for_pods web-a web-b
    note "web-a runs on $A, web-b on $B. Each answers with its name and the address it saw asking." \
        "Inside the cluster the Service has an address, and a pod's source is kept (but if it reaches itself: part 6):"
    expect web-a "$(cluster_ip web)" 80 "web-a web-b" "web-a $A"
    expect web-b "$(cluster_ip web)" 80 "web-a web-b" "web-b $B"
}

node_ports() {
    part "1. NodePort: one port on every node"
    echo 'type: NodePort
ipFamilyPolicy: PreferDualStack' | service explicit 'app: web' 30080 | apply
    note "nodePort: 30080 was asked for, so that is the port, on every node and in both families." \
        "Each node sends to all pods, also those of other nodes:"
    expect client "$(address "$A" 4)" 30080 "web-a web-b" "$A"
    expect client "$(address "$B" 4)" 30080 "web-a web-b" "$B"
    expect client "$(address "$B" 6)" 30080 "web-a web-b" "$B"
    echo 'type: NodePort' | service random 'app: web' | apply
    port=$(node_port random)
    note "Without nodePort the API server picks a free one from 30000-32767. This time it is $port:"
    expect client "$(address "$A" 4)" "$port" "web-a web-b" "$A"
}

sources() {
    part "2. Whose address does the pod see? SNAT, and externalTrafficPolicy: Local"
    echo 'type: NodePort' | service single 'pod: web-b' 30081 | apply
    note "Only web-b is behind this one, on $B. The client asks $A, which passes the packet on to $B." \
        "If web-b saw the client's address, it would answer to the client directly, from an address that the client" \
        "never asked: the client would drop that. So $A puts its own address as the source (SNAT), and gets the answer:"
    expect client "$(address "$A" 4)" 30081 web-b "$A"
    explained "$A" "$(address client 4)" "$(address "$A" 4):30081" "externalTrafficPolicy Cluster"
    echo 'type: NodePort
externalTrafficPolicy: Local' | service single 'pod: web-b' 30081 | apply
    note "With externalTrafficPolicy: Local a node uses only its own pods, so no SNAT is needed and the source is kept." \
        "The price: $A has no pod, and drops the packet. A load balancer must know which nodes to ask."
    expect client "$(address "$B" 4)" 30081 web-b client
    expect client "$(address "$A" 4)" 30081 timeout
    note "Inside the cluster the policy does not count: a pod of $A gets through to $B."
    expect web-a "$(cluster_ip single)" 80 web-b web-a
}

load_balancer() {
    part "3. LoadBalancer: an address of its own"
    route 203.0.113.80 nowhere
    echo 'type: LoadBalancer' | service balanced 'app: web' | apply
    holds "status.loadBalancer.ingress, before anybody filled it in" "" "$(field balanced '{.status.loadBalancer.ingress}')"
    note "Kubernetes has no load balancer. A controller (of a cloud, or MetalLB) would see the Service and put an address" \
        "into its status. Here we do, and lead the client's packets to a node, as a router would:"
    load_balance balanced 203.0.113.80
    expect client 203.0.113.80 80 unreachable
    route 203.0.113.80 "$A"
    expect client 203.0.113.80 80 "web-a web-b" "$A"
    route 203.0.113.80 "$B"
    expect client 203.0.113.80 80 "web-a web-b" "$B"
    note "Pods need no detour through the router: their node knows the address."
    expect web-a 203.0.113.80 80 "web-a web-b" "$A"
}

external_ips() {
    part "4. externalIPs: an address that another program leads to a node"
    route 198.51.100.80 nowhere
    echo 'externalIPs: [198.51.100.80]' | service external 'app: web' | apply
    note "Each node takes this address for its own, but announces it to no one. Unless the network leads it to a node, nothing comes:"
    expect "$A" 198.51.100.80 80 "web-a web-b" "$A"
    expect client 198.51.100.80 80 unreachable
    route 198.51.100.80 "$B"
    expect client 198.51.100.80 80 "web-a web-b" "$B"
}

external_name() {
    part "5. ExternalName: only a name"
    apply <<END
apiVersion: v1
kind: Service
metadata:
  name: elsewhere
  namespace: tour
spec:
  type: ExternalName
  externalName: web.tour.svc.cluster.local
END
    note "No address, no port, nothing in the kernel: the cluster's DNS answers with another name (a CNAME)," \
        "and the client goes there. Here it leads to the Service of part 0; mostly it leads out of the cluster."
    name=elsewhere.tour.svc.cluster.local
    for try in 1 2 3 4 5 6 7 8 9 10; do
        found=$(look_up web-a $name || true)
        [ -z "$found" ] && [ "$try" != 10 ] || break
        sleep 1
    done
    holds "web-a: $name is" web.tour.svc.cluster.local "${found%% *}"
    holds "web-a: its cluster IP" "" "$(field elsewhere '{.spec.clusterIP}')"
}

hairpin() {
    part "6. Hairpin: a pod that reaches itself through its Service"
    note "web-b is the only pod behind the Service single, and asks it. Its own address as the source would make it answer" \
        "to itself, past the node, so the node masquerades. And its bridge must send a packet back where it came from:" \
        "hairpin mode of the bridge port."
    expect web-b "$(cluster_ip single)" 80 web-b "$B"
}

# FROM looks a name up in the cluster's DNS: it must get this address, or none. A new pod takes a moment to answer.
resolved() {  # FROM NAME ADDRESS
    for try in 1 2 3 4 5 6 7 8 9 10; do
        found=$(look_up "$1" "$2" 2>/dev/null || true)
        found=${found#* }
        [ "$found" != "$3" ] && [ "$try" != 10 ] || break
        sleep 1
    done
    holds "${1#*/}: address of $2" "$3" "$found"
}

tenants() {
    part "7. Two tenants: the same names, each with Services of its own"
    namespace tour-blue blue
    namespace tour-green green
    for tenant in blue green; do
        pod_manifest "tour-$tenant/$tenant" "$A"
        pod_manifest "tour-$tenant/shop-$tenant" "$B"
    done | apply
    echo 'type: NodePort' | service tour-blue/shop 'pod: shop-blue' 30090 | apply
    echo 'type: NodePort' | service tour-green/shop 'pod: shop-green' 30091 | apply
    wait_for_pods tour-blue/blue tour-blue/shop-blue tour-green/green tour-green/shop-green
    blue=$(cluster_ip tour-blue/shop) green=$(cluster_ip tour-green/shop)
    note "The namespaces tour-blue and tour-green have the label ipvsproxy.io/tenant. Each has a Service shop, and a pod on" \
        "$A that asks. It reaches its own, and is refused by the other one as if that had no endpoints:"
    expect tour-blue/blue "$blue" 80 shop-blue tour-blue/blue
    expect tour-green/green "$green" 80 shop-green tour-green/green
    expect tour-blue/blue "$green" 80 refused
    expect tour-green/green "$blue" 80 refused
    explained "$A" "$(addresses tour-green/green | tr ' ' '\n' | grep -F . | head -n 1)" "$blue:80" "another tenant's Service"
    note "NodePorts are no way around that. Clients that are no pods are not judged:"
    expect tour-green/green "$(address "$A" 4)" 30090 refused
    expect client "$(address "$A" 4)" 30090 shop-blue "$A"
    note "The namespace tour has no tenant: its Services are for all, and its pods reach all."
    expect tour-green/green "$(cluster_ip web)" 80 "web-a web-b" tour-green/green
    expect web-a "$blue" 80 shop-blue web-a
    note "Blue shares its shop with green, by an annotation, and takes that back:"
    echo 'type: NodePort' | service tour-blue/shop 'pod: shop-blue' 30090 'ipvsproxy.io/share-with: green' | apply
    expect tour-green/green "$blue" 80 shop-blue tour-green/green
    echo 'type: NodePort' | service tour-blue/shop 'pod: shop-blue' 30090 | apply
    expect tour-green/green "$blue" 80 refused
    tenant_names
}

tenant_names() {
    domain=svc.cluster.local
    note "Names: the cluster's DNS knows them all, and tells everybody."
    resolved tour-blue/blue shop.tour-green.$domain "$green"
    note "Blue gets a DNS of its own that knows only the names in tour-blue and default. Its pods go on asking the address of the" \
        "cluster's DNS, and this one answers them; nothing in the pods has changed, and green asks as before:"
    tenant_dns blue tour-blue
    resolved tour-blue/blue shop.tour-green.$domain ""
    resolved tour-blue/blue shop.tour-blue.$domain "$blue"
    resolved tour-blue/blue kubernetes.default.$domain "$(cluster_ip default/kubernetes)"
    resolved tour-green/green shop.tour-green.$domain "$green"
    note "doctor asks each tenant's DNS for a name of its own and one of another tenant:"
    found_fine "$A" "1 DNS Service of tenants: each answers"
}

repairs() {
    part "8. Three things go wrong, and doctor finds them"
    note "First: all is well?"
    healthy "$B"
    note "A label is mistyped, and the Service has no endpoints:"
    echo 'type: NodePort' | service explicit 'app: wbe' 30080 | apply
    expect client "$(address "$A" 4)" 30080 refused
    diagnosed "$A" "endpoint" tour/explicit
    echo 'type: NodePort' | service explicit 'app: web' 30080 | apply
    expect client "$(address "$A" 4)" 30080 "web-a web-b" "$A"
    note "A CNI without hairpin mode:"
    hairpin_mode "$B" off
    expect web-b "$(cluster_ip single)" 80 timeout
    diagnosed "$B" "hairpin"
    hairpin_mode "$B" on
    expect web-b "$(cluster_ip single)" 80 web-b "$B"
    note "A firewall whose author forgot that nodes forward:"
    on "$A" nft "add table inet firewall; add chain inet firewall forward { type filter hook forward priority 0; policy drop; }"
    expect client "$(address "$A" 4)" 30080 timeout
    diagnosed "$A" "firewall"
    on "$A" nft "delete table inet firewall"
    expect client "$(address "$A" 4)" 30080 "web-a web-b" "$A"
    healthy "$A"
}

healthy() {  # NODE: doctor finds no problem
    fine=no
    if output=$(proxy "$1" doctor); then fine=yes; fi
    [ $fine = yes ] || printf '%s\n' "$output" | head -n 8 | sed 's/^/      /'
    verdict "$fine" "$1: ipvsproxy doctor: $(printf '%s\n' "$output" | tail -n 1)" "no problem"
}

found_fine() {  # NODE WORDS: among what doctor has checked
    fine=no
    output=$(proxy "$1" doctor || true)
    printf '%s\n' "$output" | sed -n '/^ok  *tenants/ s/^/      /p'
    case $(printf '%s\n' "$output" | sed -n 's/^ok  *tenants: //p') in *"$2"*) fine=yes ;; esac
    verdict "$fine" "$1: ipvsproxy doctor" "$2"
}

explained() {  # NODE FROM TO WORDS: what the node's kernel would do with such a packet
    fine=no
    output=$(proxy "$1" explain "$2" "$3" || true)
    printf '%s\n' "$output" | sed '/^ *$/d; s/^/      /'
    case $output in *"$4"*) fine=yes ;; esac
    verdict "$fine" "$1: ipvsproxy explain $2 $3" "$4"
}

start
node_ports
sources
load_balancer
external_ips
external_name
hairpin
tenants
repairs
finish
printf '\n%s of %s as expected\n' "$done_well" "$((done_well + done_badly))"
[ "$done_badly" = 0 ]
