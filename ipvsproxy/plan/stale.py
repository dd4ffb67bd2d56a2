"""Which tracked connections must be forgotten after a change, since conntrack would carry them on.

conntrack remembers for each connection where its packets go, and no rule is asked again. For most connections to a
frontend the kernel itself forgets that together with IPVS's own memory of the connection. What is left to us
(docs/internals-connections.md has the facts):

* UDP has no end, so a client that keeps sending keeps its entry. It is stale when its replies would come from
anything but a serving endpoint of the Service port: an endpoint that is gone or has another port, the VIP itself
(the client was there before the Service), and everything once the frontend is gone. A port without any serving
endpoint keeps its entries (contract 4.16).
* Source ranges are asked for new connections only, so after a change the connections of sources that are no longer
among them have to become new ones.
* A client has sent its first packet to a VIP before that was local: the entry of this packet has no NAT, and
conntrack asks no rule again for a SYN, an INIT or a datagram that is repeated. The next one must make a new entry.
* The view for a group of sources is looked up by the first packet of a connection. An address that has left the
group may be another pod's by now.
* A frontend on the short path has no server whose removal would end its connections.

Deterministic: no I/O, no clock. In: the frontends that have changed. Out: `Sweep`s, each of which is one question
to the kernel, and the decision about each entry. A frontend that only got more endpoints, or an open one of TCP,
costs nothing.
"""

from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import msgspec

from ipvsproxy.base.address import Cidr, family, is_covered
from ipvsproxy.base.frontend import EVERY_PORT, every_port
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import SHORT_PATH, Destination, Frontend, FrontendKey, View
from ipvsproxy.ruleset.schema import LOCAL, SHARED_GROUP

GroupOf = Callable[[bytes], int | None]
"""The group that a source is in now: 0 for a local pod that is in none, None for what is no local pod."""


def not_judged(_: bytes) -> None:
    """Take every source for no local pod."""


class SweepRule(msgspec.Struct, frozen=True, gc=False):
    """What may go on at one frontend: endpoints that answer (None: any) and sources that ask (empty: all).

    `sources` are in order and disjoint, as those of a frontend. `cut` are endpoints whose connections end here and
    now. `admitted` are the groups of local pods that may go on (None: all).
    """

    endpoints: frozenset[Destination] | None = None
    sources: tuple[Cidr, ...] = ()
    cut: frozenset[Destination] = frozenset()
    admitted: tuple[int, ...] | None = None

    def forbids(self, source: bytes, endpoint: Destination) -> bool:
        """Whether a connection from `source`, whose replies come from `endpoint`, is stale."""
        if endpoint in self.cut or (self.endpoints is not None and endpoint not in self.endpoints):
            return True
        return bool(self.sources) and not is_covered(source, self.sources)


ANY, GONE = SweepRule(), SweepRule(endpoints=frozenset())
"""Rules that let all connections go on, and none."""
EVERY_PROTOCOL, UDP = 0, Protocol.UDP


class Sweep(msgspec.Struct, frozen=True):
    """One request to the kernel: entries of one family and protocol (0: every one), and which of them are stale.

    `rules` are for entries to our frontends, `new_vips` are addresses that have just become local. `sources` are
    addresses that have left a group, `restricted` the frontends at which that matters, each with the groups whose
    connections go on. They were local pods, so that one in no group now has no right to any. `served` are all
    frontends: a port that has one of its own is not judged by that for ranges of ports.
    """

    family: int
    protocol: int
    rules: Mapping[FrontendKey, SweepRule]
    new_vips: frozenset[bytes] = frozenset()
    sources: frozenset[bytes] = frozenset()
    restricted: Mapping[FrontendKey, tuple[int, ...]] = {}
    group_of: GroupOf = not_judged
    served: Container[FrontendKey] = ()

    @property
    def address(self) -> bytes | None:
        """The one destination address of all entries, None if there are several."""
        first, *others = {key.address for key in (*self.rules, *self.restricted)} | self.new_vips
        return None if others else first

    @property
    def port(self) -> int | None:
        """The one destination port of all entries, None if there are several."""
        if self.new_vips:
            return None
        first, *others = {key.port for key in (*self.rules, *self.restricted)}
        return None if others else first or None

    def concerns(self, key: FrontendKey) -> bool:
        """Whether an entry with this destination may be stale."""
        of_address = key.address in self.new_vips or every_port(key) in self.rules
        return key in self.rules or of_address or key in self.restricted

    def forbids(self, key: FrontendKey, source: bytes, endpoint: Destination, *, replied: bool) -> bool:
        """Whether a connection from `source` to `key`, whose replies come from `endpoint`, is stale."""
        rule, name = self.rules.get(key), endpoint
        if rule is None and key not in self.served:
            # A server for ranges of ports; its endpoints have every port, too.
            rule, name = self.rules.get(every_port(key)), Destination(endpoint.address, EVERY_PORT)
        if rule is not None and (rule.forbids(source, name) or self._is_kept_out(source, rule.admitted)):
            return True
        if source in self.sources and key in self.restricted:
            return (self.group_of(source) or 0) not in self.restricted[key]
        return (
            key.address in self.new_vips and _has_no_nat(key, endpoint) and _may_begin_anew(key, replied=replied)
        )

    def _is_kept_out(self, source: bytes, admitted: tuple[int, ...] | None) -> bool:
        return admitted is not None and self.group_of(source) not in (None, SHARED_GROUP, *admitted)


