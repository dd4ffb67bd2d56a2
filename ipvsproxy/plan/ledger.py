"""The wanted state of the node: which Service holds which frontend, and what follows from that.

Frontends can be claimed by several Services (the same external IP and port). The one holds it to which the API
server gave it, as its ClusterIP or NodePort: no external IP may take that over. Else the oldest one, by creation
time, then by name, whatever the order of events (contract 4.3). An internal view leads to a server of its own
Service or is left out: where another Service holds that server, its endpoints would answer. VIPs, hairpin entries
and health-check ports are shared, so they are counted. `replace` returns the names of kernel objects that may have
changed; the rest of the state is never looked at, so a change costs the same on a small node and on a big one.

Property: any order of `replace` calls ends in the state that only the last call for each Service would give.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import msgspec

from ipvsproxy.base.address import family
from ipvsproxy.config import VipMode
from ipvsproxy.plan.bound import BoundAddresses
from ipvsproxy.plan.ping import PingRanges
from ipvsproxy.plan.rules import FrontendElements, changing
from ipvsproxy.plan.state import Destination, Dirty, Frontend, FrontendKey, View, Vip, VipForm
from ipvsproxy.plan.waiting import RankedService, Waiting
from ipvsproxy.ruleset.elements import ElementKey, Value
from ipvsproxy.ruleset.schema import LOCAL

# Looked up once: reading a member from its class takes Python 3.11 some 600 instructions.
ADDRESS, ROUTE, AUTO = VipForm.ADDRESS, VipForm.ROUTE, VipMode.AUTO
ROUTES_ABOVE = 8192
"""VIPs of a family from which `auto` uses routes: addresses on one link cost quadratic time in the kernel."""
ADDRESSES_BELOW = 4096
"""... and below which it goes back to addresses. The gap keeps a cluster at the border from flapping."""


class Wanted(Protocol):
    """What is wanted of the kernel, to be read and compared."""

    @property
    def frontends(self) -> Mapping[FrontendKey, Frontend]:
        """All frontends."""

    @property
    def elements(self) -> Mapping[ElementKey, Value]:
        """All elements of the ruleset with their values."""

    def vip(self, address: bytes) -> Vip | None:
        """Return a VIP in the form it should have, or None when it is not wanted."""

    def everything(self) -> Dirty:
        """Name all there is."""


class Ledger:
    """Wanted frontends, VIPs and set elements of all Services."""

    def __init__(self, vip_mode: VipMode) -> None:
        self.frontends: dict[FrontendKey, Frontend] = {}
        self.elements: dict[ElementKey, Value] = {}
        self._vip_mode = vip_mode
        self._vips = BoundAddresses()
        self._vips_counted_anew = False
        self._forms = dict.fromkeys((4, 6), ROUTE if vip_mode is VipMode.ROUTE else ADDRESS)
        self._ping_ranges = PingRanges()
        self._shares: dict[ElementKey, int] = {}
        self._holders: dict[FrontendKey, RankedService] = {}
        self._waiting: dict[FrontendKey, Waiting] = {}
        self._new_waits: dict[tuple[str, FrontendKey], None] = {}
        self._owned: dict[str, tuple[RankedService, tuple[FrontendKey, ...]]] = {}
        self._lacking: dict[FrontendKey, Frontend] = {}
        """Frontends as planned of which views are left out."""
        self._new_holdings: dict[RankedService, None] = {}
        """Services that got or lost a contested frontend by a change of another one."""

    def replace(
        self, owner: RankedService, frontends: Mapping[FrontendKey, Frontend], touched: Dirty | None = None
    ) -> Dirty:
        """Set the frontends of one Service (none: it is gone) and add to `touched` what that may change."""
        touched = Dirty() if touched is None else touched
        known, old_keys = self._owned.pop(owner.service, (owner, ()))
        for key in old_keys:
            stays = key in frontends and known == owner
            if not stays or (key in self._waiting and self._claims_otherwise(key, owner, frontends[key])):
                self._withdraw(key, known, touched)
        for key, frontend in frontends.items():
            self._claim(key, owner, frontend, touched)
        if frontends:
            self._owned[owner.service] = (owner, tuple(frontends))
        if self._new_holdings:
            self._lead_anew(touched)
        if self._vips_counted_anew and self._vip_mode is AUTO:
            self._choose_forms(touched)
        return touched

    def forget(self, service: str, touched: Dirty | None = None) -> Dirty:
        """Remove all frontends of a Service that may or may not be known."""
        owner, _ = self._owned.get(service, (RankedService("", service), ()))
        return self.replace(owner, {}, touched)

    def owner(self, key: FrontendKey) -> str:
        """Return `namespace/name` of the Service that holds a frontend."""
        return self._holders[key].service

    def holders(self) -> dict[FrontendKey, str]:
        """Return `namespace/name` of the Service of each frontend; for any thread.

        Copying the dictionary is one operation for the interpreter, so no other thread changes it meanwhile.
        """
        return {key: owner.service for key, owner in self._holders.copy().items()}

    def in_maintenance(self) -> dict[FrontendKey, frozenset[Destination]]:
        """Return, by frontend, the destinations that are wanted and get no new connections; for any thread."""
        return {
            key: found for key, frontend in self.frontends.copy().items() if (found := frontend.in_maintenance)
        }

    def path_reasons(self) -> dict[FrontendKey, str]:
        """Return, by frontend, why those are not on the short path that were to be; for any thread."""
        return {
            key: frontend.path_reason for key, frontend in self.frontends.copy().items() if frontend.path_reason
        }

    def take_new_conflicts(self) -> dict[str, dict[FrontendKey, str]]:
        """Return what Services have begun to claim in vain since the last call: frontends, and who holds them."""
        new, self._new_waits = self._new_waits, {}
        found: dict[str, dict[FrontendKey, str]] = {}
        for service, key in new:
            found.setdefault(service, {})[key] = self._holders[key].service
        return found

    def conflicts(self, service: str) -> dict[FrontendKey, str]:
        """Return the frontends that a Service claims and does not hold, with the Service that does."""
        owner, keys = self._owned.get(service, (None, ()))
        return {key: self._holders[key].service for key in keys if self._holders[key] != owner}

    def vip(self, address: bytes) -> Vip | None:
        """Return a VIP in the form it should have, or None when it is not wanted."""
        return Vip(address, self._forms[family(address)]) if address in self._vips else None

    def frontends_of_vip(self, address: bytes) -> Iterable[FrontendKey]:
        """Return the frontends for which an address is a VIP, in no order."""
        return self._vips.frontends(address)

    def set_fixed(self, fixed: Mapping[ElementKey, Value], previous: Mapping[ElementKey, Value]) -> Dirty:
        """Replace elements that belong to the node and to no Service."""
        for slot in previous.keys() - fixed.keys():
            del self.elements[slot]
        self.elements.update(fixed)
        return Dirty(slots={*previous, *fixed})

    def set_members(self, joining: Mapping[ElementKey, Value], leaving: Collection[ElementKey] = ()) -> Dirty:
        """Add elements of the groups of sources, and take others away."""
        for slot in leaving:
            self.elements.pop(slot, None)
        self.elements.update(joining)
        return Dirty(slots={*joining, *leaving})

    def everything(self) -> Dirty:
        """Name all there is."""
        return Dirty(set(self.frontends), set(self._vips), set(self.elements))

    def _claim(self, key: FrontendKey, owner: RankedService, frontend: Frontend, touched: Dirty) -> None:
        """Let the oldest claimant hold the frontend and the others wait."""
        holder = self._holders.get(key, owner)
        if holder != owner:
            if (self.frontends[key].claim, holder) < (frontend.claim, owner):
                self._wait(key, owner, frontend)
                return
            self._wait(key, holder, self._lacking.pop(key, self.frontends[key]))
            self._new_holdings[holder] = None
        self._holders[key] = owner
        self._hold(key, frontend, touched)

    def _hold(self, key: FrontendKey, planned: Frontend, touched: Dirty) -> None:
        """Make a frontend the wanted one, without internal views to servers that another Service holds."""
        self._lacking.pop(key, None)
        if planned.views:
            owner = self._holders[key]
            views = tuple(view for view in planned.views if self._may_lead(owner, view))
            if views != planned.views:
                self._lacking[key] = planned
                planned = msgspec.structs.replace(planned, views=views)
        self._set(key, planned, touched)

    def _may_lead(self, owner: RankedService, view: View) -> bool:
        """Whether a view leads where it should: those for groups of sources lead to other Services on purpose."""
        return view.audience != LOCAL or self._holders.get(view.server, owner) == owner

    def _lead_anew(self, touched: Dirty) -> None:
        """Look again at views of Services that got or lost servers."""
        services, self._new_holdings = self._new_holdings, {}
        for owner in services:
            _, keys = self._owned.get(owner.service, (owner, ()))
            for key in keys:
                if self._holders[key] == owner:
                    self._hold(key, self._lacking.get(key, self.frontends[key]), touched)

    def _wait(self, key: FrontendKey, owner: RankedService, frontend: Frontend) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = Waiting()
        if waiting.add(owner, frontend):
            self._new_waits[owner.service, key] = None

    def _claims_otherwise(self, key: FrontendKey, owner: RankedService, new: Frontend) -> bool:
        """Whether an owner's claim to a contested frontend is of another kind now."""
        old = self.frontends[key] if self._holders[key] == owner else self._waiting[key].frontends[owner]
        return old.claim is not new.claim

    def _withdraw(self, key: FrontendKey, owner: RankedService, touched: Dirty) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            del self._holders[key]
            self._lacking.pop(key, None)
            self._set(key, None, touched)
            return
        if self._holders[key] != owner:
            waiting.remove(owner)
            self._new_waits.pop((owner.service, key), None)
        else:
            heir, frontend = waiting.take_first()
            self._holders[key] = heir
            self._new_waits.pop((heir.service, key), None)
            self._new_holdings[heir] = None
            self._hold(key, frontend, touched)
        if not waiting:
            del self._waiting[key]

    def _set(self, key: FrontendKey, new: Frontend | None, touched: Dirty) -> None:
        """Make a frontend the wanted one, and its elements and VIP with it."""
        old = self.frontends.get(key)
        if old == new:
            return
        touched.servers.add(key)
        if (old and old.ping) or (new and new.ping):
            self._change_ping(key, new, touched)
        if old and new and new.has_rules_of(old):
            self.frontends[key] = new
            return
        before, after = changing(old, new)
        touched.slots.update(after.own)
        if new:
            self.frontends[key] = new
            self._acquire(after.shared, touched)
        else:
            del self.frontends[key]
        if old:
            self._release(before, after.own, touched)
        self.elements.update(after.own)
        self._bind(key, touched, was=bool(old and old.bind), will=bool(new and new.bind))

    def _change_ping(self, key: FrontendKey, new: Frontend | None, touched: Dirty) -> None:
        leaving, coming = self._ping_ranges.change(key, new)
        for slot in leaving:
            del self.elements[slot]
        self.elements.update(dict.fromkeys(coming, ""))
        touched.slots |= leaving | coming

    def _acquire(self, shared: Iterable[ElementKey], touched: Dirty) -> None:
        shares, all_elements, slots = self._shares, self.elements, touched.slots
        for slot in shared:
            if slot in shares:
                shares[slot] += 1
            else:
                shares[slot] = 1
                all_elements[slot] = ""
                slots.add(slot)

    def _bind(self, key: FrontendKey, touched: Dirty, *, was: bool, will: bool) -> None:
        if was or will:
            touched.vips.add(key.address)
        if was is not will:
            changed = self._vips.add(key) if will else self._vips.remove(key)
            self._vips_counted_anew = self._vips_counted_anew or changed

    def _release(self, old: FrontendElements, kept: Mapping[ElementKey, Value], touched: Dirty) -> None:
        for slot in old.own:
            if slot not in kept:
                del self.elements[slot]
                touched.slots.add(slot)
        for slot in old.shared:
            self._shares[slot] -= 1
            if not self._shares[slot]:
                del self._shares[slot]
                del self.elements[slot]
                touched.slots.add(slot)

    def _choose_forms(self, touched: Dirty) -> None:
        """In mode auto, change the form of all VIPs of a family when their number calls for it."""
        self._vips_counted_anew = False
        for number, form in self._forms.items():
            count = self._vips.of_family[number]
            better = ROUTE if count > ROUTES_ABOVE else ADDRESS if count < ADDRESSES_BELOW else form
            if better is not form:
                self._forms[number] = better
                touched.vips.update(address for address in self._vips if family(address) == number)
