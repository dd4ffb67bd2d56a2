"""What decoding an object comes to, and the parts that objects of several kinds have.

Out: a `Decoded`, or an `InvalidObject` that names the field. Complaints about an object have a bounded length,
whatever the object holds.
"""

from collections.abc import Iterable, Sequence

import msgspec

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Object
from ipvsproxy.kube.defaults import PROTOCOL
from ipvsproxy.plan.model import Protocol

LONGEST = 300
"""Characters of a complaint about one part of an object."""
MOST_COMPLAINTS = 5
FAMILIES = {"IPv4": 4, "IPv6": 6}
PROTOCOLS = dict(Protocol.__members__)
"""By name; looking a name up in the class itself takes a call in Python."""


class InvalidObject(ValueError):
    """An object that cannot be used; `field` is its path, such as `spec.ports[0].port`."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = short(field)
        self.reason = short(reason)
        super().__init__(f"{self.field}: {self.reason}" if field else self.reason)


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """A value and complaints about what was left out of it. None: right, but not proxied, `skipped` states why.

    `triggered` is when the change of a pod behind this version began, in seconds since the epoch, 0 if unknown.
    """

    object: Object | None
    complaints: tuple[str, ...] = ()
    triggered: float = 0.0
    skipped: str = ""


def short(text: str) -> str:
    """Whatever an object holds, the complaints about it fit into a line."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def first_few(complaints: Sequence[str]) -> tuple[str, ...]:
    """Return the first complaints, and how many more there are: a slice can have a thousand bad endpoints."""
    if not complaints:
        return ()
    more = len(complaints) - MOST_COMPLAINTS
    return (*map(short, complaints[:MOST_COMPLAINTS]), *([f"and {more} more"] if more > 0 else []))


def addresses(field: str, texts: Iterable[str], complaints: list[str]) -> tuple[bytes, ...]:
    """Return addresses, each once; blank texts are skipped, and what is none is complained about."""
    if not texts:
        return ()
    found: dict[bytes, None] = {}
    for text in texts:
        if not text.strip():
            continue
        try:
            found[parse_ip(text.strip())] = None
        except ValueError as error:
            complaints.append(f"{field}: {error}; left out")
    return tuple(found)


def protocol(text: str | None, ports: str, index: int) -> Protocol:
    """Return the protocol of an entry of the field `ports` by its name, TCP for none. Raises InvalidObject."""
    try:
        return PROTOCOLS[text or PROTOCOL]
    except KeyError:
        raise InvalidObject(f"{ports}[{index}].protocol", f"{text!r} is none of TCP, UDP, SCTP") from None
