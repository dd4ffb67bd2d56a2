"""What is said about Services: sums, and no more of one namespace than its budget."""

import msgspec
from structlog.testing import capture_logs

from ipvsproxy.base.budget import LINES
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.model import Node
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, service, slice_of
from tests.support.memory_kernel import MemoryNode

ADDRESSES = [f"198.51.100.{n}" for n in range(1, 200)]


class RefusalReports(Report):
    def __init__(self):
        self.said = []

    def refused(self, service, reason):
        self.said.append((f"{service.namespace}/{service.name}", reason))


class LoggingProxy:
    def __init__(self):
        self.heard = RefusalReports()
        self.now = 0.0
        self.loop = make_loop(config(), Inbox(), MemoryNode().kernel(), lambda: self.now, self.heard)
        objects = {Kind.NODE: {"node1": Node("node1")}}
        self.loop.reconcile([Listed(kind, objects.get(kind, {})) for kind in Kind])

    def turn(self, *events):
        with capture_logs() as lines:
            self.loop.reconcile(list(events))
        return [line for line in lines if line["log_level"] != "debug"]


def made(name, namespace="tenant", created="2026", **settings):
    return msgspec.structs.replace(
        service(name, created=created, external_ips=ADDRESSES, **settings), namespace=namespace
    )


def changed(item):
    return Changed(Kind.SERVICE, item.key, item)


def test_a_service_that_gets_none_of_many_frontends_is_one_line_and_one_event():
    here = LoggingProxy()
    here.turn(changed(made("a", ips=["10.96.0.1"], created="2020")))
    lines = here.turn(changed(made("b", ips=["10.96.0.2"])))
    assert [(line["service"], line["count"]) for line in lines] == [("tenant/b", len(ADDRESSES))]
    [(key, reason)] = here.heard.said
    assert key == "tenant/b"
    assert reason.startswith("198.51.100.1:80/TCP is held by the Service tenant/a; ")
    assert reason.endswith("; and 194 more")


def test_what_is_known_is_not_reported_again_when_others_change():
    here = LoggingProxy()
    here.turn(changed(made("a", ips=["10.96.0.1"], created="2020")), changed(made("b", ips=["10.96.0.2"])))
    here.heard.said.clear()
    assert here.turn(changed(service("other", ["10.96.0.3"]))) == []
    pods = slice_of("web", "10.244.1.1")
    assert here.turn(Changed(Kind.ENDPOINT_SLICE, pods.key, pods)) == []
    assert here.heard.said == []


def test_a_flapping_tenant_has_its_lines_and_no_more():
    here, count = LoggingProxy(), 0
    here.turn(changed(made("a", ips=["10.96.0.1"], created="2020")))
    for _ in range(100):
        lines = here.turn(changed(made("b", ips=["10.96.0.2"])))
        count += len(lines)
        here.turn(Removed(Kind.SERVICE, "tenant/b"))
    assert count == LINES.burst
    # Others are heard.
    lines = here.turn(changed(made("c", "default", ips=["10.96.0.4"], created="2027")))
    assert [line["service"] for line in lines] == ["default/c"]
    # And the rest is summed up with the next verification.
    here.now += 31
    [summed] = [line for line in here.turn() if line.get("namespace")]
    assert (summed["namespace"], summed["count"]) == ("tenant", 100 - LINES.burst)
