"""Configuration files, kernel settings and modules, with a real process on a node of the lab."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from ipvsproxy.base import messages
from ipvsproxy.kernel.ipvs import Ipvs
from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.lab.proxy import LabProxy

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

FIELD_CASE = pathlib.Path(__file__).parents[1] / "field/cases/06-own-port-is-nodeport.yaml"
KUBEADM = pathlib.Path(__file__).parents[1] / "unit" / "config" / "kubeadm-config.conf"
RUN = (sys.executable, "-m", "ipvsproxy")
MAKE_READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
READ_ONLY = ("unshare", "--mount", "sh", "-c", f'{MAKE_READ_ONLY} && exec "$@"', "sh")
FORWARD = "table ip filter { chain FORWARD { type filter hook forward priority 0; ip daddr 203.0.113.99 drop; }; }"
"""It may drop a reply, so that replies are marked."""
VS_CONNTRACK = "net/ipv4/vs/conntrack"
CONNTRACK = "net/netfilter/nf_conntrack_tcp_timeout_"
SETTINGS = {
    VS_CONNTRACK: 1,
    "net/ipv4/conf/all/arp_ignore": 1,
    "net/ipv4/conf/all/arp_announce": 2,
    f"{CONNTRACK}close_wait": 1800,
    f"{CONNTRACK}established": 86400,
}
WEB = service("web", [port(80, 8080)], ["10.96.1.1"])
END_SECONDS = 60.0


def edited(**changes: str) -> str:
    """kubeadm's configuration without its kubeconfig, since the objects come from manifests, and with changes."""
    text = KUBEADM.read_text().replace("/var/lib/kube-proxy/kubeconfig.conf", '""')
    for name, value in changes.items():
        lines = [line for line in text.splitlines() if line.strip().startswith(f"{name}:")]
        assert lines, name
        for line in lines:
            text = text.replace(line, f"{line.partition(':')[0]}: {value}")
    return text


LOCAL_RANGE, RESERVED = "net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports"


@pytest.fixture
def settings_kept(lab: Lab) -> Iterator[None]:
    """Kernel settings outlive the process: the next test must find what the lab made."""
    node = lab.nodes[0].netns
    with netns.inside(node):
        before = {name: netns.get_sysctl(node, name) for name in (*SETTINGS, LOCAL_RANGE, RESERVED)}
    yield
    netns.set_sysctls(node, before)


def started(lab: Lab, manifests: ManifestFolder, *arguments: str, command: tuple[str, ...] = RUN) -> LabProxy:
    return lab.proxy(lab.nodes[0], manifests.path, arguments, command=command, wait=False)


def status(proxy: LabProxy) -> int:
    assert proxy.process is not None
    return proxy.process.wait(END_SECONDS)


def test_a_configuration_file_from_start_to_change(
    lab: Lab, manifests: ManifestFolder, tmp_path: pathlib.Path, settings_kept: None
) -> None:
    node = lab.nodes[0]
    netns.set_sysctls(node.netns, {VS_CONNTRACK: 0})
    lab.run(node, ["nft", FORWARD])
    manifests.write("web", WEB)
    wanted = edited(
        strictARP="true", tcpTimeout="100s", masqueradeBit="20", tcpCloseWaitTimeout="30m", syncPeriod="1s",
        scheduler="wlc",
    )  # fmt: skip
    path = tmp_path / "config.conf"
    path.write_text(wanted)

    proxy = started(lab, manifests, f"--config={path}")
    proxy.wait_for(messages.SYNCED)
    assert {name: int(netns.get_sysctl(node.netns, name)) for name in SETTINGS} == SETTINGS
    rules = lab.run(node, ["nft", "list", "ruleset"])
    assert "0x00100000 accept" in rules.replace("counter packets 0 bytes 0 ", "")
    assert "mark | 0x00100000" in rules
    assert "0x00004000" not in rules
    with netns.inside(node.netns):
        assert "wlc" in pathlib.Path("/proc/thread-self/net/ip_vs").read_text()
        with contextlib.closing(Ipvs()) as ipvs:
            assert ipvs.timeouts()[0] == 100

    times = len(proxy.events(messages.SETTING_CHANGED))
    netns.set_sysctls(node.netns, {VS_CONNTRACK: 0})
    proxy.wait_for(messages.SETTING_CHANGED_BY_OTHERS)
    proxy.wait_for(messages.SETTING_CHANGED, times + 1)
    assert netns.get_sysctl(node.netns, VS_CONNTRACK) == "1"

    path.write_text(wanted.replace("mode: ", "mode: nonsense #"))
    said = proxy.wait_for(messages.CONFIG_KEPT)
    assert "KubeProxyConfiguration.mode" in str(said["err"])
    assert proxy.is_running()
    path.write_text(wanted.replace("scheduler: wlc", "scheduler: rr"))
    assert status(proxy) == 1
    assert len(proxy.events(messages.CONFIG_CHANGED)) == 1


def test_a_process_without_rights_runs_after_init_only(
    lab: Lab, manifests: ManifestFolder, settings_kept: None
) -> None:
    node = lab.nodes[0]
    manifests.write("web", WEB)
    netns.set_sysctls(node.netns, {VS_CONNTRACK: 0})
    proxy = started(lab, manifests, command=(*READ_ONLY, *RUN))
    assert status(proxy) == 1
    last = proxy.text().splitlines()[-1]
    assert "cannot be set to" in last
    assert "--init-only" in last

    init = started(lab, manifests, "--init-only")
    assert status(init) == 0
    assert netns.get_sysctl(node.netns, VS_CONNTRACK) == "1"

    proxy = started(lab, manifests, command=(*READ_ONLY, *RUN))
    proxy.wait_for(messages.SYNCED)


