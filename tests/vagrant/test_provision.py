"""The provisioning scripts, run as root in a scratch Debian with the environment that the Vagrantfile gives them.

scratch.py says which programs are stubs there: systemctl, kubeadm, kubectl, ctr, modprobe, sysctl, swapoff. The
rest is real: packages, containerd's reading of its configuration, the CNI plugins, links, routes, nftables.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import tarfile

import pytest
import yaml

from tests.vagrant import scratch
from tests.vagrant.scratch import PROVISION, ScratchDebian, environment

# Packages are downloaded in between.
pytestmark = pytest.mark.timeout(900)
# A LAN link that has the address which Vagrant would have given it.
LAN = """
ip link set lo up; ip link add lan type veth peer lan-far; ip address add $ADDRESS4/24 dev lan
ip link set lan up; ip link set lan-far up
"""


def ready_calls(node: ScratchDebian) -> list[str]:
    return [call for call in node.first_calls if call.split()[0] in ("modprobe", "sysctl", "swapoff", "systemctl")]


def test_a_node_gets_modules_settings_and_services(node: ScratchDebian) -> None:
    calls = ready_calls(node)
    assert "modprobe -a overlay br_netfilter ip_vs ip_vs_rr nf_conntrack nf_tables dummy" in calls
    assert "sysctl --quiet --load=/etc/sysctl.d/90-lab.conf" in calls
    assert "swapoff -a" in calls
    assert "systemctl restart containerd" in calls
    assert "systemctl enable --quiet containerd kubelet" in calls
    assert "net.ipv6.conf.all.forwarding = 1" in node.read("etc/sysctl.d/90-lab.conf")
    assert "\n# /dev/vda2 none swap" in node.read("etc/fstab")


def test_packages_come_from_the_repository_of_the_minor_version(node: ScratchDebian) -> None:
    wanted = "deb [signed-by=/etc/apt/keyrings/kubernetes.asc] https://pkgs.k8s.io/core:/stable:/v1.34/deb/ /\n"
    assert node.read("etc/apt/sources.list.d/kubernetes.list") == wanted
    key = next(call for call in node.first_calls if call.startswith("curl"))
    assert "https://pkgs.k8s.io/core:/stable:/v1.34/deb/Release.key" in key
    held = node.run("apt-mark showhold").split()
    assert set(held) == {"kubelet", "kubeadm", "kubectl"}


def test_a_second_run_changes_nothing_and_needs_no_network(node: ScratchDebian) -> None:
    said = node.run(f"{PROVISION}/network.sh; {PROVISION}/node.sh", environment("node1"), alone=True)
    assert "wrote" in node.first_output
    assert said.splitlines() == ["node1: ready for kubeadm v1.34.2"]
    assert not [call for call in node.calls() if ("containerd" in call and "restart" in call) or "curl" in call]


def test_containerd_reads_its_configuration_as_it_was_meant(node: ScratchDebian) -> None:
    effective = node.run("containerd --config /etc/containerd/config.toml config dump")
    lines = {line.strip() for line in effective.splitlines()}
    assert {"SystemdCgroup = true", 'bin_dir = "/usr/lib/cni"'} <= lines
    assert 'sandbox_image = "registry.k8s.io/pause:3.10.1"' in lines


def test_kubernetes_from_1_36_on_gets_containerd_2_with_its_own_options(node: ScratchDebian) -> None:
    """containerd's archive is not asked: its package is empty, and what it has for a default is that of 2.1.9."""
    newer = ScratchDebian(node.folder.parent / "newer")
    newer.install("containerd.io")
    newer.write("usr/share/containerd-2.toml", pathlib.Path(__file__).with_name("containerd-2.toml").read_text())
    newer.write("usr/local/sbin/containerd", "#!/bin/sh\ncat /usr/share/containerd-2.toml\n", 0o755)
    newer.run(f"{PROVISION}/network.sh; {PROVISION}/node.sh", environment("node1", KUBERNETES="1.36"))
    source = newer.read("etc/apt/sources.list.d/containerd.list")
    assert source.startswith("deb [signed-by=/etc/apt/keyrings/containerd.asc] ")
    assert source.endswith(" https://download.docker.com/linux/debian bookworm stable\n")
    assert "/v1.36/deb/" in newer.read("etc/apt/sources.list.d/kubernetes.list")
    lines = [line.strip() for line in newer.read("etc/containerd/config.toml").splitlines()]
    assert {"SystemdCgroup = true", "sandbox = 'registry.k8s.io/pause:3.10.1'"} <= set(lines)
    assert "bin_dirs = ['/usr/lib/cni']" in lines
    assert "bin_dir = '/opt/containerd/image-verifier/bin'" in lines
    assert "no packages found" in newer.run("dpkg-query -W containerd 2>&1 || true")


