"""Direct server return with kubelets and pods: the objects of docs/dsr.md, asked from outside of the cluster."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster import nodes, programs
from tests.cluster.application import RunningApplication, client_ips
from tests.cluster.daemonset import SYSTEM, judge, pods
from tests.cluster.direct import (
    BALANCED,
    CLIENTS,
    HTTP,
    NAME,
    NAMESPACE,
    NO_ANSWER,
    PAGE,
    SECONDS,
    DirectVideo,
)
from tests.cluster.place import ClusterNode
from tests.cluster.traffic import Origin, RunningTraffic, flowing
from tests.support import page
from tests.support.api_object import ApiObject

LENGTH = 300_000
TUNNELS = {
    ("ipip", 4): "ip protocol 4",
    ("gue", 4): "ip protocol udp udp dport 6080",
    ("ipip", 6): "ip6 nexthdr 41",
    ("gue", 6): "ip6 nexthdr udp udp dport 6080",
}


@pytest.fixture(scope="module", params=["ipip", "gue"])
def video(request: pytest.FixtureRequest, running: RunningApplication) -> Iterator[DirectVideo]:
    made = DirectVideo(running, request.param)
    made.remove()
    made.install()
    yield made
    made.remove()


def counters(video: DirectVideo, node: ClusterNode, rules: list[str]) -> list[int]:
    """What the rules of a table that `watch` has made have counted on a node."""
    listed = nodes.run(video.cluster, node, "nft", "list", "table", "inet", "watch").stdout
    found = [int(each) for each in re.findall(r"counter packets (\d+)", listed)]
    assert len(found) == len(rules), listed
    return found


def watch(video: DirectVideo, node: ClusterNode, rules: list[str]) -> None:
    """Count on a node what comes from others and matches."""
    lines = "".join(f'iifname "vec0" {rule} counter;\n' for rule in rules)
    chain = f"chain seen {{ type filter hook prerouting priority -400;\n{lines}}}"
    text = f"table inet watch {{}}\ndelete table inet watch\ntable inet watch {{\n{chain}\n}}\n"
    done = nodes.run(video.cluster, node, "nft", "-f", "-", text=text)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("number", [0, 1], ids=["node1", "node2"])
def test_pods_answer_a_client_past_the_node_that_balances(video: DirectVideo, number: int, family: int):
    """That node sends into tunnels, and no answer of the other node's pod comes back to it."""
    balancing, other = video.cluster.nodes[number], video.cluster.nodes[1 - number]
    vip, header = video.vips[family], "ip" if family == 4 else "ip6"
    video.route_via(balancing)
    answers, tunnel = [f"{header} saddr {vip}"], [TUNNELS[video.tunnel, family]]
    watch(video, balancing, answers)
    watch(video, other, tunnel)
    assert video.seen(vip) == video.everybody(CLIENTS[family])
    assert counters(video, balancing, answers) == [0]
    assert counters(video, other, tunnel)[0] > 0


def test_udp_is_answered_from_the_vip(video: DirectVideo):
    for family, vip in video.vips.items():
        assert video.seen_by_udp(vip) == video.everybody(CLIENTS[family])


def test_a_load_balancers_address_is_direct_through_all_nodes(video: DirectVideo):
    assert video.seen(BALANCED) == video.everybody(CLIENTS[4])


def test_what_is_long_passes_in_both_directions(video: DirectVideo):
    """What a client sends does not fit into tunnels at first; answers are in none."""
    for vip in map(written, video.vips.values()):
        command = f"cmd=head -c {LENGTH} /dev/zero | tr '\\0' x"
        asked = outside(video, "curl", "-sSgG", f"http://{vip}/shell", "--data-urlencode", command)
        assert json.loads(asked)["output"] == "x" * LENGTH
        sent = outside(video, "curl", "-sSg", f"http://{vip}/upload", "--form", "file=@-", text="x" * LENGTH)
        there = json.loads(sent)["output"]
        assert sorted(sizes(video, there)) == sorted(["", str(LENGTH)])


def written(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def outside(video: DirectVideo, *words: str, text: str = "") -> str:
    argv = video.cluster.inside(*words)
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True, timeout=SECONDS).stdout


def sizes(video: DirectVideo, path: str) -> list[str]:
    """How long a file is in each of the pods; empty where there is none."""
    command = f"stat -c %s {path} 2>/dev/null || true"
    return [
        video.kubectl("exec", name, f"--container={NAME}", "--", "sh", "-c", command).strip()
        for name in video.pods()
    ]