NODE_PORTS = range(32700, 32768)


def own_connections(lab: Lab, server: socket.socket, family: int) -> list[str]:
    """Open 150 connections of node1, which has 301 local ports, and name those that fail."""
    to, failed = server.getsockname()[:2], []
    with contextlib.ExitStack() as open_ones:
        asking = [open_ones.enter_context(netns.open_socket(lab.nodes[0].netns, to[0], "tcp")) for _ in range(150)]
        for one in asking:
            one.connect_ex(to)
        for one in asking:
            one.settimeout(3)
            try:
                one.connect(to)
            except OSError as error:
                if error.errno != errno.EISCONN:
                    failed.append(f"from port {one.getsockname()[1]}: {error}")
    return failed


def test_connections_of_the_node_never_start_at_a_node_port(
    lab: Lab, manifests: ManifestFolder, settings_kept: None
) -> None:
    node = lab.nodes[0]
    ports = [port(number, 8080, "TCP", f"p{number}", number) for number in NODE_PORTS]
    web = service("web", ports, ["10.96.1.1", "fd00:10:96::1"], type_="NodePort")
    manifests.write("web", web, *dual_slices(lab, "web", ports, [lab.host("p21")]))
    netns.set_sysctls(node.netns, {LOCAL_RANGE: "32700 33000", RESERVED: "8080"})
    proxy = started(lab, manifests)
    proxy.wait_for(messages.SYNCED)
    assert netns.get_sysctl(node.netns, RESERVED) == "8080,32700-32767"
    for family in (4, 6):
        server = netns.open_socket(lab.client.netns, lab.client.address(family), "tcp")
        server.bind((lab.client.address(family), 9999))
        server.listen(256)
        with server:
            assert own_connections(lab, server, family) == []
            netns.set_sysctls(node.netns, {RESERVED: ""})
            assert own_connections(lab, server, family) != []
            netns.set_sysctls(node.netns, {RESERVED: "32700-32767"})
    proxy.kill()
    lab.run(node, [*RUN, "cleanup"])
    assert netns.get_sysctl(node.netns, RESERVED) == ""


def test_the_node_port_of_the_field_is_no_source_port_of_the_node(
    lab: Lab, manifests: ManifestFolder, settings_kept: None
) -> None:
    node = lab.nodes[0]
    manifests.write("np", *yaml.safe_load_all(FIELD_CASE.read_text()))
    netns.set_sysctls(node.netns, {LOCAL_RANGE: "30000 36000", RESERVED: ""})
    said = lab.run(node, [*RUN, "doctor", f"--manifests={manifests.path}"], check=False)
    assert "NodePorts (30000-32767) as source ports" in " ".join(said.split())
    started(lab, manifests).wait_for(messages.SYNCED)
    assert netns.get_sysctl(node.netns, RESERVED) == "30000-32767"
    said = lab.run(node, [*RUN, "doctor", f"--manifests={manifests.path}"], check=False)
    assert "as source ports" not in said


def test_a_changed_file_that_needs_more_rights_ends_nothing(
    lab: Lab, manifests: ManifestFolder, tmp_path: pathlib.Path, settings_kept: None
) -> None:
    manifests.write("web", WEB)
    path = tmp_path / "config.conf"
    path.write_text(edited())
    assert status(started(lab, manifests, f"--config={path}", "--init-only")) == 0
    proxy = started(lab, manifests, f"--config={path}", command=(*READ_ONLY, *RUN))
    proxy.wait_for(messages.SYNCED)
    path.write_text(edited(strictARP="true"))
    said = proxy.wait_for(messages.CONFIG_KEPT)
    assert "net.ipv4.conf.all.arp_ignore is 0 and cannot be set to 1" in str(said["err"])
    assert proxy.is_running()
    path.write_text(edited(scheduler="lc"))
    assert status(proxy) == 1


@pytest.mark.parametrize(
    ("arguments", "command", "words"),
    [
        (["--ipvs-scheduler=nonsense"], RUN, "load the module ip_vs_nonsense"),
        ([], ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *RUN), "CAP_NET_ADMIN"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    lab: Lab, manifests: ManifestFolder, arguments: list[str], command: tuple[str, ...], words: str
) -> None:
    proxy = started(lab, manifests, *arguments, command=command)
    assert status(proxy) == 1
    last = proxy.text().splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last


def test_timeouts_the_kernel_cannot_count_cost_nothing_else(lab: Lab, manifests: ManifestFolder) -> None:
    manifests.write("web", WEB)
    proxy = started(lab, manifests, "--ipvs-tcp-timeout=2000000h")
    proxy.wait_for(messages.SYNCED)
    (said,) = proxy.events(messages.TIMEOUTS_REFUSED)
    assert "Invalid argument" in str(said["err"])


def test_a_link_of_our_name_that_is_no_dummy_stays_and_is_reported(lab: Lab) -> None:
    node = lab.nodes[0]
    lab.run(node, ["ip", "link", "add", "kube-ipvs0", "type", "bridge"])
    try:
        with netns.inside(node.netns):
            done = subprocess.run([*RUN, "cleanup"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "cleanup did not complete: the link kube-ipvs0: it is no dummy link" in done.stderr
        assert "kube-ipvs0" in lab.run(node, ["ip", "link", "show"])
    finally:
        lab.run(node, ["ip", "link", "del", "kube-ipvs0"])


def test_signals_end_it_whatever_it_does(lab: Lab, manifests: ManifestFolder) -> None:
    manifests.write("web", WEB)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        proxy = started(lab, manifests)
        proxy.wait_for(messages.SYNCED)
        assert proxy.stop(number) == 128 + number
        proxy.kill()
