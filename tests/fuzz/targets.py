"""What is fuzzed: functions from any bytes to a count of what was made of them; what is wrong is an exception.

A target gives its bytes to the code as a file, a server's answer or a connection would. It knows which errors that
code may raise; every other one is a finding, and so is an assertion here. The count (objects, elements, messages,
answers) is what the work may grow with, besides the size of the input: `bounds`.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import pathlib
import struct
import tempfile
from collections.abc import Callable
from typing import Any

import structlog
from pyroute2.netlink.generic.ipvs import ipvsmsg

from ipvsproxy.base.address import format_ip
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.check import problems
from ipvsproxy.config.document import KUBE_PROXY, OURS, ConfigFileError, decode, text
from ipvsproxy.config.settle import settle
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.exchange.report import LookUps
from ipvsproxy.kernel.wire import ipvs
from ipvsproxy.kube import kubeconfig as kubeconfigs
from ipvsproxy.kube import manifest_file
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.kube.decoded import InvalidObject
from ipvsproxy.kube.text import Unreadable
from ipvsproxy.plan.diff import IpvsStep
from ipvsproxy.serve import http, pages
from ipvsproxy.serve.health import Health, responder
from ipvsproxy.serve.metrics import Metrics
from nft.client import Libnftables
from nft.transaction import Table, Transaction
from tests.support.hostile_node import GOOD, of_good, served

FAMILY = 33
TABLE = Table("inet", "ipvsproxy")
MOST_COMPARED = 500
LONGEST_REASON = 3000


def quiet() -> None:
    """Log nothing: nobody reads it, and it would be most of the work."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def decoding(data: bytes) -> int:
    """An object as it comes from the API server."""
    for kind in Kind:
        try:
            found = decode_json(kind, data)
        except InvalidObject as error:
            assert len(str(error)) < LONGEST_REASON
        else:
            assert sum(map(len, found.complaints)) < LONGEST_REASON * 10
    return 1


def manifests(data: bytes) -> int:
    """A file of a folder of manifests, under each name that decides how it is read."""
    found = 0
    for name in ("a.yaml", "a.json"):
        try:
            content = manifest_file.parse(name, data)
        except Unreadable as error:
            assert len(error.reason) < LONGEST_REASON
        else:
            found += len(content.good) + len(content.refused)
    return found


LIMITS = {"service_limit": 5000, "namespace_limit": 20_000, "node_limit": 40_000}
"""Below those of a node: one input should not take a second."""


@functools.cache
def _expected() -> Any:
    return of_good(served(GOOD)[0])


class _Rounds:
    """What is looked at after each list of objects: the good Service, the bytes for netlink, and what is left."""

    def __init__(self, bad: list[dict[str, Any]]) -> None:
        self.made = 0
        self._others_alone = not any(_is_about_good(item) for item in bad)
        self._seen = 0

    def __call__(self, node: Any, objects: list[Any]) -> None:
        if not objects:
            assert not node.ipvs.table
            assert not node.links.present
        elif self._others_alone:
            assert of_good(node) == _expected()
        texts = node.nft.transactions[self._seen :]
        self._seen = len(node.nft.transactions)
        on_kernel(texts)
        for step in node.ipvs.steps:
            check_messages(step)
        self.made += sum(step.size for step in node.ipvs.steps) + sum(text.count(",") + 1 for text in texts)
        node.ipvs.steps.clear()


def _is_about_good(item: dict[str, Any]) -> bool:
    """Whether an object is a Node, or has a name, an address or a port of the good Service."""
    words = json.dumps(item)
    return any(word in words for word in ('Node"', '"good', "10.96.0.100", "31000", "31001", "10.244.1."))


