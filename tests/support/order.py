"""Watches every single change of a kernel in memory for the order of things (contract 4.1, P1 to P3)."""

from ipvsproxy.base.address import format_ip, parse_cidr
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.rules import elements
from ipvsproxy.plan.state import Path
from ipvsproxy.ruleset.codec import key_text
from ipvsproxy.ruleset.elements import is_short
from tests.support.build import weights
from tests.support.elements import element, value

EXCLUDED = "10.98.0.0/16"
MARKS = {"internal_views": "viewed", "short_views": "viewed", "ranged": "ranged_vips"}
"""By set or map of frontends: the set that all their addresses are in."""


class Guard:
    """Watches each change of a kernel in memory: nothing live goes, nothing answers without its rules."""

    def __init__(self, history):
        self.history, self.node = history, history.node
        self.before = self.look()

    def look(self):
        node = self.node
        table = {name: (state.server, weights(state)) for name, state in node.ipvs.table.items()}
        rules = {(name, item): value for name, items in node.nft.sets.items() for item, value in items.items()}
        return table, {vip.address for vip in node.links.present}, rules

    def __call__(self):
        self.history.sound = False
        before, self.before = self.before, self.look()
        running = self.history.process.loop._wanted
        # Between slices, what is wanted is what has been planned.
        ledger = running if running.backlog else self.history.wanted()[1]
        self._servers(before[0], self.before[0], ledger)
        self._vips(before[1], self.before[1], ledger)
        if self.history.rules_are_ours:
            # Rules of a node without servers and VIPs are left from a process that had just begun.
            if before[0] or before[1]:
                self._rules(before[2], self.before[2], ledger)
            self._order(before, ledger)
        self.history.sound = True

    def _servers(self, before, now, ledger):
        for gone in before.keys() - now.keys():
            frontend = ledger.frontends.get(gone)
            assert frontend is None or frontend.path is Path.SHORT, f"{gone} is wanted and was deleted"
            assert gone.address not in parse_cidr(EXCLUDED)
        for name, (_, old) in before.items():
            if name in ledger.frontends and name in now:
                self._destinations(name, old, now[name][1], ledger.frontends[name].balanced)

    def _destinations(self, name, before, now, wanted):
        for target, weight in before.items():
            if target in wanted:
                least = min(weight, wanted[target].weight, 1)  # 0 for maintenance
                assert now.get(target, -1) >= least, f"{name} -> {target} is wanted and was taken away"
            elif target not in now and name.protocol == Protocol.TCP:
                assert not self.node.ipvs.busy.get((name, target)), f"{name} -> {target} was cut"

    def _vips(self, before, now, ledger):
        for gone in before - now:
            assert ledger.vip(gone) is None, f"VIP {format_ip(gone)} is wanted and was removed"

    def _rules(self, before, now, ledger):
        for slot, text in before.items():
            known = element(*slot)
            if known in ledger.elements and ledger.elements[known] == value(known, text):
                # A start serves by rules what has lost its server.
                lost = is_short(now.get(slot)) and known.frontend not in self.before[0]
                assert lost or now.get(slot) == text, f"{slot} is wanted and was taken away"

    def _order(self, before, ledger):
        """What has begun to answer has all its rules, and rules outlive what answers."""
        (table, vips, rules), (old_table, old_vips, old_rules) = self.before, before
        for name in table.keys() - old_table.keys():
            frontend = ledger.frontends.get(name)
            own, common = elements(frontend) if frontend else ({}, ())
            for slot in (*own, *common):
                place = slot.set.name, key_text(slot)
                text, wanted = rules.get(place), ledger.elements.get(slot)
                there = text is not None and value(slot, text) == wanted
                # New connections are led past the server until the verdict is switched, which comes next.
                is_left = is_short(text) and old_rules.get(place) == text
                is_left = is_left or _is_led_by_rules(slot, rules, old_rules)
                assert there or is_left or text is wanted is None, f"{name} was made before {slot}"
        for address in vips - old_vips:
            assert self._guarded(address, rules), f"{format_ip(address)} was bound before its guard"
        mine = (vips & old_vips) - self.node.links.others
        for address in mine:
            was = self._guarded(address, old_rules)
            assert not was or self._guarded(address, rules), f"{format_ip(address)} answers and has lost its guard"
        for name in table:
            number, text = (4 if len(name.address) == 4 else 6), _text(name)
            if (f"ranged{number}", text) in old_rules.keys() - rules.keys() and name.address in mine:
                refused = self._guarded(name.address, rules) and (f"frontends{number}", text) not in rules
                opened = name in ledger.frontends and not ledger.frontends[name].ranges
                assert refused or opened, f"{name} answers and has lost its ranges"

        self._asked(rules, ledger)

    def _asked(self, rules, ledger):
        """Packets come to views and source ranges only at addresses that are known to have some."""
        for name, key in rules:
            mark = MARKS.get(name[:-1])
            if mark and element(name, key) in ledger.elements:
                address = key.partition(" . ")[0]
                assert (f"{mark}{name[-1]}", address) in rules, f"{name} {key} has no {mark}"

    def _guarded(self, address, rules):
        return (f"vips{4 if len(address) == 4 else 6}", format_ip(address)) in rules


def _is_led_by_rules(slot, rules, old_rules):
    """Whether an audience still has its view on the short path, in whose place the other one comes."""
    if slot.short_view in (None, slot):
        return False
    place = slot.short_view.set.name, key_text(slot.short_view)
    return rules.get(place) is not None and rules[place] == old_rules.get(place)


def _text(name):
    return f"{format_ip(name.address)} . {Protocol(name.protocol).name.lower()} . {name.port}"
