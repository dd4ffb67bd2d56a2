"""What the kernel needs without a proxy: conntrack with one rule, and IPVS with conntrack and masquerade."""

from tests.bench import cluster
from tests.bench.dataplane.objects import FEWEST, OTHER_ENDPOINTS
from tests.bench.dataplane.rows import (
    BALANCED,
    BALANCER_PORT,
    CLUSTER_IP,
    CLUSTER_IP6,
    ENDPOINT,
    ENDPOINT_PORT,
    IPVS,
    LOCAL,
    LOCAL_PORT,
    NO_SERVICE,
    NODE_PORT,
    PORT,
    RANGED,
)
from tests.lab import netns

ONE_RULE = """
table inet floor {
    chain forward { type filter hook forward priority filter; ct state invalid accept; }
    chain postrouting { type nat hook postrouting priority srcnat; ip saddr 198.51.100.1 masquerade; }
}
"""
# What comes from outside is masqueraded, and what a process of the node sends: the kernel gives it the VIP as
# source.
MASQUERADE = f"""
table inet floor {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        meta l4proto {{ tcp, udp }} ct original proto-dst {{ {NODE_PORT}, {BALANCER_PORT} }} masquerade
        ip saddr {CLUSTER_IP} masquerade
    }}
}}
"""


class BareConntrack:
    """Connection tracking because of one rule, which never matches."""

    name = NO_SERVICE

    def __init__(self, lab):
        self._node = lab.nodes[0].netns

    def start(self, _services):
        netns.run(self._node, ["nft", "-f", "-"], ONE_RULE)

    def serves(self, path):
        return path.floor == NO_SERVICE

    def grow(self):
        """Nothing here depends on Services."""

    pause = resume = stop = grow

    def last_words(self):
        return ""

    def has_ended(self):
        return False


class BareIpvs(BareConntrack):
    """Virtual servers and VIPs for as many Services, and the least masquerading with which replies find back."""

    name = IPVS

    def __init__(self, lab):
        super().__init__(lab)
        self._lab = lab

    def start(self, services):
        netns.run(self._node, ["nft", "-f", "-"], MASQUERADE)
        netns.run(self._node, ["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
        self._program([CLUSTER_IP, CLUSTER_IP6, BALANCED], self._asked())
        vips = [cluster.cluster_ip(number) for number in range(services - FEWEST)]
        self._program(vips, [line for number, vip in enumerate(vips) for line in _other(number, vip)])
        netns.set_sysctls(self._node, {"net/ipv4/vs/conntrack": 1})

    def _asked(self):
        node, pod = self._lab.nodes[0], self._lab.host(ENDPOINT)
        lines = server("t", BALANCED, BALANCER_PORT, [pod.ipv4])
        for proto in "tu":
            for v4, v6, port in ((CLUSTER_IP, CLUSTER_IP6, PORT), (node.ipv4, node.ipv6, NODE_PORT)):
                lines += server(proto, v4, port, [pod.ipv4]) + server(proto, f"[{v6}]", port, [f"[{pod.ipv6}]"])
        return lines

    def serves(self, path):
        return path.floor == IPVS

    def grow(self):
        ports = {RANGED: BALANCER_PORT, LOCAL: LOCAL_PORT}
        real = self._lab.host(ENDPOINT).ipv4
        lines = [line for address, port in ports.items() for line in server("t", address, port, [real])]
        self._program(list(ports), lines)

    def _program(self, vips, lines):
        netns.ip(self._node, *(f"address add {vip}/{128 if ':' in vip else 32} dev kube-ipvs0" for vip in vips))
        netns.run(self._node, ["ipvsadm", "-R"], "".join(f"{line}\n" for line in lines))


def _other(number, vip):
    reals = [cluster.pod_ip(number, endpoint) for endpoint in range(OTHER_ENDPOINTS)]
    return server("t", vip, PORT, reals)


def server(proto, address, port, reals):
    """Return the lines of `ipvsadm -R` for a virtual server; IPv6 addresses in brackets."""
    key = f"-{proto} {address}:{port}"
    return [f"-A {key} -s rr", *(f"-a {key} -r {real}:{ENDPOINT_PORT} -m" for real in reals)]
