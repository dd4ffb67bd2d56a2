"""Names and addresses of a cluster, and what is derived from them."""

from __future__ import annotations

import ipaddress
import pathlib
import shutil

import pytest
import yaml

from tests.cluster import control_plane, images, network, node_files, nodes, proxies
from tests.cluster.binaries import BinaryMissing, Kube
from tests.cluster.place import (
    API_IP,
    BALANCER_CIDR,
    BRIDGE_CIDRS,
    FLANNEL,
    OUTSIDE_IP,
    PLUGINS,
    POD_CIDRS,
    SERVICE_CIDRS,
    Cluster,
)


@pytest.mark.parametrize("name", ["", "Lab", "a/b", "../x", "x" * 22, "1st"])
def test_a_name_that_is_no_short_word_is_refused(name: str):
    with pytest.raises(ValueError, match="NAME must be a short word"):
        Cluster(name)


@pytest.mark.parametrize("size", [0, 10, -1])
def test_a_number_of_nodes_that_has_no_addresses_is_refused(size: int):
    with pytest.raises(ValueError, match="NODES must be a number from 1 to 9"):
        Cluster("lab", size)


def test_a_node_is_found_by_name_and_number():
    cluster = Cluster("lab", 2)
    assert cluster.node("node2") == cluster.node("2") == cluster.nodes[1]
    with pytest.raises(ValueError, match="no node '3': node1, node2"):
        cluster.node("3")


def test_no_two_ranges_of_a_cluster_overlap():
    ranges = [
        ipaddress.ip_interface(cidr).network for cidr in (*BRIDGE_CIDRS, *POD_CIDRS, *SERVICE_CIDRS, BALANCER_CIDR)
    ]
    ranges.append(ipaddress.ip_network(OUTSIDE_IP))
    assert not [(a, b) for a in ranges for b in ranges if a is not b and a.version == b.version and a.overlaps(b)]


def test_pods_of_each_node_are_in_the_clusters_ranges_and_in_no_other_nodes():
    cluster = Cluster("lab", 9)
    for family in (0, 1):
        cidrs = [ipaddress.ip_network(node.pod_cidrs[family]) for node in cluster.nodes]
        assert all(cidr.subnet_of(ipaddress.ip_network(POD_CIDRS[family])) for cidr in cidrs)
        assert not [(a, b) for a in cidrs for b in cidrs if a is not b and a.overlaps(b)]


def test_each_node_has_routes_to_the_pods_of_all_others():
    cluster = Cluster("lab", 3)
    lines = node_files.network(cluster, cluster.nodes[0])
    assert "route add 10.244.2.0/24 via 172.31.0.12" in lines
    assert "route add fd00:10:244:3::/64 via fd00:172:31::13" in lines
    assert not [line for line in lines if "10.244.1.0" in line]
    assert f"route add default via {API_IP}" in lines
    assert "route add 10.244.1.0/24 via 172.31.0.11" in network.commands(cluster)


def test_a_node_boots_with_its_folder_and_its_tap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IPVSPROXY_VM_MEMORY", "2G")
    cluster = Cluster("lab")
    words = [str(word) for word in nodes.kernel(cluster, cluster.nodes[1])]
    assert "mem=2G" in words
    assert "vec0:transport=tap,ifname=tap2,depth=128" in words
    assert words[words.index("--") + 1] == str(cluster.folder / "node2")


def test_plugins_that_the_machine_has_not_are_refused():
    with pytest.raises(ValueError, match="PLUGINS must be one of bridge, ptp, firewall, flannel: 'calico'"):
        Cluster("lab", plugins="calico")


def test_every_chain_of_plugins_gives_pods_addresses_and_host_ports():
    node = Cluster("lab").nodes[0]
    chains = {each: [plugin["type"] for plugin in node_files.cni(node, each)["plugins"]] for each in PLUGINS}
    assert chains == {
        "bridge": ["bridge", "portmap"],
        "ptp": ["ptp", "portmap"],
        "firewall": ["bridge", "portmap", "firewall", "tuning"],
        "flannel": ["flannel", "portmap"],
    }
    for each in set(PLUGINS) - {FLANNEL}:
        ranges = node_files.cni(node, each)["plugins"][0]["ipam"]["ranges"]
        assert ranges == [[{"subnet": cidr}] for cidr in node.pod_cidrs]


def test_flannels_plugin_finds_the_subnets_of_its_node():
    cluster = Cluster("lab", plugins=FLANNEL)
    text = node_files.files(cluster, cluster.nodes[1])[node_files.SUBNET]
    assert "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\n" in text
    assert "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:2::1/64\n" in text
    assert node_files.SUBNET not in node_files.files(Cluster("lab"), cluster.nodes[1])


def test_the_api_server_serves_both_families():
    cluster, kube = Cluster("lab"), Kube(pathlib.Path("/bin"))
    argv = [str(word) for word in control_plane.etcd(cluster)]
    assert str(cluster.folder / "etcd") in argv
    with pytest.raises(BinaryMissing, match="has no program kube-apiserver"):
        control_plane.apiserver(cluster, kube)


def test_our_manifests_are_used_as_in_the_readme_with_the_clusters_addresses(tmp_path: pathlib.Path):
    folder = proxies.kustomization(tmp_path)
    text = (folder / "cluster.yaml").read_text()
    assert "server: https://172.31.0.1:6443" in text
    assert "clusterCIDR: 10.244.0.0/16,fd00:10:244::/48" in text
    base = folder.parent / "base/daemonset.yaml"
    assert base.read_text() == (proxies.REPO / "deploy/kustomize/base/daemonset.yaml").read_text()


def test_an_older_version_has_its_own_manifests_and_the_files_of_its_own_image(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "older"
    shutil.copytree(proxies.REPO / "deploy/kustomize", source / "deploy/kustomize")
    (source / "deploy/kustomize/base/of-the-older.yaml").touch()
    assert (proxies.kustomization(tmp_path, source).parent / "base/of-the-older.yaml").exists()
    monkeypatch.setenv("IPVSPROXY_OLDER", f"{source} --some-flag")
    assert images.older() == source
    with pytest.raises(BinaryMissing, match=f"there are no files of the image in {source}: make image-root"):
        images.image_made(source)


def test_kube_proxy_is_installed_as_by_kubeadm_in_the_mode_that_is_asked_for():
    objects = {each["kind"]: each for each in proxies.kube_proxy("v1.36.2", "ipvs")}
    config = yaml.safe_load(objects["ConfigMap"]["data"]["config.conf"])
    assert config["mode"] == "ipvs"
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.k8s.io/kube-proxy:v1.36.2"
    assert "server: https://172.31.0.1:6443" in objects["ConfigMap"]["data"]["kubeconfig.conf"]


def test_a_mode_that_kube_proxy_has_not_is_refused(tmp_path: pathlib.Path):
    (tmp_path / "kube-proxy").write_text("")
    (tmp_path / "kube-proxy").chmod(0o755)
    with pytest.raises(BinaryMissing, match="MODE must be one of ipvs, iptables, nftables: 'userspace'"):
        proxies.check(Kube(tmp_path), "kube-proxy", "userspace")
