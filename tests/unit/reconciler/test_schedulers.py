"""A scheduler that the kernel does not have: the Service is served with another one, until it is there."""

from unittest.mock import Mock

import pytest

from ipvsproxy.exchange.inbox import Changed, Kind, SchedulersFound
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.schedulers import Schedulers
from ipvsproxy.plan.state import PERSISTENT, ServerAttributes
from tests.support.build import endpoint, key, service, slice_of
from tests.support.memory_kernel import MemoryNode
from tests.support.memory_proxy import MemoryProxy, RefusalRecorder

WEB, OTHER = key("10.96.0.10:80"), key("10.96.0.11:80")
MISSING = (
    "the kernel has no scheduler mh, and the module ip_vs_mh could not be loaded: rr is used until it is there"
)


class ProxyWithSchedulers(MemoryProxy):
    """A node, and what runs beside its loop when a test lets it."""

    def __init__(self, *services, lacks=(), node=None, is_slow=False, no_thread=False, **settings):
        self.waiting, self.is_slow, self.no_thread = [], is_slow, no_thread
        node = node or MemoryNode()
        node.host.lacks_schedulers |= {*lacks}
        heard, parts = RefusalRecorder(), {"aside": self.aside}
        super().__init__(services, ["10.244.1.1"], heard=heard, node=node, parts=parts, **settings)
        self.is_slow = True
        self.turn(*self.inbox.take(0))

    def aside(self, work):
        """Before the start has ended, as quickly as a module is loaded that is in memory; then as a test says."""
        if self.no_thread:
            raise RuntimeError("can't start new thread")
        if self.is_slow:
            self.waiting.append(work)
        else:
            work()

    def put(self, item):
        self.turn(Changed(Kind.SERVICE, item.key, item))
        self.turn()

    def answer(self):
        """Let all run that waits beside the loop, and the loop take the answers."""
        waiting, self.waiting[:] = [*self.waiting], []
        for work in waiting:
            work()
        self.turn(*self.inbox.take(0))

    def scheduler(self, name=WEB):
        return self.node.ipvs.table[name].server.scheduler


