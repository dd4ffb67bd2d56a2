"""Our nft tables, and the part of the shadow that they are: loaded whole, changed in transactions, put right.

Whole means: the tables that are there go, of whichever version they are, in the transaction that makes ours. What
packets would find late (`kernel.late_sets`) are rules as well until a second transaction takes these away.

Parts of the ruleset are scripts that only some nodes need. One is added in the transaction that adds the first
element which needs it, and stays as long as this process runs: no change of a Service makes rules go.

A transaction that nftables refuses changes nothing, so what is at fault has to be found. A change is tried again
in halves. Rules that are loaded whole must be live at once: there the kernel is asked for its verdict on parts
without carrying anything out, and then everything that it takes is loaded in one transaction.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain

import structlog

from ipvsproxy.base import messages
from ipvsproxy.kernel.element_changes import ElementTransaction
from ipvsproxy.kernel.late_sets import (
    RulesInPlace,
    add_rules,
    late_at_once,
    late_of,
    rules_in_place,
    withdraw_rules,
)
from ipvsproxy.kernel.parts import RulesetParts
from ipvsproxy.kernel.refused_elements import CONTRADICTIONS, DIVISIBLE, REFUSALS, report
from ipvsproxy.kernel.ruleset import Ruleset, layout
from ipvsproxy.kernel.scripts import PARTS, Scripts
from ipvsproxy.kernel.tables import TABLE, delete_tables, new_transaction
from ipvsproxy.kernel.transactions import Transactions
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.dependencies import halves, ready_elements
from ipvsproxy.plan.diff import ElementStep, differing, record_element
from ipvsproxy.plan.notification import RulesChanged
from ipvsproxy.plan.state import Dirty, FrontendKey, KernelState
from ipvsproxy.ruleset.codec import texts
from ipvsproxy.ruleset.elements import Element, ElementKey, Value, by_set, needed_parts
from ipvsproxy.ruleset.schema import AUDIENCES, RANGES_BY_IPVS, RESTRICTED, SETS, SetSchema
from nft import Client, NftError, Transaction

MAX_HALVINGS = 100
"""Of one transaction: some ten faults among thousands of frontends. The rest is found with the next try."""

log = structlog.get_logger()


class Rules:
    """The tables of this network namespace. `scripts` is the static ruleset.

    `read_set` reads a set of the kernel's.

    `in_doubt` is set when nftables has contradicted the shadow: then `reload`.
    """

    def __init__(
        self,
        nft: Client,
        ruleset: Ruleset,
        parts: RulesetParts,
        scripts: Scripts,
        shadow: KernelState,
        read_set: Callable[[SetSchema], Mapping[ElementKey, Value]] | None,
    ) -> None:
        self.in_doubt = False
        self._transactions = Transactions(nft, ruleset)
        self._ruleset = ruleset
        self._parts = parts
        self._scripts = scripts
        self._layout = layout(scripts.whole(PARTS))
        self._shadow = shadow
        self._read_set = read_set
        self._stamp: bytes = b""
        self._attempts = 0

    def load(self, elements: Mapping[ElementKey, Value]) -> Dirty:
        """Replace our tables by the static rules and these elements, atomically.

        Elements that nftables refuses are left out and returned. Raises NftError when it is not about elements.
        """
        try:
            self._load(elements)
        except NftError as error:
            if error.errno not in REFUSALS:
                raise
            taken = self._without_refused(elements, error)
            self._load(taken)
            return Dirty(slots=elements.keys() - taken.keys())
        return Dirty()

    def begin(self, elements: Mapping[ElementKey, Value]) -> Dirty:
        """Load rules and elements as `load` does, where nothing is served that needs all of it at one moment.

        Elements come behind the rules, by netlink, which is cheaper. The next time only what differs is changed.
        """
        if not self._may_come_apart():
            return self.load(elements)
        parts = needed_parts(elements)
        gone, come = map(by_set, differing(self._shadow.elements if self._stamp else {}, elements))
        late = late_of(come)
        try:
            if self._stamp:
                self._add_parts(self._parts.missing(parts))
            else:
                with_rules = [kind for kind in come if not kind.is_packed]
                self._load(dict(chain(*map(come.pop, with_rules))), parts)
            if late:
                self._carry_out(ElementTransaction({}, late), frozenset())
            self._carry_out(ElementTransaction(gone, come), frozenset())
        except NftError:
            return self.load(elements)
        self._shadow.elements = dict(elements)
        return Dirty()

    def _may_come_apart(self) -> bool:
        """Whether elements may come behind the rules: there is no table, which may serve, or ours as loaded."""
        if self._stamp:
            return self._table_is_ours()
        with suppress(KernelError):
            return TABLE.family not in self._ruleset.tables()
        return False

    def are_for_shared_only(self) -> bool:
        """Whether the kernel has rules for tenants, and no pod in any group. Raises KernelError."""
        if self._read_set is None:
            return False
        return any(map(self._read_set, RESTRICTED.values())) and not any(map(self._read_set, AUDIENCES.values()))

    def _load(self, elements: Mapping[ElementKey, Value], more_parts: frozenset[str] = frozenset()) -> None:
        found: Mapping[str, str] = {}
        with suppress(KernelError):  # costs a log line, and tables of other families
            found = self._ruleset.tables()
        # Replies of either mark pass FORWARD until only one is set.
        parts = self._parts.whole(elements, self._shadow, more_parts)
        rules = rules_in_place(elements.items())
        self._transactions.run(self._whole(elements, rules, found, parts))
        self._parts.there = parts
        self._log_replaced(found)
        self._shadow.elements = dict(elements)
        self._stamp = b""
        self._withdraw(rules)
        self.in_doubt = False
        self._parts.tidy()
        self._stamp = self._ruleset.stamp()

    def _whole(
        self,
        elements: Mapping[ElementKey, Value],
        rules: RulesInPlace,
        found: Mapping[str, str],
        parts: frozenset[str],
    ) -> Transaction:
        transaction = delete_tables(found)
        transaction.add_table(self._layout)
        transaction.load(self._scripts.whole(parts))
        transaction.add_elements(texts(elements.items()))
        add_rules(transaction, rules)
        return transaction

    def _withdraw(self, rules: RulesInPlace) -> None:
        """Take away rules in place of elements: they would admit what a later change excludes. Raises NftError."""
        if rules:
            doubted, self.in_doubt = self.in_doubt, True
            transaction = new_transaction()
            withdraw_rules(transaction, rules)
            self._transactions.run(transaction)
            self.in_doubt = doubted

    def _log_replaced(self, found: Mapping[str, str]) -> None:
        """Mention once whose rules have gone."""
        was = found.get(TABLE.family, self._layout)
        if was != self._layout:
            log.info(messages.RULESET_REPLACED, was=was or "unknown", now=self._layout)

    def _without_refused(self, elements: Mapping[ElementKey, Value], error: NftError) -> dict[ElementKey, Value]:
        """Return the elements that nftables takes, asking for halves; raise `error` when it is not about them."""
        self._attempts = MAX_HALVINGS
        if not self._would_load(()):
            raise error
        return dict(self._taken([ElementStep(slot, value) for slot, value in elements.items()]))

    def _taken(self, steps: Sequence[ElementStep]) -> Iterator[Element]:
        """Yield what nftables takes of some elements, of which it does not take all."""
        both = halves(steps) if self._attempts else ()
        self._attempts -= bool(both)
        for half in both:
            yield from _values(half) if self._would_load(half) else self._taken(half)

    def _would_load(self, steps: Sequence[ElementStep]) -> bool:
        elements = dict(_values(steps))
        try:
            parts = self._parts.there | needed_parts(elements)
            self._transactions.check(self._whole(elements, rules_in_place(elements.items()), {}, parts))
        except NftError as error:
            if error.errno in REFUSALS:
                return False
            raise
        return True

    def reload(self) -> Dirty:
        """Load what the tables should hold; a refusal is logged, and costs nothing else."""
        log.warning(messages.RULESET_DIFFERS, table=str(TABLE))
        try:
            return self.load(self._shadow.elements)
        except NftError as error:
            log.error("Could not load the nftables ruleset", err=error.text[:500])
            return Dirty()

    def verify(self) -> Dirty:
        """Load the rules again when they are gone or replaced, return what was refused of them.

        Raises KernelError, NftError.
        """
        if self._ruleset.stamp() == self._stamp:
            return Dirty()
        log.warning("Another program deleted or replaced the nftables ruleset, reloading it", table=str(TABLE))
        return self.load(self._shadow.elements)

    def restore(self, sets: Collection[str], *, whole: bool) -> Dirty:
        """Give some sets the elements they should have, or load all rules; return what was refused of them.

        Either is one transaction, so no packet meets a set that is empty. Raises NftError, KernelError.
        """
        if not whole and self._ruleset.stamp() == self._stamp:
            transaction = new_transaction()
            transaction.flush_sets(name for name in sorted(sets) if not SETS[name].value)
            transaction.flush_maps(name for name in sorted(sets) if SETS[name].value)
            elements = [item for item in self._shadow.elements.items() if item[0].set.name in sets]
            transaction.add_elements(texts(elements))
            rules = rules_in_place(elements)
            add_rules(transaction, rules)
            try:
                self._transactions.run(transaction)
                self._withdraw(rules)
            except NftError as error:
                log.warning(messages.SETS_NOT_RESTORED, err=error.text[:200])
            else:
                return Dirty()
        return self.load(self._shadow.elements)

    def differing_sets(self) -> set[str]:
        """Return the sets of the ruleset with other elements than they should have. Raises KernelError."""
        wanted: dict[SetSchema, dict[ElementKey, Value]] = {kind: {} for kind in SETS.values()}
        for slot, value in self._shadow.elements.items():
            wanted[slot.set][slot] = value
        read = self._read_set
        return {kind.name for kind, elements in wanted.items() if read and read(kind) != elements}

    def consume_own(self, notice: RulesChanged) -> bool:
        """Whether a notification is about a transaction of ours."""
        return self._transactions.consume_own(notice)

    def change(self, steps: Sequence[ElementStep], failed: Dirty) -> None:
        """Carry out steps in one transaction, or in parts when it is refused; what fails is added to `failed`."""
        if not steps:
            return
        self._attempts = MAX_HALVINGS
        refused = Dirty()
        self._change(steps, refused)
        _report(refused, failed)

    def _change(self, steps: Sequence[ElementStep], failed: Dirty) -> None:
        changed = ElementTransaction.of(steps)
        missing = self._parts.missing_for(steps, self._shadow)
        try:
            self._carry_out(changed, missing)
        except NftError as error:
            self._find_refused(steps, error, missing, failed)
            return
        for step in steps:
            record_element(step, self._shadow)

    def _carry_out(self, changed: ElementTransaction, parts: frozenset[str]) -> None:
        """Change elements, together with parts of which some need them. Raises NftError."""
        rules = rules_in_place(late_at_once(changed.come, self._shadow.elements))
        transaction: Transaction = changed
        if parts or rules:
            transaction = new_transaction()
            self._load_parts(transaction, parts)
            changed.write(transaction)
            add_rules(transaction, rules)
        self._run(transaction, parts, rules)

    def follow_others(self, *, anew: bool = True) -> None:
        """Load the parts that rules of others have made necessary; `anew`: all rules are read. Raises NftError."""
        missing = self._parts.missing(anew=anew)
        if self._stamp:
            self._add_parts(missing)

    def prepare(self, servers: Iterable[FrontendKey], failed: Dirty) -> None:
        """Load what changing servers need; of those that would be without it, marks are added to `failed`."""
        lacking = self._parts.lacking(servers, self._shadow)
        if not lacking:
            return
        try:
            self._add_parts(self._parts.missing(frozenset((RANGES_BY_IPVS,))))
        except NftError as error:
            refused = Dirty()
            _note(lacking, error, refused)
            _report(refused, failed)

    def _add_parts(self, parts: frozenset[str]) -> None:
        """Load parts that are not there, ahead of what needs them. Raises NftError."""
        if parts:
            transaction = new_transaction()
            self._load_parts(transaction, parts)
            self._run(transaction, parts, rules_in_place(()))

    def _load_parts(self, transaction: Transaction, parts: frozenset[str]) -> None:
        """Each names sets of the table, so that it cannot be loaded where the table is gone."""
        for name in sorted(parts):
            transaction.load(self._scripts.part(name))

    def _run(self, transaction: Transaction, parts: frozenset[str], rules: RulesInPlace) -> None:
        """Carry out a transaction that adds some parts, and rules in place of elements. Raises NftError."""
        ours = bool(parts) and self._table_is_ours()
        self._transactions.run(transaction)
        self._parts.there |= parts
        with suppress(NftError):  # it is in doubt then, and loaded again before anything else changes
            self._withdraw(rules)
        if ours:
            log.info(messages.PARTS_ADDED, parts=sorted(parts))
            with suppress(KernelError):  # the next verification loads the rules again
                self._stamp = self._ruleset.stamp()

    def _find_refused(
        self, steps: Sequence[ElementStep], error: NftError, missing: frozenset[str], failed: Dirty
    ) -> None:
        """Try the halves of a refused transaction, so that what is wrong with one frontend costs no other."""
        both = halves(steps) if error.errno in DIVISIBLE and self._attempts and self._table_is_ours() else ()
        if both:
            self._attempts -= 1
            for half in both:
                if ready := ready_elements(half, failed):
                    self._change(ready, failed)
            return
        _note([step.slot for step in steps], error, failed)
        # A kernel without an expression that a part needs answers ENOENT as well: no reason to load all again.
        is_the_part = bool(missing) and self._table_is_ours()
        self.in_doubt = self.in_doubt or (error.errno in CONTRADICTIONS and not is_the_part)

    def _table_is_ours(self) -> bool:
        with suppress(KernelError):
            return self._ruleset.stamp() == self._stamp
        return False


def _note(slots: Sequence[ElementKey], error: NftError, failed: Dirty) -> None:
    failed.slots.update(slots)
    failed.reasons.update((slot, f"nftables: {error.text[:200]}") for slot in slots)


def _report(refused: Dirty, failed: Dirty) -> None:
    """Log what was refused, and add it to what failed."""
    if refused:
        report(refused)
        failed.slots |= refused.slots
        failed.reasons.update(refused.reasons)


def _values(steps: Sequence[ElementStep]) -> Iterator[Element]:
    return ((step.slot, step.value) for step in steps if step.value is not None)
