"""Errors that the kernel itself gives, none made up. What remains is what a cold start in another namespace makes.

Also shown by real refusals elsewhere: memory that runs out (test_faults), messages that IPVS refuses (test_ipvs).
What no program can have this kernel answer is injected: tests/unit/scenarios/test_equivalence, test_equivalence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Kind, Removed
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, message
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.state import ServerAttributes, Vip, VipForm
from nft import Libnftables, Transaction
from tests.lab import netns
from tests.lab.real_kernel import RealNode, assert_same_rules
from tests.support.build import destination, key, service, slice_of
from tests.support.clock import Clock
from tests.support.histories import ProxyRun
from tests.support.random_objects import NODE_ADDRESS

pytestmark = pytest.mark.needs("root", "ip_vs", "nf_tables", "namespaces")

HERE, THERE = "faults", "cold"
WEB, OTHER = "10.96.0.10", "10.96.0.11"
MANY = 300
UDP = ((53, "UDP", ""),)


@pytest.fixture(autouse=True)
def _namespaces() -> Iterator[None]:
    for name in (HERE, THERE):
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    with netns.inside(HERE):
        yield
    for name in (HERE, THERE):
        subprocess.run(["ip", "netns", "del", name], check=True)


class ContestedKernel:
    """A proxy on a real kernel, and others who can change it at the same moment."""

    def __init__(self) -> None:
        self.node, self.clock = RealNode([NODE_ADDRESS]), Clock()
        self.objects = {(Kind.NODE, "node1"): Node("node1", (NODE_ADDRESS,))}
        for item in (service(), slice_of("web", "10.244.1.1", "10.244.1.2")):
            self.objects[_kind(item), item.key] = item
        self.process = ProxyRun(self.node, self.objects, self.clock)
        self.process.list()

    def change(self, *items) -> list[dict]:
        """Have objects change in one turn; return what was logged."""
        self.objects.update({(_kind(item), item.key): item for item in items})
        return self._turn([Changed(_kind(item), item.key, item) for item in items])

    def remove(self, *items) -> list[dict]:
        for item in items:
            del self.objects[_kind(item), item.key]
        return self._turn([Removed(_kind(item), item.key) for item in items])

    def _turn(self, events) -> list[dict]:
        with capture_logs() as logs:
            self.process.loop.reconcile(events)
        return logs

    def wait(self, seconds: float) -> list[dict]:
        self.clock.now += seconds
        return self._turn([])

    def state(self):
        return self.node.servers(), self.node.vips(), self.node.rules()

    def settle(self) -> None:
        """What is pending is tried again; then all is as after a cold start, and nothing is written any more."""
        for _ in range(20):
            self.wait(5)
        before = self.node.writes, self.node.transactions
        self.wait(31)
        assert (self.node.writes, self.node.transactions) == before
        with netns.inside(THERE), contextlib.closing(RealNode([NODE_ADDRESS])) as cold:
            ProxyRun(cold, self.objects, Clock()).list()
            *expected, wanted = cold.servers(), cold.vips(), cold.rules()
        *found, rules = self.state()
        assert found == expected
        assert_same_rules(rules, wanted)


def _kind(item) -> Kind:
    return Kind.SERVICE if hasattr(item, "cluster_ips") else Kind.ENDPOINT_SLICE


@pytest.fixture
def contested(_namespaces) -> Iterator[ContestedKernel]:
    made = ContestedKernel()
    yield made
    made.node.close()


def errors(logs) -> list[str]:
    return [line["event"] for line in logs if line["log_level"] == "error"]


def nft(verb: str, *elements: tuple[str, ...]) -> None:
    transaction = Transaction(TABLE)
    getattr(transaction, f"{verb}_elements")(elements)
    Libnftables().run(transaction)


def test_eexist(contested: ContestedKernel) -> None:
    """A server, a VIP and a verdict of a Service were there before it: each is made what it should be."""
    stranger = destination("10.9.9.9:9")
    contested.node.tamper(
        [IpvsStep(Verb.NEW_SERVICE, key(f"{OTHER}:80"), ServerAttributes("sh", 0, 0), (stranger,))]
    )
    contested.node.add_vip(Vip(parse_ip(OTHER), VipForm.ADDRESS))
    nft("add", ("frontends4", f"{OTHER} . tcp . 80", "drop"))
    logs = contested.change(service("other", [OTHER]), slice_of("other", "10.244.1.3"))
    (said,) = [line for line in logs if line["log_level"] == "error"]
    assert said["event"] == messages.NFTABLES_REFUSED
    assert os.strerror(errno.EEXIST) in said["err"]
    contested.settle()


def test_esrch_and_enoent(contested: ContestedKernel) -> None:
    """A server, destinations and an element went just before they were to be changed."""
    contested.change(service("other", [OTHER]), slice_of("other", "10.244.1.3", "10.244.1.4"))
    contested.node.tamper([IpvsStep(Verb.DEL_SERVICE, key(f"{WEB}:80"))])
    contested.node.tamper([IpvsStep(Verb.DEL_DEST, key(f"{OTHER}:80"), None, (destination("10.244.1.4:8080"),))])
    logs = contested.change(slice_of("web", "10.244.1.1", "10.244.1.5"), slice_of("other", "10.244.1.3"))
    assert {line["err"] for line in logs if line["event"] == messages.IPVS_REFUSED} == {
        os.strerror(errno.ESRCH), os.strerror(errno.ENOENT),
    }  # fmt: skip
    nft("delete", ("frontends4", f"{OTHER} . tcp . 80"))
    assert errors(contested.change(slice_of("other"))) == [messages.NFTABLES_REFUSED]
    contested.settle()


def test_enodev_and_eaddrnotavail(contested: ContestedKernel) -> None:
    """kube-ipvs0 went before a VIP was bound; a VIP went before it was unbound."""
    contested.node.delete_link()
    other = service("other", [OTHER])
    logs = contested.change(other)
    assert [line["err"] for line in logs if line["event"] == messages.VIP_REFUSED] == [os.strerror(errno.ENODEV)]
    contested.settle()
    contested.node.delete_vips()
    assert errors(contested.remove(other)) == []
    contested.settle()


def test_enobufs(contested: ContestedKernel) -> None:
    """So many refusals that they do not fit into the receive buffer: which ones there were is lost."""
    pods = [f"10.244.2.{n}" for n in range(1, 200)]
    dns = service("dns", [OTHER], ((53, 0, "UDP"),))
    contested.change(dns, slice_of("dns", *pods, ports=UDP))
    (wire,) = [w for w in contested.node._handles if hasattr(w, "_wire")]
    wire._wire._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes its least of it
    contested.node.tamper([IpvsStep(Verb.DEL_SERVICE, key(f"{OTHER}:53/UDP"))])
    logs = contested.change(slice_of("dns", *(pod.replace(".2.", ".3.") for pod in pods), ports=UDP))
    (said,) = [line for line in logs if line["event"] == messages.IPVS_REPLIES_LOST]
    assert os.strerror(errno.ENOBUFS) in said["err"]
    contested.settle()


def test_ebusy() -> None:
    """One listing at a time for each socket: the kernel says so, and the next question is answered."""
    netns.ip(None, *(f"address add 10.1.{n // 250}.{n % 250 + 1}/32 dev lo" for n in range(1500)))
    wire, question = Wire(socket.NETLINK_ROUTE), message(22, 0, bytes(8))
    wire._send_request(question, 0x300)  # and nobody reads the answer
    outcomes = []
    for _ in range(10):
        try:
            outcomes.append(len(wire.dump(question)))
        except KernelError as error:
            outcomes.append(error.errno)
    wire.close()
    assert errno.EBUSY in outcomes
    assert outcomes[-1] >= 1500


@contextlib.contextmanager
def interrupted(seconds: float = 0.0005) -> Iterator[list[int]]:
    """Have this thread interrupted by a signal again and again, wherever it is; each one is noted."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_eintr(contested: ContestedKernel) -> None:
    """Signals during system calls of all kinds, libnftables' own included."""
    assert threading.current_thread() is threading.main_thread()
    many = [service(f"s{n}", [f"10.96.{n // 100 + 1}.{n % 100 + 1}"]) for n in range(MANY)]
    slices = [slice_of(f"s{n}", f"10.244.1.{n % 200 + 1}", "10.244.2.1") for n in range(MANY)]
    with interrupted() as seen:
        for step in range(0, MANY, 50):
            contested.change(*many[step : step + 50], *slices[step : step + 50])
        for _ in range(20):
            contested.wait(31)
        contested.remove(*many[:50])
    assert len(seen) > 100
    contested.settle()


class Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


CAP_NET_ADMIN, VERSION_3 = 12, 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def without_net_admin() -> Iterator[None]:
    """Take CAP_NET_ADMIN from this thread."""
    header, data = ctypes.create_string_buffer(struct.pack("=Ii", VERSION_3, 0), 8), (Capabilities * 2)()
    assert _libc.capget(header, data) == 0
    full = data[0].effective
    data[0].effective = full & ~(1 << CAP_NET_ADMIN)
    assert _libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0].effective = full
        assert _libc.capset(header, data) == 0


def test_eperm(contested: ContestedKernel) -> None:
    """Rights that are taken away for a while cost changes, which come later, and nothing that works."""
    before = contested.state()
    with without_net_admin():
        logs = contested.change(service("other", [OTHER]), slice_of("other", "10.244.1.3"))
        logs += contested.change(slice_of("web", "10.244.1.1"))
        for _ in range(10):
            logs += contested.wait(10)
    assert any(os.strerror(errno.EPERM) in str(line.get("err")) for line in logs)
    assert contested.state() == before
    contested.settle()