def test_the_start_asks_before_anything_is_programmed():
    here = ProxyWithSchedulers(service(scheduler="mh"), service("other", ["10.96.0.11"]))
    assert here.scheduler() == "mh"
    assert here.waiting == []


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("ipvsproxy.reconciler.schedulers.START_SECONDS", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_start_does_not_wait_long_for_the_module_of_a_scheduler():
    here = ProxyWithSchedulers(service(scheduler="mh"), service("other", ["10.96.0.11"]), is_slow=True)
    assert (here.scheduler(), here.scheduler(OTHER)) == ("rr", "rr")
    assert (len(here.waiting), here.heard.heard) == (1, [])
    here.put(service("new", ["10.96.0.12"], scheduler="sh"))
    assert here.scheduler(key("10.96.0.12:80")) == "rr"
    assert len(here.waiting) == 1
    here.answer()
    here.answer()
    assert (here.scheduler(), here.scheduler(key("10.96.0.12:80"))) == ("mh", "sh")
    assert here.loop.timeout() > 0


def test_the_answer_that_the_start_waited_for_ends_no_later_question():
    here = ProxyWithSchedulers(
        service(), service("other", ["10.96.0.11"]), service_defaults=(("scheduler", "sh"),)
    )
    early = here.loop.parts.schedulers._taken
    assert early == {"sh": True}
    here.put(service(scheduler="mh"))
    here.turn(SchedulersFound(early))
    here.put(service("other", ["10.96.0.11"], scheduler="wlc"))
    assert len(here.waiting) == 1


def test_a_missing_scheduler_is_reported_once_and_the_configured_one_used():
    here = ProxyWithSchedulers(
        service(scheduler="mh"), service("other", ["10.96.0.11"], scheduler="sh"), lacks=["mh"]
    )
    assert (here.scheduler(), here.scheduler(OTHER)) == ("rr", "sh")
    assert here.heard.heard == [("web", MISSING)]
    here.put(service(scheduler="mh", affinity_seconds=60))
    assert here.heard.heard == [("web", MISSING)]


def test_one_that_is_asked_for_while_the_proxy_runs_is_looked_for_beside_the_loop():
    here = ProxyWithSchedulers(service(), service("other", ["10.96.0.11"]))
    here.put(service(scheduler="mh"))
    assert here.scheduler() == "rr"
    assert here.heard.heard == []
    here.put(service("other", ["10.96.0.11"], scheduler="mh"))
    assert len(here.waiting) == 1
    here.answer()
    assert (here.scheduler(), here.scheduler(OTHER)) == ("mh", "mh")
    assert here.loop.timeout() > 0


def test_a_service_stays_on_ipvs_until_its_scheduler_is_known():
    here = ProxyWithSchedulers(service(scheduler="sh"), data_path="auto")
    here.put(service(scheduler="mh"))
    assert here.scheduler() == "rr"
    here.answer()
    assert here.scheduler() == "mh"


TWO_PODS = slice_of("other", endpoint("10.244.1.1", name="other-1"), endpoint("10.244.1.2", name="other-2"))


def test_a_service_on_the_short_path_needs_no_scheduler():
    """Its weights count, whatever the kernel has."""
    here = ProxyWithSchedulers(service(), data_path="auto", lacks=["wrr"])
    here.turn(Changed(Kind.ENDPOINT_SLICE, "default/other", TWO_PODS))

    def put(weight):
        here.put(service("other", ["10.96.0.11"], scheduler="wrr", weights=(("other-1", weight), ("other-2", 1))))
        return here.node.nft.sets["frontends4"]["10.96.0.11 . tcp . 80"]

    assert (put(3), here.waiting) == ("goto endpoints_4", [])
    assert put(100) == "goto own"  # more than there are places
    assert (here.scheduler(OTHER), len(here.waiting)) == ("rr", 1)
    here.answer()
    assert ("other", MISSING.replace("mh", "wrr")) in here.heard.heard
    assert put(2) == "goto endpoints_3"


def test_nothing_is_reported_about_the_scheduler_that_is_used_in_between():
    here = ProxyWithSchedulers(service())
    here.put(service(scheduler="mh", scheduler_flags=("mh-port",)))
    assert here.heard.heard == []
    here.answer()
    assert here.heard.heard == []


def test_one_that_comes_later_is_found():
    here = ProxyWithSchedulers(service(), lacks=["mh"])
    here.put(service(scheduler="mh"))
    here.answer()
    assert (here.scheduler(), here.heard.heard) == ("rr", [("web", MISSING)])
    here.node.host.lacks_schedulers.clear()
    here.turn()
    assert here.waiting == []
    here.now += 31
    here.turn()
    here.answer()
    assert here.scheduler() == "mh"
    here.now += 31
    here.turn()
    assert here.waiting == []


def test_a_default_of_the_node_that_is_missing():
    here = ProxyWithSchedulers(service(), lacks=["mh"], service_defaults=(("scheduler", "mh"),))
    assert (here.scheduler(), here.heard.heard) == ("rr", [("web", MISSING)])
    here.node.host.lacks_schedulers.clear()
    here.now += 31
    here.turn()
    here.answer()
    assert here.scheduler() == "mh"


def test_a_persistence_engine_that_is_missing_leaves_affinity_by_address():
    call = service(ports=((5060, 0, "UDP"),), affinity_seconds=60, affinity_engine="sip")
    sip = key("10.96.0.10:5060/UDP")
    here = ProxyWithSchedulers(call, lacks=["pe_sip"])
    assert here.node.ipvs.table[sip].server == ServerAttributes("rr", PERSISTENT, 60)
    (said,) = here.heard.heard
    assert "no persistence engine sip, and the module ip_vs_pe_sip could not be loaded" in said[1]
    here.node.host.lacks_schedulers.clear()
    here.now += 31
    here.turn()
    here.answer()
    assert here.node.ipvs.table[sip].server == ServerAttributes("rr", PERSISTENT, 60, None, "sip")


def test_schedulers_of_adopted_servers_need_no_look():
    node = MemoryNode()
    ProxyWithSchedulers(service(scheduler="mh"), node=node)
    here = ProxyWithSchedulers(service(scheduler="mh"), node=node, lacks=["mh"])
    assert here.scheduler() == "mh"
    assert here.heard.heard == []


def test_one_that_no_service_asks_for_any_more_is_not_looked_for():
    here = ProxyWithSchedulers(service(scheduler="mh"), lacks=["mh"])
    here.put(service())
    here.now += 31
    here.turn()
    assert here.waiting == []
    assert here.loop.timeout() > 0
    here.put(service(scheduler="mh"))
    assert len(here.waiting) == 1


def test_without_a_thread_services_are_served_and_it_is_tried_again():
    here = ProxyWithSchedulers(service())
    here.no_thread = True
    here.put(service(scheduler="mh"))
    here.put(service("new", ["10.96.0.12"]))
    assert (here.scheduler(), here.scheduler(key("10.96.0.12:80"))) == ("rr", "rr")
    assert here.loop.timeout() > 0
    here.no_thread = False
    here.now += 1
    here.turn()
    here.answer()
    assert here.scheduler() == "mh"


@pytest.mark.usefixtures("impatient")
def test_engines_of_adopted_servers_need_no_look():
    call = service(ports=((5060, 0, "UDP"),), affinity_seconds=60, affinity_engine="sip")
    node = MemoryNode()
    ProxyWithSchedulers(call, node=node)
    here = ProxyWithSchedulers(call, node=node, is_slow=True)
    assert here.node.ipvs.table[key("10.96.0.10:5060/UDP")].server.engine == "sip"
    assert here.waiting == []


def test_a_start_without_a_thread_serves_all_the_same():
    here = ProxyWithSchedulers(service(scheduler="mh"), no_thread=True)
    assert here.scheduler() == "rr"
    here.no_thread = False
    here.now += 1
    here.turn()
    here.answer()
    assert here.scheduler() == "mh"


@pytest.mark.parametrize("error", [KernelError("IPVS scheduler mh", 105), ValueError("a reply that is none")])
def test_what_cannot_be_found_out_is_asked_again(monkeypatch, error):
    here = ProxyWithSchedulers(service())
    monkeypatch.setattr(here.node.host, "has_scheduler", Mock(side_effect=error))
    here.put(service(scheduler="mh"))
    here.answer()
    assert here.scheduler() == "rr"
    monkeypatch.undo()
    here.now += 31
    here.turn()
    here.answer()
    assert here.scheduler() == "mh"


@pytest.mark.parametrize("name", ["", "mh"])
def test_where_no_one_asks_all_are_taken_to_be_there(name):
    wanted = service(scheduler=name)
    assert Schedulers("rr").usable(wanted) == (wanted, [], True)