def test_an_option_that_containerd_does_not_have_is_an_error(node: ScratchDebian) -> None:
    script = (
        f". {PROVISION}/lib.sh; containerd config default >/tmp/c; set_line /tmp/c NoSuchOption true || echo so"
    )
    assert node.run(script).splitlines() == ["lab: /tmp/c has no NoSuchOption", "so"]


# What containerd does with the first plugin of the list for each pod.
CNI_ADD = """
import json, subprocess, sys
pod, (plugin, *_) = sys.argv[1], (conf := json.load(open("/etc/cni/net.d/10-lab.conflist")))["plugins"]
env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": pod, "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0",
       "CNI_PATH": "/usr/lib/cni", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
config = json.dumps(plugin | {"cniVersion": conf["cniVersion"], "name": conf["name"]})
subprocess.run([f"/usr/lib/cni/{plugin['type']}"], env=env, input=config, text=True, check=True)
"""


def test_two_pods_of_a_node_are_on_the_bridge_with_both_families_and_hairpin(node: ScratchDebian) -> None:
    node.write("tmp/add.py", CNI_ADD)
    script = """
    for pod in one two; do ip netns add $pod; python3 /tmp/add.py $pod >/dev/null; done
    ip netns exec one python3 /ipvsproxy/vagrant/who.py serve one &
    until ip netns exec one ss -ltn | grep -q :8080; do sleep 0.2; done
    ip netns exec two python3 /ipvsproxy/vagrant/who.py ask 10.244.1.2 8080 1
    ip netns exec two python3 /ipvsproxy/vagrant/who.py ask fd00:10:244:1::2 8080 1
    cat /sys/class/net/cni0/brif/*/hairpin_mode | sort -u | sed 's/^/hairpin /'
    ip -n one route show default; ip -n one -6 route show default
    """
    said = node.run(script, alone=True).splitlines()
    assert said[:3] == ["one 10.244.1.3", "one fd00:10:244:1::3", "hairpin 1"]
    assert said[3].startswith("default via 10.244.1.1")
    assert said[4].startswith("default via fd00:10:244:1::1")


def test_the_network_unit_gives_addresses_routes_and_a_way_out(node: ScratchDebian) -> None:
    env = environment("node1")
    assert "systemctl restart lab-network" in node.first_calls
    # As at each boot, twice, since Vagrant makes it run again.
    script = f"""
    {LAN}
    ip link add wan type veth peer wan-far; ip address add 10.0.2.15/24 dev wan
    ip link set wan up; ip link set wan-far up; ip route add default via 10.0.2.2
    lab-network; lab-network
    ip -6 address show dev lan; ip route; ip -6 route; nft list table inet lab
    """
    said = node.run(script, {"ADDRESS4": env["ADDRESS4"]}, alone=True)
    assert f"inet6 {env['ADDRESS6']}/64" in said
    for other in ("node2", "node3"):
        theirs = environment(other)
        assert f"{theirs['POD_CIDR4']} via {theirs['ADDRESS4']} dev lan" in said
        assert f"{theirs['POD_CIDR6']} via {theirs['ADDRESS6']} dev lan" in said
    assert 'oifname "wan" ip saddr 10.244.0.0/16 masquerade' in said
    assert 'oifname "wan" ip6 saddr fd00:10:244::/48 masquerade' in said


def test_the_client_gets_routes_and_hides_no_one(node: ScratchDebian) -> None:
    client = ScratchDebian(node.folder.parent / "client")
    env = environment("client")
    client.run(f"{PROVISION}/network.sh && {PROVISION}/client.sh", env)
    said = client.run(f"{LAN} lab-network; ip route; ip -6 route; nft list ruleset", env, alone=True)
    assert "203.0.113.0/24 via 192.168.56.12 dev lan" in said
    assert "2001:db8:113::/64 via fd00:56::12 dev lan" in said
    assert "table" not in said


