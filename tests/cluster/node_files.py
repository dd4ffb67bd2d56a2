"""What a node has below /etc and elsewhere, as texts by path: pure."""

from __future__ import annotations

import ipaddress
import json

from tests.cluster import store
from tests.cluster.images import PAUSE
from tests.cluster.place import AGENT_PORT, API_IP, DNS_IP, FLANNEL, POD_CIDRS, Cluster, ClusterNode

RUNTIME = "unix:///run/containerd/containerd.sock"
KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"

CONTAINERD = f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "crun"
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
"""

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
FIREWALL = {"type": "firewall", "backend": "iptables"}
# It leaves all to the plugin bridge, in a subnet that its daemon has written down.
DELEGATE = {"hairpinMode": True, "isDefaultGateway": True}
SUBNET = "/run/flannel/subnet.env"
TUNING = {"type": "tuning", "sysctl": {"net.ipv4.tcp_keepalive_time": "600"}}

# cadvisor wants fields of an x86 machine that a user-mode kernel does not show.
CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 1
model name\t: User Mode Linux
cpu MHz\t\t: 2000.000
cache size\t: 1024 KB
physical id\t: 0
siblings\t: 1
core id\t\t: 0
cpu cores\t: 1
bogomips\t: 4000.00

"""


def files(cluster: Cluster, node: ClusterNode) -> dict[str, str]:
    """All files of a node by path."""
    return {
        "/etc/hostname": f"{node.name}\n",
        "/etc/hosts": _hosts(cluster, node),
        "/etc/resolv.conf": "",
        "/etc/containerd/config.toml": CONTAINERD,
        "/etc/cni/net.d/10-pods.conflist": json.dumps(cni(node, cluster.plugins), indent=1),
        KUBELET_CONFIG: json.dumps(kubelet(cluster), indent=1),
        "/etc/cpuinfo": CPUINFO,
        **({SUBNET: subnet(node)} if cluster.plugins == FLANNEL else {}),
    }


def subnet(node: ClusterNode) -> str:
    """As flannel's daemon writes it where it has no need to masquerade."""
    lines = ["FLANNEL_MTU=1500", "FLANNEL_IPMASQ=true"]
    for prefix, cidr, own in zip(("", "IPV6_"), POD_CIDRS, node.pod_cidrs, strict=True):
        network = ipaddress.ip_network(own)
        lines += [f"FLANNEL_{prefix}NETWORK={cidr}"]
        lines += [f"FLANNEL_{prefix}SUBNET={network[1]}/{network.prefixlen}"]
    return "".join(f"{line}\n" for line in lines)


def cni(node: ClusterNode, plugins: str) -> dict[str, object]:
    """Pods on a bridge, by flannel or not, or each on a link of its own; `network` makes routes between nodes.

    `firewall` is a node of the strict kind: its FORWARD chain drops what is not of pods (agent.py); what leaves
    for other addresses than those of its own pods is masqueraded by the bridge plugin.
    """
    ranges = [[{"subnet": cidr}] for cidr in node.pod_cidrs]
    ipam = {"type": "host-local", "ranges": ranges}
    bridge: dict[str, object] = {"type": "bridge", "bridge": "cni0", "isGateway": True, "isDefaultGateway": True}
    bridge |= {"hairpinMode": True, "ipMasq": plugins == "firewall", "ipam": ipam}
    ptp: dict[str, object] = {"type": "ptp", "ipam": {**ipam, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}
    flannel: dict[str, object] = {"type": FLANNEL, "subnetFile": SUBNET, "delegate": DELEGATE}
    first = {"ptp": ptp, FLANNEL: flannel}.get(plugins, bridge)
    chain = [first, PORTMAP, *([FIREWALL, TUNING] if plugins == "firewall" else [])]
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": chain}


def kubelet(cluster: Cluster) -> dict[str, object]:
    """KubeletConfiguration; what differs from its defaults does so for a small machine without disks."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(cluster.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        # There is no cpuset controller in a kernel for one processor.
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": RUNTIME,
        # Images were imported and cannot be pulled again; the disk is this machine's.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": dict.fromkeys(EVICTION_SIGNALS, "0%"),
        "runtimeRequestTimeout": "10m",
        "volumeStatsAggPeriod": "10m",
        "logging": {"verbosity": 2},
    }


EVICTION_SIGNALS = (
    "memory.available",
    "nodefs.available",
    "imagefs.available",
    "nodefs.inodesFree",
    "imagefs.inodesFree",
)


def kubelet_flags(cluster: Cluster, node: ClusterNode) -> list[str]:
    """Those that have no field."""
    return [
        f"--kubeconfig={cluster.pki / node.name}.conf",
        f"--config={KUBELET_CONFIG}",
        f"--hostname-override={node.name}",
        f"--node-ip={','.join(node.ips)}",
        "--housekeeping-interval=60s",
    ]


def network(cluster: Cluster, node: ClusterNode) -> list[str]:
    """The lines for `ip -batch`: addresses, and routes to the pods of other nodes."""
    lines = [
        "link set lo up",
        f"address add {node.ips[0]}/24 dev vec0",
        f"address add {node.ips[1]}/64 dev vec0 nodad",
    ]
    lines += ["link set vec0 up mtu 1500", f"route add default via {API_IP}"]
    for other in cluster.nodes:
        if other != node:
            lines += [f"route add {cidr} via {ip}" for cidr, ip in zip(other.pod_cidrs, other.ips, strict=True)]
    return lines


def agent(cluster: Cluster, node: ClusterNode, kubelet_path: object) -> dict[str, object]:
    """What the first program written in Python gets to know (agent.py)."""
    return {
        "name": node.name,
        "address": [node.ips[0], AGENT_PORT],
        "network": network(cluster, node),
        "kubelet": [str(kubelet_path), *kubelet_flags(cluster, node)],
        "store": str(store.path(cluster.images)),
        "forwarded": POD_CIDRS if cluster.plugins == "firewall" else (),
    }


def manifest(node: ClusterNode) -> dict[str, object]:
    """The Node object, made before the kubelet comes: its pods' addresses, its zone."""
    labels = {"kubernetes.io/hostname": node.name, "topology.kubernetes.io/zone": node.zone}
    spec = {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": labels}, "spec": spec}


def _hosts(cluster: Cluster, node: ClusterNode) -> str:
    names = [("127.0.0.1", "localhost"), ("::1", "localhost"), *((ip, node.name) for ip in node.ips)]
    names += [(other.ips[0], other.name) for other in cluster.nodes if other != node]
    return "".join(f"{ip}\t{name}\n" for ip, name in names)