def _has_no_nat(key: FrontendKey, endpoint: Destination) -> bool:
    return endpoint == Destination(key.address, key.port)


def _may_begin_anew(key: FrontendKey, *, replied: bool) -> bool:
    """What was answered goes on or ends by itself; but a UDP client may have asked a host that had the VIP."""
    return not replied or key.protocol == UDP


class SeenFrontend(msgspec.Struct, frozen=True, gc=False):
    """Of a frontend, what decides about its entries, as it was when it was last looked at."""

    serving: tuple[Destination, ...]
    ranges: tuple[Cidr, ...]
    views: tuple[View, ...]
    groups: tuple[int, ...] | None
    short: bool = False


class Stale:
    """Frontends whose entries matter, and the sweeps that are due."""

    def __init__(self, group_of: GroupOf = not_judged) -> None:
        self._group_of = group_of
        self._restricted: dict[FrontendKey, tuple[int, ...]] = {}
        self._left: set[bytes] = set()
        self._seen: dict[FrontendKey, SeenFrontend] = {}
        self._leading_to: dict[FrontendKey, set[FrontendKey]] = {}
        self._due: dict[FrontendKey, SweepRule] = {}
        self._new_vips: set[bytes] = set()
        self._frontends: Container[FrontendKey] = ()

    def __bool__(self) -> bool:
        return bool(self._due or self._new_vips or self._left)

    def note(self, keys: Iterable[FrontendKey], frontends: Mapping[FrontendKey, Frontend]) -> None:
        """Record frontends that have changed, once the kernel has them as they are now."""
        self._frontends = frontends
        for key in keys:
            frontend, old, due = frontends.get(key), self._seen.pop(key, None), self._due.pop(key, ANY)
            new = _seen(frontend, old) if frontend else None
            if new is not None:
                self._seen[key] = new
            if old is not None or new is not None:
                self._index(key, old, new)
            rule = _of_wanted(key, old, new, due) if new else ANY
            if frontend is None:
                rule = _of_gone(old, due)
            elif due.endpoints is not None and (key.protocol != UDP or due == GONE):
                # It was gone: what was open then does not go on because its name is back.
                rule = msgspec.structs.replace(rule, endpoints=_endpoints(frontend, frontends))
            if new is not None and new.groups is not None:
                rule = self._with_admitted(rule, old, new.groups, due)
            if rule is not ANY and rule != ANY:
                self._due[key] = rule

    def hold(self, keys: Iterable[FrontendKey], frontends: Mapping[FrontendKey, Frontend]) -> None:
        """Record frontends that the kernel does not have as they are now: sources of old and new groups go on.

        What is not allowed in the end is cut when the kernel has them (`note`).
        """
        for key in keys:
            old, frontend = self._seen.get(key), frontends.get(key)
            if old is None or old.groups is None or frontend is None:
                continue
            groups = None if frontend.admission is None else (*{*old.groups, *frontend.admission.groups},)
            self._seen[key] = msgspec.structs.replace(old, groups=groups)
            self._index(key, old, self._seen[key])

    @staticmethod
    def _with_admitted(
        rule: SweepRule, old: SeenFrontend | None, groups: tuple[int, ...], due: SweepRule
    ) -> SweepRule:
        """Return a rule with the groups that may connect, if others could until now."""
        if due.admitted is None and old is not None and old.groups is not None and {*old.groups} <= {*groups}:
            return rule
        return msgspec.structs.replace(rule, admitted=groups)

    def note_sources(self, addresses: Iterable[bytes]) -> None:
        """Record addresses that have left a group of sources; of no interest where no frontend asks for groups."""
        if self._restricted:
            self._left.update(addresses)

    def note_new_vips(self, addresses: Iterable[bytes]) -> None:
        """Record VIPs that have just become local."""
        self._new_vips.update(addresses)

    def _index(self, key: FrontendKey, old: SeenFrontend | None, new: SeenFrontend | None) -> None:
        """Remember which frontends have views that lead to a server, and at which groups of sources matter."""
        going_on = _groups_that_go_on(new) if new is not None else None
        if going_on is None:
            self._restricted.pop(key, None)
        else:
            self._restricted[key] = going_on
        before, now = old.views if old else (), new.views if new else ()
        if before == now:
            return
        for view in before:
            names = self._leading_to.get(view.server, set())
            names.discard(key)
            if not names:
                self._leading_to.pop(view.server, None)
        for view in now:
            self._leading_to.setdefault(view.server, set()).add(key)

    def cut(self, key: FrontendKey, destinations: frozenset[Destination]) -> None:
        """Record destinations that were deleted with connections: views may have led to them."""
        if not destinations:
            return
        for name in self._leading_to.get(key, ()):
            due = self._due.get(name, ANY)
            self._due[name] = msgspec.structs.replace(due, cut=due.cut | destinations)

    def sweeps(self) -> list[Sweep]:
        """Return what is due: one sweep for each family and protocol, and one for the new VIPs of each family."""
        groups: dict[tuple[int, int], dict[FrontendKey, SweepRule]] = {}
        for key, rule in self._due.items():
            groups.setdefault((family(key.address), key.protocol), {})[key] = rule
        of = self._group_of
        served = self._frontends
        found = [
            Sweep(number, proto, rules, group_of=of, served=served)
            for (number, proto), rules in sorted(groups.items())
        ]
        four = frozenset([vip for vip in self._new_vips if family(vip) == 4])
        vips = ((4, four), (6, frozenset(self._new_vips - four)))
        found += [Sweep(number, EVERY_PROTOCOL, {}, new) for number, new in vips if new]
        return found + list(self._of_sources())

    def _of_sources(self) -> Iterator[Sweep]:
        for number in (4, 6):
            left = frozenset(address for address in self._left if family(address) == number)
            restricted = {key: groups for key, groups in self._restricted.items() if family(key.address) == number}
            if left and restricted:
                yield Sweep(
                    number, EVERY_PROTOCOL, {}, sources=left, restricted=restricted, group_of=self._group_of
                )
            else:
                self._left -= left

    def done(self, sweep: Sweep) -> None:
        """Forget what has been swept."""
        for key in sweep.rules:
            self._due.pop(key, None)
        self._new_vips -= sweep.new_vips
        self._left -= sweep.sources