@pytest.fixture(scope="module")
def image(node: ScratchDebian) -> ScratchDebian:
    """The image's files are those of `make image-root`; its own code is put in anew."""
    if not (scratch.REPO / ".cache/image/root.made").exists():
        pytest.skip("no files of the image: make image-root")
    content = "deploy/Dockerfile deploy/install.sh deploy/sbom.py deploy/requirements.lock pyproject.toml"
    node.run(f"cd /ipvsproxy; cat {content} | sha256sum | cut -c 1-12 >.cache/image/content")
    node.calls()
    node.run(f"{PROVISION}/image.sh", environment("node1"), alone=True)
    node.first_tag = node.read("srv/lab/image.tag")
    return node


def test_the_image_is_packed_from_the_tree_and_imported(image: ScratchDebian) -> None:
    tag = image.read("srv/lab/image.tag").strip()
    with tarfile.open(image.folder / "upper/srv/lab/image.tar") as archive:
        listed = json.load(archive.extractfile("manifest.json"))
        config = json.load(archive.extractfile("config.json"))
        with tarfile.open(fileobj=archive.extractfile("layer.tar")) as layer:
            own = next(name for name in layer.getnames() if name.endswith("site-packages/ipvsproxy/__main__.py"))
            assert layer.extractfile(own).read() == (scratch.REPO / "ipvsproxy/__main__.py").read_bytes()
    assert listed[0]["RepoTags"] == [f"docker.io/library/ipvsproxy:{tag}"]
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/ipvsproxy"]
    assert "ctr -n k8s.io images import /srv/lab/image.tar" in image.calls()


def test_the_image_works_and_its_tag_follows_the_code(image: ScratchDebian) -> None:
    root = "/ipvsproxy/.cache/image/root"
    assert "ipvsproxy" in image.run(f"chroot {root} ipvsproxy version", alone=True)
    before = image.read("srv/lab/image.tag")
    image.run(f"echo '# more' >>/ipvsproxy/nft/client.py; {PROVISION}/image.sh", environment("node1"), alone=True)
    assert image.read("srv/lab/image.tag") != before
    assert image.run(f"tail -n 1 {root}/opt/ipvsproxy/lib/python3*/site-packages/nft/client.py") == "# more\n"


def test_the_control_plane_is_made_once_and_without_kube_proxy(image: ScratchDebian) -> None:
    env = environment("node1")
    for _ in range(2):
        image.run(f"{PROVISION}/control.sh", env, alone=True)
    calls = image.calls()
    made = [call for call in calls if call.startswith("kubeadm init")]
    assert made == ["kubeadm init --config /etc/kubernetes/lab/init.yaml --skip-phases=addon/kube-proxy"]
    first, cluster = yaml.safe_load_all(image.read("etc/kubernetes/lab/init.yaml"))
    assert {first["apiVersion"], cluster["apiVersion"]} == {"kubeadm.k8s.io/v1beta4"}
    assert first["localAPIEndpoint"] == {"advertiseAddress": "192.168.56.11"}
    assert first["bootstrapTokens"][0]["ttl"] == "0s"
    own = [{"name": "node-ip", "value": "192.168.56.11,fd00:56::11"}]
    assert first["nodeRegistration"]["kubeletExtraArgs"] == own
    assert cluster["networking"]["podSubnet"] == "10.244.0.0/16,fd00:10:244::/48"
    assert cluster["networking"]["serviceSubnet"] == "10.96.0.0/16,fd00:10:96::/112"
    assert cluster["kubernetesVersion"] == "v1.34.2"
    assert cluster["proxy"] == {"disabled": True}
    assert "kubectl apply --kustomize /etc/kubernetes/lab" in calls


