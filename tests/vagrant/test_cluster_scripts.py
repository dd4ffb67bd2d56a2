"""What tour.sh and compare.sh tell a cluster: ssh is a local shell here, and what it starts writes down its words.

So the quoting is real, from the script through two shells to the program's arguments. The cluster is not: kubectl
and the others are stand-ins that answer just enough. The tour's own lines are checked in the namespace lab.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from tests.vagrant import scratch

VAGRANT = scratch.REPO / "vagrant"
IMAGE, DNS_IMAGE = "docker.io/library/ipvsproxy:0a1b2c", "docker.io/coredns/coredns:1.12.1"
# Each call is one line: the program and its arguments, each in brackets.
_RECORD = '#!/bin/sh\n{ printf "[%s] " "${0##*/}" "$@"; echo; } >>"$STATE/calls"\n'
STAND_INS = {
    "vagrant": "echo Host node1\n",
    # The last word is the command line for the other end; -n and the like come before it.
    "ssh": 'for last; do :; done\nexec sh -c "$(echo "$last" | sed "s|/etc/lab-network|$STATE/lab-network|")"\n',
    "sudo": 'exec "$@"\n',
    "kubectl": 'case "$*" in\n'
    '*"get deployment coredns"*) echo $DNS_IMAGE ;;\n'
    "*jsonpath=*containers*image*) echo $IMAGE ;;\n"
    '*"get nodes"*) echo node1 node2 node3 ;;\n'
    '*"get pod -l"*) echo pod/ipvsproxy-x ;;\n'
    '"apply -k .") cp -r .. "$STATE/overlay" ;;\n'
    '"apply -f -") cat >"$STATE/new"; cat "$STATE/new" >>"$STATE/applied" ;;\n'
    "esac\n",
    "who": 'case $1 in time) echo 1.25 9.75 ;; *) sed -n "s/.*selector: {pod: \\(.*\\)}, ports.*/\\1 192.0.2.9/p" '
    '"$STATE/applied" | tail -n 1 ;; esac\n',
    "curl": "echo 'kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 1.5'\n"
    "echo 'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 3'\n",
    "kubeadm": 'cp /tmp/compare.yaml "$STATE/compare-$(grep ^mode /tmp/compare.yaml | cut -c 7-).yaml"\n',
    # What kubeadm was given on node1, through the caller's expressions.
    "sed": 'case "$*" in */etc/kubernetes/*) printf "proxy:\\n  disabled: true\\nkind: x\\n" |'
    ' /usr/bin/sed "$1" "$2" "$3" "$4" ;; *) exec /usr/bin/sed "$@" ;; esac\n',
    **dict.fromkeys(("ctr", "ip", "nft", "bridge"), ""),
}
QUIET = {"sed", "sudo", "ssh", "vagrant"}


class StandIns:
    """Stand-ins on the PATH, and what they were told."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, behaviour in STAND_INS.items():
            program = folder / "bin" / name
            program.write_text((_RECORD if name not in QUIET else "#!/bin/sh\n") + behaviour)
            program.chmod(0o755)
        (folder / "lab-network").write_text("ADDRESS4=192.168.56.12\nADDRESS6=fd00:56::12\n")
        # A copy, since the scripts keep files beside themselves.
        subprocess.run(["cp", "-r", VAGRANT, folder / "vagrant"], check=True)

    def run(self, script: str, **env: str) -> str:
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        known = {
            "PATH": path,
            "STATE": str(self.folder),
            "IMAGE": IMAGE,
            "DNS_IMAGE": DNS_IMAGE,
            "HOME": str(self.folder),
            **env,
        }
        done = subprocess.run(
            ["sh", "-euc", script],
            cwd=self.folder,
            env=known,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def calls(self) -> list[list[str]]:
        """Everything recorded since the last look, as argument lists."""
        log = self.folder / "calls"
        found = [re.findall(r"\[(.*?)\] (?=\[|$)", line) for line in log.read_text().splitlines()]
        log.unlink()
        return found


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> StandIns:
    return StandIns(tmp_path)


def told(cluster: StandIns, call: str) -> list[list[str]]:
    cluster.run(f"here=vagrant; . vagrant/target-cluster.sh; . vagrant/pods.sh; {call}")
    return cluster.calls()[1:]


FIREWALL = (
    "add table inet firewall; add chain inet firewall f { type filter hook forward priority 0; policy drop; }"
)
EXEC = ["kubectl", "-n", "tour", "exec", "web-a", "--", "/opt/ipvsproxy/bin/python", "/who/who.py"]
PROXY = ["kubectl", "-n", "kube-system", "exec", "pod/ipvsproxy-x", "-c", "ipvsproxy", "--", "ipvsproxy"]
CONFIG = ["--config=/var/lib/kube-proxy/config.conf", "--extra-config=/var/lib/kube-proxy/extra.conf"]
CONFIG += ["--hostname-override=node2"]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ("ask client 192.0.2.1 80", ["who", "ask", "192.0.2.1", "80"]),
        ("ask web-a fd00::1 80", [*EXEC, "ask", "fd00::1", "80"]),
        ("look_up web-a a.tour.svc", [*EXEC, "name", "a.tour.svc"]),
        ("field web '{.spec.ports[0].nodePort}'",
            ["kubectl", "-n", "tour", "get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]),
        ("load_balance web 203.0.113.80",
            ["kubectl", "-n", "tour", "patch", "service", "web", "--subresource=status", "--type=merge", "-p",
             '{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.80"}]}}}']),
        ("ask tour-blue/blue fd00::1 80",
            [*EXEC[:2], "tour-blue", "exec", "blue", *EXEC[5:], "ask", "fd00::1", "80"]),
        ("field default/kubernetes '{.spec.clusterIP}'",
            ["kubectl", "-n", "default", "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]),
        ("addresses tour-blue/blue",
            ["kubectl", "-n", "tour-blue", "get", "pod", "blue", "-o", "jsonpath={.status.podIPs[*].ip}"]),
        ("wait_for_pods web-a tour-blue/blue",
            ["kubectl", "-n", "tour-blue", "wait", "--for=condition=Ready", "--timeout=120s", "pod/blue"]),
        ("namespace tour-blue blue",
            ["kubectl", "-n", "tour-blue", "create", "configmap", "who", "--from-file=/ipvsproxy/vagrant/who.py"]),
        (f"on node2 nft '{FIREWALL}'", ["nft", FIREWALL]),
        ("route 203.0.113.80 nowhere", ["ip", "route", "replace", "unreachable", "203.0.113.80"]),
        ("route 203.0.113.80 node2", ["ip", "route", "replace", "203.0.113.80", "via", "192.168.56.12"]),
        ("proxy node2 doctor tour/web", [*PROXY, "doctor", "tour/web", *CONFIG]),
    ],
)  # fmt: skip
def test_words_arrive_as_they_were_meant(cluster: StandIns, call: str, wanted: list[str]) -> None:
    assert told(cluster, call)[-1] == wanted


def test_a_namespace_gets_the_label_of_its_tenant_if_it_has_one(cluster: StandIns) -> None:
    label = ["kubectl", "label", "namespace", "tour-blue", "ipvsproxy.io/tenant=blue"]
    assert label in told(cluster, "namespace tour-blue blue")
    assert not [call for call in told(cluster, "namespace tour") if "label" in call]


def overlay_of_tenant(cluster: StandIns) -> pathlib.Path:
    """Have the DNS of tenant blue made, and return the folder of its overlay."""
    source = cluster.folder / "ipvsproxy"
    source.mkdir()
    (source / "deploy").symlink_to(scratch.REPO / "deploy")
    target = cluster.folder / "vagrant/target-cluster.sh"
    target.write_text(target.read_text().replace("/ipvsproxy/", f"{source}/"))
    waited = ["kubectl", "-n", "blue-dns", "rollout", "status", "--timeout=120s", "deployment/tenant-dns-blue"]
    assert told(cluster, "tenant_dns blue tour-blue")[-1] == waited
    return cluster.folder / "overlay/tenant-dns-blue"


def test_the_dns_of_a_tenant_is_that_of_deploy_for_one_namespace(cluster: StandIns) -> None:
    folder = overlay_of_tenant(cluster)
    assert (folder.parent / "tenant-dns/Corefile").is_file()
    space = yaml.safe_load((folder / "namespace.yaml").read_text())
    assert space["metadata"] == {"name": "blue-dns", "labels": {"ipvsproxy.io/tenant": "blue"}}
    assert "    namespaces tour-blue default\n" in (folder / "tenant.conf").read_text()
    made = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert (made["namespace"], made["nameSuffix"]) == ("blue-dns", "-blue")
    assert "{newName}:{newTag}".format_map(made["images"][0]) == DNS_IMAGE


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kustomize_takes_the_overlay_of_a_tenant(cluster: StandIns) -> None:
    argv = ["kubectl", "kustomize", overlay_of_tenant(cluster)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    made = {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}
    where = made["Service"]["metadata"]
    assert (where["namespace"], where["name"]) == ("blue-dns", "tenant-dns-blue")
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == DNS_IMAGE
    assert (pod["nodeSelector"]["kubernetes.io/hostname"], pod["tolerations"]) == (
        "node1",
        [{"operator": "Exists"}],
    )


def test_manifests_arrive_on_standard_input(cluster: StandIns) -> None:
    told(cluster, "printf 'a: {b: \"$c\"}\\n' | apply")
    assert (cluster.folder / "applied").read_text() == 'a: {b: "$c"}\n'


def test_the_comparison_goes_through_all_modes_and_comes_back(cluster: StandIns) -> None:
    said = cluster.run("vagrant/compare.sh", SERVICES="5", CHANGES="2")
    rows = [line.split() for line in said.splitlines()]
    assert [row[0] for row in rows] == ["mode", "ipvsproxy", "ipvs", "nftables"]
    for row in rows[1:]:
        assert (row[1], row[4], row[5]) == ("1.500", "1.25", "9.75")
    assert (cluster.folder / "applied").read_text().count("kind: Service") == 1 + 4 + 3 * (1 + 2)
    calls = [" ".join(call) for call in cluster.calls()]
    # Before each mode, and before ipvsproxy comes back, every node is cleaned.
    cleaned = [
        call for call in calls if call.startswith("ctr") and call.endswith("/usr/local/bin/ipvsproxy cleanup")
    ]
    assert len(cleaned) == 4 * 3
    assert all(IMAGE in call for call in cleaned)
    assert sum("init phase addon kube-proxy" in call for call in calls) == 2
    for mode in ("ipvs", "nftables"):
        text = (cluster.folder / f"compare-{mode}.yaml").read_text()
        assert "disabled" not in text
        assert f"kind: KubeProxyConfiguration\nmode: {mode}\n" in text
    ends = [call for call in calls if "lab/stopped" in call][-1]
    assert '"lab/stopped":null' in ends
    assert any("delete namespace tour" in call for call in calls[calls.index(ends) :])