def test_cluster_ips_node_ports_and_clients_in_the_cluster_are_served_as_before(video: DirectVideo):
    spec = video.kubectl.get("service", NAME)["spec"]
    (port,) = [each["nodePort"] for each in spec["ports"] if each["port"] == HTTP]
    names, clients = set(video.pods()), client_ips(video.kubectl)
    for node in video.cluster.nodes:
        assert {name for name, _ in video.seen(node.ips[0], port=port)} == names
        for where in (Origin(node), Origin(node, clients[node.name])):
            for address in (*spec["clusterIPs"], *video.vips.values(), BALANCED):
                assert {name for name, _ in video.seen(address, where)} == names, (str(where), address)


def test_the_init_container_alone_has_a_right_and_changes_its_pod_alone(video: DirectVideo):
    """All that it needs of the kubelet stands in the page's manifest."""
    for name, pod in video.pods().items():
        settings = "cd /proc/sys/net/ipv4/conf; grep . ipvsproxy4/rp_filter eth0/arp_ignore eth0/arp_announce"
        said = inside(video, name, f"{settings}; grep CapEff /proc/self/status")
        *found, rights = said.split("\n")
        assert found == ["ipvsproxy4/rp_filter:0", "eth0/arp_ignore:1", "eth0/arp_announce:2"]
        assert not int(rights.split()[1], 16) & 1 << 12  # NET_ADMIN
        said = video.kubectl("logs", name, "--container=dsr")
        assert f"ipvsproxy4: {video.tunnel} to {pod['status']['podIP']}, VIPs" in said
    for node in video.cluster.nodes:
        assert "ipvsproxy4" not in nodes.run(video.cluster, node, "ip", "-o", "link").stdout


def inside(video: DirectVideo, name: str, command: str) -> str:
    return video.kubectl("exec", name, f"--container={NAME}", "--", "sh", "-c", command).strip()


def test_no_new_connection_fails_while_pods_come_and_go(video: DirectVideo):
    with steady(video) as traffic:
        for replicas in (4, 1, 2):
            video.kubectl("scale", f"deployment/{NAME}", f"--replicas={replicas}")
            video.roll()
            nodes.run(video.cluster, video.cluster.nodes[0], "sleep", "5")
        before = set(video.pods())
        video.kubectl("rollout", "restart", f"deployment/{NAME}")
        video.roll()
    judge(traffic)
    programs.wait("old pods stay", lambda: not before & set(video.pods()), SECONDS)
    assert video.is_direct()


def steady(video: DirectVideo) -> contextlib.AbstractContextManager[RunningTraffic]:
    """New connections from outside to all addresses."""
    video.route_via(video.cluster.nodes[0])
    addresses = [*map(written, video.vips.values()), BALANCED]
    return flowing(video.cluster, {Origin(): [f"new:{address}:{HTTP}" for address in addresses]})


def test_a_service_becomes_direct_and_ceases_to_be_without_a_failure(video: DirectVideo):
    """In the page's order: first the init container in all pods, then the annotation."""
    with steady(video) as traffic:
        video.annotate("-")
        programs.wait("still direct", lambda: masqueraded(video), SECONDS)
        for change in (video.unprepare, video.prepare):
            change()
            programs.wait("not answered by all", lambda: masqueraded(video), SECONDS)
        video.annotate(video.tunnel)
        programs.wait("not direct", video.is_direct, SECONDS)
    judge(traffic)


def masqueraded(video: DirectVideo) -> bool:
    """Whether all pods answer, and none has seen a client's own address."""
    return all(
        {name for name, _ in found} == set(video.pods()) and CLIENTS[family] not in {seen for _, seen in found}
        for family, found in ((family, video.seen(ip)) for family, ip in video.vips.items())
    )


def test_a_pod_whose_sandbox_has_died_is_prepared_again(video: DirectVideo):
    """The kubelet makes a new one, with another address, and has the init container run there."""
    name, pod = next(iter(video.pods().items()))
    node = video.cluster.node(pod["spec"]["nodeName"])
    done = nodes.run(video.cluster, node, "sh", "-c", _KILL_SANDBOX, "sh", name)
    assert done.returncode == 0, done.stdout

    def is_new() -> bool:
        now = video.pods().get(name)
        return bool(now) and now["status"].get("podIP", "") not in ("", pod["status"]["podIP"])

    programs.wait("no new sandbox", is_new, SECONDS)
    programs.wait("not direct again", video.is_direct, SECONDS)