def test_the_daemon_set_is_that_of_deploy_with_what_this_cluster_needs(image: ScratchDebian) -> None:
    folder = image.folder / "upper/etc/kubernetes/lab"
    overlay = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert overlay["images"][0]["newTag"] == image.read("srv/lab/image.tag").strip()
    for part in ("base", "tenants"):
        made, ours = folder / part, scratch.REPO / "deploy/kustomize" / part
        assert {path.name: path.read_text() for path in made.iterdir()} == {
            path.name: path.read_text() for path in ours.iterdir()
        }
    data = yaml.safe_load((folder / overlay["patches"][0]["path"]).read_text())["data"]
    assert yaml.safe_load(data["config.conf"])["clusterCIDR"] == "10.244.0.0/16,fd00:10:244::/48"
    server = yaml.safe_load(data["kubeconfig.conf"])["clusters"][0]["cluster"]["server"]
    assert server == "https://192.168.56.11:6443"


def test_a_worker_fetches_the_image_and_joins_once(image: ScratchDebian) -> None:
    env = environment("node2")
    unit = image.read("etc/systemd/system/lab-files.service")
    serve = next(line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
    script = f"""
    ip link set lo up; ip address add 192.168.56.11/32 dev lo
    cp -a /srv/lab /srv/theirs
    {serve.replace("/srv/lab", "/srv/theirs")} >/dev/null 2>&1 & trap "kill $!" EXIT
    rm -f /srv/lab/*
    {PROVISION}/worker.sh
    {PROVISION}/worker.sh
    cmp /srv/lab/image.tar /srv/theirs/image.tar
    """
    image.run(script, env, alone=True)
    joins = [call for call in image.calls() if call.startswith("kubeadm join")]
    assert joins == ["kubeadm join --config /etc/kubernetes/lab/join.yaml"]
    (join,) = yaml.safe_load_all(image.read("etc/kubernetes/lab/join.yaml"))
    assert join["apiVersion"] == "kubeadm.k8s.io/v1beta4"
    assert join["discovery"]["bootstrapToken"]["apiServerEndpoint"] == "192.168.56.11:6443"
    assert join["nodeRegistration"]["kubeletExtraArgs"][0]["value"] == "192.168.56.12,fd00:56::12"


def test_a_worker_without_a_control_plane_reports_it(node: ScratchDebian) -> None:
    script = f"sed -i 's/--retry 30/--retry 0/' {PROVISION}/worker.sh; {PROVISION}/worker.sh || echo failed"
    said = node.run(script, environment("node2"), alone=True)
    assert "node1 does not answer: is it up?" in said
    assert said.endswith("failed\n")


def test_kustomize_takes_the_overlay(image: ScratchDebian) -> None:
    kubectl = "/usr/bin/kubectl"
    try:
        done = subprocess.run(
            [kubectl, "kustomize", image.folder / "upper/etc/kubernetes/lab"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no kubectl here")
    assert done.returncode == 0, done.stderr
    assert f"ipvsproxy:{image.read('srv/lab/image.tag').strip()}" in done.stdout
    made = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}
    assert ("ClusterRole", "ipvsproxy-tenants") in made
    extra = yaml.safe_load(made["ConfigMap", "ipvsproxy"]["data"]["extra.conf"])
    assert extra["tenantLabel"] == "ipvsproxy.io/tenant"
    pod = made["DaemonSet", "ipvsproxy"]["spec"]["template"]["spec"]
    mounted = "--extra-config=/var/lib/kube-proxy/extra.conf"
    assert [each["args"][-1] for each in (*pod["initContainers"], *pod["containers"])] == [mounted] * 2


def test_what_was_kept_makes_another_node_without_network(image: ScratchDebian) -> None:
    kept = image.folder.parent / "kept.tar"
    image.run(
        f"{PROVISION}/pack.sh >/var/tmp/kept.tar 2>/var/tmp/said || (cat /var/tmp/said; false)",
        environment("node1"),
    )
    (image.folder / "upper/var/tmp/kept.tar").rename(kept)
    other = ScratchDebian(image.folder.parent / "other")
    cache = other.folder / "upper/var/cache/lab"
    cache.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-f", kept, "-C", cache], check=True)
    kept.unlink()
    # The image's files are those of the cache, not those of this tree.
    other.run("mv /ipvsproxy/.cache/image /ipvsproxy/.cache/away")
    scripts = f"{PROVISION}/network.sh; {PROVISION}/node.sh; {PROVISION}/image.sh"
    said = other.run(scripts, environment("node1"), alone=True)
    assert "node1: ready for kubeadm v1.34.2" in said
    assert "making the image" not in said
    assert other.read("srv/lab/image.tag") == image.first_tag
