"""Random histories on the real kernel: each ends where a cold start in another namespace ends.

The same machine as in tests/unit/scenarios/test_equivalence.py, with real servers, VIPs and rules;
HISTORIES and STEPS, too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from structlog.testing import capture_logs

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.plan import ledger
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import DestinationAttributes, ServerAttributes, Vip, VipForm
from tests.lab import netns
from tests.lab.real_kernel import RealNode, assert_same_rules
from tests.support.build import destination
from tests.support.clock import Clock
from tests.support.histories import FOREIGN, SETTLING_SECONDS, History, ProxyRun
from tests.support.random_objects import NODE_ADDRESS

HERE, THERE = "history", "cold"


@pytest.fixture(autouse=True, scope="module")
def _namespaces():
    before = ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW
    ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW = 4, 2
    for name in (HERE, THERE):
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    with capture_logs(), netns.inside(HERE):
        yield
    for name in (HERE, THERE):
        subprocess.run(["ip", "netns", "del", name], check=True)
    ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW = before


class RealHistory(History):
    """A history on the real kernel. Its order is watched in memory; here the ends are compared."""

    connections = tamper_with_an_element = None

    def new_node(self):
        return RealNode([NODE_ADDRESS])

    def watch(self):
        pass

    @rule(data=st.data())
    def tamper_with_a_server(self, data):
        servers = self.node.servers()
        name = data.draw(st.sampled_from(sorted({*servers, *FOREIGN})))
        what = data.draw(st.sampled_from([Verb.DEL_SERVICE, Verb.NEW_SERVICE, Verb.SET_DEST, Verb.DEL_DEST]))
        self.tampered = True
        targets = tuple(servers[name].destinations) if name in servers else ()
        if what is Verb.NEW_SERVICE or name not in servers:
            target = destination("10.244.2.9:80") if len(name.address) == 4 else ()
            self.node.tamper(
                [IpvsStep(Verb.NEW_SERVICE, name, ServerAttributes("wrr", 0, 0), (target,) if target else ())]
            )
        elif what is Verb.DEL_SERVICE:
            self.node.tamper([IpvsStep(what, name)])
        elif targets:
            self.node.tamper([IpvsStep(what, name, None, targets, DestinationAttributes(7))])

    @rule(what=st.sampled_from(["link", "vips", "foreign", "rules", "everything"]))
    def tamper(self, what):
        self.tampered = True
        if what in ("link", "everything"):
            self.node.delete_link()
        if what in ("vips", "everything"):
            self.node.delete_vips()
        if what in ("rules", "everything"):
            self.node.delete_table()
        if what == "foreign":
            self.node.add_vip(Vip(parse_ip("10.99.9.9"), VipForm.ADDRESS))
        if what == "everything":
            self.node.tamper([IpvsStep(Verb.DEL_SERVICE, name) for name in self.node.servers()])

    @rule()
    def settle(self):
        self.node.faults.coming.clear()
        self._pass(SETTLING_SECONDS)
        self.tampered = False
        before = self.node.writes, self.node.transactions
        self._pass(31)
        assert (self.node.writes, self.node.transactions) == before
        *found, rules = self._state(self.node)
        with netns.inside(THERE):
            *expected, wanted = self._cold()
        assert found == expected
        assert_same_rules(rules, wanted)
        assert len(rules) > len(Kind)  # the table is there, with its sets and chains

    def _cold(self):
        with contextlib.closing(RealNode(self.node.links.others)) as cold:
            clock = Clock()
            # What comes first on an empty node may have held a frontend of an older Service for a moment, and a
            # part of the ruleset that only this moment needed stays until the next start.
            for _ in range(2):
                process = ProxyRun(cold, self.objects, clock, vip_mode=self.mode, **self.limits)
                process.list()
                clock.now += 5
                process.loop.reconcile([])
            return self._state(cold)

    def teardown(self):
        if hasattr(self, "node"):
            try:
                self.settle()
            finally:
                self.node.close()

    def _state(self, node):
        """Servers but excluded ones, VIPs (in mode auto without their form), rules."""
        servers = {str(k): v for k, v in node.servers().items() if k != FOREIGN[1]}
        vips = {vip.address if self.mode is VipMode.AUTO else vip for vip in node.vips()}
        return servers, vips, node.rules()

    def _check(self):
        pass


TestRealHistories = RealHistory.TestCase
TestRealHistories.pytestmark = [pytest.mark.needs("root", "ip_vs", "nf_tables", "namespaces")]
TestRealHistories.settings = settings(
    max_examples=int(os.environ.get("HISTORIES", "10")),
    stateful_step_count=int(os.environ.get("STEPS", "15")),
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