def objects(data: bytes) -> int:
    """A list of objects beside good ones: planned, as text for nftables and bytes for netlink, and taken away."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return 0
    bad = [item for item in (found if isinstance(found, list) else [found]) if isinstance(item, dict)]
    rounds = _Rounds(bad)
    try:
        served([*bad, *GOOD], [GOOD, []], rounds, **LIMITS)
    finally:
        forget_on_kernel()
    return rounds.made


@functools.cache
def _library() -> Libnftables | None:
    """The real library, where there is a network namespace with nothing in it."""
    return Libnftables() if os.environ.get("FUZZ_OWN_NETWORK") == "1" else None


def _run(library: Libnftables, text: str) -> None:
    transaction = Transaction(TABLE)
    transaction.load(text)
    library.run(transaction)


def on_kernel(texts: list[str]) -> None:
    """Carry out transactions; none may be refused. Raises NftError."""
    library = _library()
    for lines in texts if library else ():
        _run(library, lines)


def forget_on_kernel() -> None:
    """Remove what the transactions have made."""
    library = _library()
    for family in ("inet", "arp", "ip", "ip6") if library else ():
        _run(library, f"add table {family} {TABLE.name}\ndelete table {family} {TABLE.name}\n")


def check_messages(step: IpvsStep) -> None:
    """Fail unless pyroute2 reads in the messages of a step what the step says."""
    for piece in ipvs.pieces(step):
        data = ipvs.encode(FAMILY, piece, 7)
        assert len(data) < 1 << 16
        parts = list(ipvs.single(piece))
        for part in parts[:MOST_COMPARED]:
            (length,) = struct.unpack_from("=I", data)
            _compare(ipvsmsg(data[:length]), part)
            data = data[length:]
        assert len(parts) > MOST_COMPARED or not data


def _compare(message: Any, part: IpvsStep) -> None:
    message.decode()
    service, target = (message.get_attr(f"IPVS_CMD_ATTR_{name}") for name in ("SERVICE", "DEST"))
    assert message["cmd"] == part.verb
    assert service.get_attr("IPVS_SVC_ATTR_ADDR") == format_ip(part.key.address)
    assert service.get_attr("IPVS_SVC_ATTR_PORT") == part.key.port
    assert service.get_attr("IPVS_SVC_ATTR_PROTOCOL") == part.key.protocol
    assert (target is None) is (not part.destinations)
    for destination in part.destinations:
        assert target.get_attr("IPVS_DEST_ATTR_ADDR") == format_ip(destination.address)
        assert target.get_attr("IPVS_DEST_ATTR_PORT") == destination.port
        assert target.get_attr("IPVS_DEST_ATTR_WEIGHT") == part.attributes.weight


@functools.cache
def _folder() -> pathlib.Path:
    made = tempfile.TemporaryDirectory()
    _folders.append(made)
    return pathlib.Path(made.name)


_folders: list[Any] = []


def configuration(data: bytes) -> int:
    """The file of --config, and that of --extra-config; what is understood is written and read again."""
    path = _folder() / "config"
    path.write_bytes(data)
    for form, flag in ((KUBE_PROXY, "--config"), (OURS, "--extra-config")):
        try:
            decode(data, form)
            settings = settle({flag: str(path)}, {})
        except ConfigFileError as error:
            assert str(error)
            continue
        if list(problems(settings)):
            continue
        assembled(settings, "node1")
        decode(text(settings.values).encode(), KUBE_PROXY)
    return 1


def kubeconfig(data: bytes) -> int:
    """A kubeconfig; no server is asked and no program started."""
    path = _folder() / "kubeconfig"
    path.write_bytes(data)
    try:
        kubeconfigs.read_kubeconfig(path)
    except kubeconfigs.KubeconfigError as error:
        assert "\n" not in str(error)
    return 1


class _Connection:
    """A connection whose client sends all that it has to say and then closes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.said = io.BytesIO()

    def makefile(self, mode: str, *_: object) -> io.BufferedIOBase:
        return io.BytesIO(self._data) if "r" in mode else _Kept(self.said)

    def settimeout(self, _: float) -> None:
        pass

    setsockopt = getsockopt = lambda *_: None


class _Kept(io.BytesIO):
    """What is written stays when it is closed."""

    def __init__(self, into: io.BytesIO) -> None:
        super().__init__()
        self._into = into

    def write(self, data: Any) -> int:
        return self._into.write(data)


class _Server:
    def __init__(self, respond: Callable[[http.Request], http.HttpAnswer]) -> None:
        self.asked = 0
        self._respond = respond

    def respond(self, request: http.Request) -> http.HttpAnswer:
        self.asked += 1
        return self._respond(request)


@functools.cache
def _responders() -> tuple[Callable[[http.Request], http.HttpAnswer], ...]:
    """What answers at the port of metrics and at that of health, as `outside` and `serve.board` do it."""
    settings = assembled(settle({}, {}), "node1")
    book = pages.Pages()
    book.add("/configz", pages.configz(settings.document, settings.own_document))
    book.add("/flagz", pages.flagz(settings.flags))
    book.add("/statusz", pages.statusz(settings.kubernetes_version))
    book.add("/debug/flags/v", pages.verbosity(lambda _: None))
    book.add("/metrics", pages.metrics(Metrics((4, 6)).exposition))
    book.add("/metrics/slis", pages.slis)
    book.add("/frontends", pages.frontends(LookUps))
    return book.respond, responder(Health(30.0, (4, 6)), lambda *_: None)


def connections(data: bytes) -> int:
    """What a client sends to the ports of metrics and of health: raw bytes."""
    asked = 0
    for respond in _responders():
        server, connection = _Server(respond), _Connection(data)
        http._Handler(connection, ("127.0.0.1", 1), server)
        said = connection.said.getvalue()
        assert not said or said.startswith(b"HTTP/1.1 "), said[:100]
        assert said.count(b"HTTP/1.1 500") == 0
        asked += server.asked
    return asked


TARGETS: dict[str, Callable[[bytes], int]] = {
    "configuration": configuration,
    "connections": connections,
    "decoding": decoding,
    "kubeconfig": kubeconfig,
    "manifests": manifests,
    "objects": objects,
}
