"""What nftables refuses: how its answers are to be understood, and the log lines about elements."""

import errno
from itertools import islice

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip
from ipvsproxy.base.budget import LOGGED_AT_ONCE
from ipvsproxy.plan.state import Dirty
from ipvsproxy.ruleset.codec import element_text, key_text, owner_text
from ipvsproxy.ruleset.elements import ElementKey

CONTRADICTIONS = (errno.ENOENT, errno.EEXIST)
"""Answers of nftables that mean: the table is not what we think it is."""
REFUSALS = (*CONTRADICTIONS, errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.ENOTEMPTY)
"""Answers that are about something in a transaction, and not about the state the machine is in."""
DIVISIBLE = (*REFUSALS, errno.EMSGSIZE)
"""Answers after which the halves of a change are tried: parts of one that is too large for a datagram may fit."""

log = structlog.get_logger()


def report(refused: Dirty) -> None:
    """Log what nftables refused: each address once, and not thousands of them."""
    by_address: dict[str, list[ElementKey]] = {}
    for slot in sorted(refused.slots, key=element_text):
        by_address.setdefault(_address_text(slot), []).append(slot)
    for address, slots in islice(by_address.items(), LOGGED_AT_ONCE):
        frontends = sorted({owner_text(slot.frontend) for slot in slots if slot.frontend})
        log.error(
            messages.NFTABLES_REFUSED,
            address=address,
            frontends=frontends[:LOGGED_AT_ONCE],
            elements=len(slots),
            err=refused.reasons[slots[0]],
        )
    if len(by_address) > LOGGED_AT_ONCE:
        log.error("Kernel refused more nftables changes", addresses=len(by_address) - LOGGED_AT_ONCE)


def _address_text(slot: ElementKey) -> str:
    return key_text(slot) if slot.address is None else format_ip(slot.address)