def _seen(frontend: Frontend, old: SeenFrontend | None) -> SeenFrontend | None:
    """Most frontends are of no interest and cost no memory. Open connections outlive their view and path."""
    views = frontend.views
    if old and old.views:
        now = {view.audience for view in views}
        views += tuple(view for view in old.views if view.audience not in now)
    groups = None if frontend.admission is None else frontend.admission.groups
    short = frontend.path is SHORT_PATH or (old is not None and old.short)
    if not (views or short or frontend.ranges or frontend.key.protocol == UDP or groups is not None):
        return None
    return SeenFrontend(frontend.serving, frontend.ranges, views, groups, short)


def _groups_that_go_on(seen: SeenFrontend) -> tuple[int, ...] | None:
    """Return the groups whose open connections a source keeps when it comes from another one; None for all.

    What the view of its old group has led away never goes on.
    """
    if seen.groups is not None:
        return (SHARED_GROUP, *seen.groups)
    return () if any(view.audience != LOCAL for view in seen.views) else None


def _of_gone(old: SeenFrontend | None, due: SweepRule) -> SweepRule:
    """The kernel forgets the entries of a server it removes, but not those that rules of ours have rewritten."""
    if old is None:
        return ANY if due.endpoints is None else GONE
    return GONE if old.views or old.short else ANY


def _endpoints(frontend: Frontend, frontends: Mapping[FrontendKey, Frontend]) -> frozenset[Destination]:
    """Return all endpoints that a new connection may lead to, those of views among them."""
    servers = (frontends.get(view.server) for view in frontend.views)
    return frozenset((*frontend.destinations, *frontend.internal)).union(
        *(server.destinations for server in servers if server)
    )


def _of_wanted(key: FrontendKey, old: SeenFrontend | None, new: SeenFrontend, due: SweepRule) -> SweepRule:
    """Return what entries must be checked for; what has been due since an earlier change stays so."""
    lost = due.endpoints is not None or old is None or _lost(old.serving, new.serving)
    cut = bool(due.sources) or old is None or _tightened(old.ranges, new.ranges)
    endpoints = frozenset(new.serving) if lost and new.serving and key.protocol == UDP else None
    return SweepRule(endpoints, new.ranges if cut else (), due.cut)


def _lost(old: tuple[Destination, ...], new: tuple[Destination, ...]) -> bool:
    """Whether entries may lead elsewhere than to the new endpoints; while there were none, all were kept."""
    return not old or not frozenset(old) <= frozenset(new)


def _tightened(old: tuple[Cidr, ...], new: tuple[Cidr, ...]) -> bool:
    """Whether a source that was allowed may no longer be; no ranges at all let everybody in."""
    return not old or (old != new and bool(new) and not all(_within(narrow, new) for narrow in old))


def _within(narrow: Cidr, ranges: tuple[Cidr, ...]) -> bool:
    """Whether a whole range is in one of others, which are in order and disjoint."""
    place = bisect_right(ranges, narrow)
    wide = ranges[place - 1] if place else None
    return wide is not None and wide.prefix <= narrow.prefix and narrow.network in wide