_KILL_SANDBOX = """
sandbox=$(ctr -n k8s.io containers ls -q \
    'labels."io.kubernetes.pod.name"=='"$1"',labels."io.cri-containerd.kind"==sandbox')
ctr -n k8s.io tasks kill --signal KILL "$sandbox"
"""


def test_doctor_in_the_proxys_pod_names_pods_that_are_not_prepared(video: DirectVideo):
    assert video.is_direct()
    assert doctor(video) == ("ok", [])
    video.unprepare()
    assert video.seen(video.vips[4], times=4) == {NO_ANSWER}
    verdict, endpoints = doctor(video)
    assert verdict == "problem"
    assert endpoints == sorted(f"{pod['status']['podIP']}:{HTTP}" for pod in video.pods().values())
    video.prepare()
    programs.wait("not direct again", video.is_direct, SECONDS)
    assert doctor(video) == ("ok", [])


def doctor(video: DirectVideo) -> tuple[str, list[str]]:
    """What it makes of the Service on the node that clients come in through, and the endpoints that it names."""
    proxy = pods(video.running)[video.cluster.nodes[0].name]["metadata"]["name"]
    command = f"ipvsproxy doctor {NAMESPACE}/{NAME} -o json || true"
    said = video.kubectl("exec", proxy, SYSTEM, "--container=ipvsproxy", "--", "sh", "-c", command)
    (found,) = [each for each in json.loads(said)["findings"] if each["check"] == "direct return"]
    return found["verdict"], sorted({line.split()[0] for line in found["evidence"] if video.vips[4] in line})


def test_a_program_that_is_not_root_answers_at_a_low_port(video: DirectVideo):
    """With the pod's settings on the page; the init container has its own ones."""
    (settings,) = [found["securityContext"] for (found,) in page.manifests(PAGE)[1:] if "securityContext" in found]
    video.patch_pods(securityContext=settings)
    try:
        programs.wait("not direct", video.is_direct, SECONDS)
        for name in video.pods():
            status = inside(video, name, "cat /proc/1/status")
            fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
            assert fields["Uid"].split()[0] == str(settings["runAsUser"])
            assert int(fields["CapEff"], 16) == 0
    finally:
        video.patch_pods(securityContext=None)
    programs.wait("not direct again", video.is_direct, SECONDS)


def test_pod_security_refuses_the_capability_and_nothing_else(video: DirectVideo):
    """What the page states about namespaces with the level baseline."""
    label = "pod-security.kubernetes.io/enforce=baseline"
    video.kubectl("label", "namespace", NAMESPACE, label)
    try:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            video.kubectl("create", "--dry-run=server", "--filename=-", text=json.dumps(single(video)))
    finally:
        video.kubectl("label", "namespace", NAMESPACE, label.replace("=baseline", "-"))
    (violated,) = re.findall(r'violates PodSecurity "baseline:latest": (.*)', refused.value.stderr)
    assert re.fullmatch(r'non-default capabilities \(container "dsr" must not include "NET_ADMIN" .*\)', violated)


def single(video: DirectVideo, **spec: object) -> ApiObject:
    """A pod such as the Deployment's, of its own."""
    template = video.deployment["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "single", "namespace": NAMESPACE, "labels": {"app": "single"}},
        "spec": {**template["spec"], "topologySpreadConstraints": [], **spec},
    }


def test_a_strict_reverse_path_filter_of_the_node_is_named_in_the_log(video: DirectVideo):
    node = video.cluster.nodes[1]
    strict = "net.ipv4.conf.all.rp_filter"
    nodes.run(video.cluster, node, "sysctl", "-w", f"{strict}=1")
    try:
        video.kubectl.apply([single(video, nodeName=node.name)])
        reason = f"{strict} is 1 in the pod"
        programs.wait("no reason", lambda: reason in log(video, "single"), SECONDS)
    finally:
        nodes.run(video.cluster, node, "sysctl", "-w", f"{strict}=0")
        video.kubectl("delete", "pod", "single", "--ignore-not-found", "--grace-period=1")


def log(video: DirectVideo, pod: str) -> str:
    """Of the init container; empty before it has run."""
    with contextlib.suppress(subprocess.CalledProcessError):
        return video.kubectl("logs", pod, "--container=dsr")
    return ""
