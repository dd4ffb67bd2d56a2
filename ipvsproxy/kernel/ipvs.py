"""IPVS over generic netlink: the virtual servers of this network namespace, changed and read.

`Ipvs` belongs to the loop's thread. Requests that read are those of `kernel.ipvs_reader`. Firewall-mark servers
belong to others and are left out. The bytes are in `kernel.wire.ipvs` and `kernel.wire.ipvs_records`.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.budget import LOGGED_AT_ONCE
from ipvsproxy.kernel.ipvs_reader import NETLINK_GENERIC, IpvsReader
from ipvsproxy.kernel.wire.ipvs import (
    IPVS_CMD_ATTR_TIMEOUT_TCP,
    IPVS_CMD_GET_CONFIG,
    IPVS_CMD_SET_CONFIG,
    MOST_AT_ONCE,
    encode,
    pieces,
    single,
)
from ipvsproxy.kernel.wire.ipvs_records import native_u32, parse_attributes, parse_destination, parse_server
from ipvsproxy.kernel.wire.netlink import (
    GENERIC,
    KernelError,
    Wire,
    attribute,
    attributes,
    generic,
    generic_family,
)
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.schedulers import ENGINE
from ipvsproxy.plan.state import (
    PERSISTENT,
    Destination,
    DestinationAttributes,
    FrontendKey,
    ServerAttributes,
    ServerState,
)

ALREADY_THERE = {Verb.NEW_SERVICE: Verb.SET_SERVICE, Verb.NEW_DEST: Verb.SET_DEST}
SERVER_SETTERS = (Verb.NEW_SERVICE, Verb.SET_SERVICE)
ALREADY_GONE = {Verb.DEL_SERVICE: (errno.ESRCH, errno.ENOENT), Verb.DEL_DEST: (errno.ENOENT,)}
"""A destination whose whole server is gone (ESRCH) is another matter: one that is wanted was deleted."""
LONGEST = 0xFFFFFFFF
PROBE = FrontendKey(bytes((198, 51, 100, 0)), socket.IPPROTO_TCP, 20000)
"""A frontend that no Service has (TEST-NET-2), on which a scheduler is tested."""

log = structlog.get_logger()


class StepRefused(msgspec.Struct, frozen=True):
    """A step of one message that the kernel did not carry out."""

    step: IpvsStep
    errno: int

    @property
    def destination(self) -> Destination | None:
        """What it was about; None: the server itself."""
        return self.step.destinations[0] if self.step.destinations else None

    @property
    def reason(self) -> str:
        """What the kernel answered; ENOENT for a server is about its scheduler (ip_vs_add_service)."""
        server = self.step.server
        if self.errno == errno.ENOENT and self.step.verb in SERVER_SETTERS and server:
            return f"the kernel has no scheduler {server.scheduler} (module ip_vs_{server.scheduler})"
        return os.strerror(self.errno)


class Ipvs:
    """The virtual servers of this network namespace."""

    def __init__(self) -> None:
        """Open the sockets; raises KernelError(ENOENT) when the kernel has no IPVS."""
        self._family = generic_family("IPVS")
        self._wire = Wire(NETLINK_GENERIC)
        self._reader = IpvsReader()

    def close(self) -> None:
        """Close the sockets."""
        self._wire.close()
        self._reader.close()

    def apply(self, steps: Sequence[IpvsStep]) -> list[StepRefused]:
        """Carry out steps in order and return what could not be done of them.

        What is already there is set instead, and what is already gone counts as removed. Raises Lost.
        """
        if max([len(step.destinations) for step in steps], default=0) > MOST_AT_ONCE:
            steps = [piece for step in steps for piece in pieces(step)]
        in_doubt = self._send(steps)
        if not in_doubt:
            return []
        # A step answers with one error for all its messages; sent again one by one, each tells its own. What had
        # been done of it is there already, or gone.
        refused = self._send([part for step_refused in in_doubt for part in single(step_refused.step)])
        again = [r for r in refused if _is_there(r)]
        if again:
            # One that exists is set in place, never deleted and added: that would drop its connections.
            others = [r for r in refused if not _is_there(r)]
            refused = others + self._send([_set_instead(r.step) for r in again])
        return [r for r in refused if r.errno not in ALREADY_GONE.get(r.step.verb, ())]

    def _send(self, steps: Sequence[IpvsStep]) -> list[StepRefused]:
        family = self._family
        failures = self._wire.batch([encode(family, step, number) for number, step in enumerate(steps)])
        return [StepRefused(steps[index], code) for index, code in failures.items()]

    def servers(self) -> dict[FrontendKey, ServerAttributes]:
        """Read all virtual servers but firewall-mark ones, in one dump. Raises Lost.

        A scheduler may be tested at the same time, by another thread or process; that is none of anybody's.
        """
        found = dict(filter(None, map(parse_server, self._reader.services())))
        found.pop(PROBE, None)
        return found

    def observe(self) -> dict[FrontendKey, ServerState]:
        """Read all virtual servers with their destinations. Raises Lost."""
        return {key: ServerState(server, self.destinations(key)) for key, server in self.servers().items()}

    def server(self, key: FrontendKey) -> ServerAttributes | None:
        """Read one virtual server without its destinations, None when it does not exist. Raises KernelError."""
        record = self._reader.service(key)
        found = parse_server(record) if record is not None else None
        return found[1] if found else None

    def state(self, key: FrontendKey) -> ServerState | None:
        """Read one virtual server, None when it does not exist. Raises KernelError."""
        server = self.server(key)
        return ServerState(server, self.destinations(key)) if server else None

    def connections(self, key: FrontendKey) -> dict[Destination, int]:
        """Return how many connections, active and inactive, each destination of a server has. Raises Lost."""
        found = (parse_destination(part, len(key.address)) for part in self._reader.destinations(key))
        return {destination: active + inactive for destination, _, active, inactive in found}

    def each_connections(self, key: FrontendKey) -> Iterator[tuple[Destination, int]]:
        """Yield the same as it arrives, for a server with very many destinations. Raises KernelError."""
        for part in self._reader.stream(key):
            destination, _, active, inactive = parse_destination(part, len(key.address))
            yield destination, active + inactive

    def has(self, scheduler: str) -> bool:
        """Whether a scheduler, or `pe_` and an engine, can be used; the kernel loads its module if it can.

        Raises KernelError.
        """
        engine = scheduler.removeprefix(ENGINE)
        is_engine = engine != scheduler
        server = (
            ServerAttributes("rr", PERSISTENT, 60, None, engine)
            if is_engine
            else ServerAttributes(scheduler, 0, 0)
        )
        refused = self.apply([IpvsStep(Verb.NEW_SERVICE, PROBE, server), IpvsStep(Verb.DEL_SERVICE, PROBE)])
        if refused and refused[0].errno != errno.ENOENT:
            raise KernelError(f"IPVS scheduler {scheduler}", refused[0].errno)
        return not refused

    def timeouts(self) -> tuple[int, int, int]:
        """Return the idle timeouts of TCP, TCP after FIN, and UDP, in seconds."""
        reply = self._wire.request(generic(self._family, IPVS_CMD_GET_CONFIG, b""))
        values = {number: native_u32(payload) for number, payload in attributes(reply, GENERIC.size)}
        tcp, tcp_fin, udp = (values.get(IPVS_CMD_ATTR_TIMEOUT_TCP + i, 0) for i in range(3))
        return tcp, tcp_fin, udp

    def set_timeouts(self, tcp: int, tcp_fin: int, udp: int) -> None:
        """Set idle timeouts in seconds; 0 leaves one as it is. Raises KernelError."""
        body = b"".join(
            # What is too long for a number of the kernel is too long for it in any case, and it shall refuse it.
            attribute(IPVS_CMD_ATTR_TIMEOUT_TCP + i, struct.pack("=I", min(v, LONGEST)))
            for i, v in enumerate((tcp, tcp_fin, udp))
            if v
        )
        failures = self._wire.batch([generic(self._family, IPVS_CMD_SET_CONFIG, body)])
        if failures:
            raise KernelError("setting IPVS timeouts", failures[0])

    def destinations(self, key: FrontendKey) -> dict[Destination, DestinationAttributes]:
        """Return the destinations of a server; none for a server that is gone. Raises Lost."""
        length = len(key.address)
        return dict(parse_attributes(part, length) for part in self._reader.destinations(key))

    def each_destination(self, key: FrontendKey) -> Iterator[tuple[Destination, DestinationAttributes]]:
        """Yield the same as it arrives, for a server with very many. Raises KernelError."""
        for part in self._reader.stream(key):
            yield parse_attributes(part, len(key.address))


def _is_there(refused: StepRefused) -> bool:
    return refused.errno == errno.EEXIST and refused.step.verb in ALREADY_THERE


def _set_instead(step: IpvsStep) -> IpvsStep:
    return IpvsStep(ALREADY_THERE[step.verb], step.key, step.server, step.destinations, step.attributes)


def report(refused: Sequence[StepRefused]) -> None:
    """Log what IPVS refused: each object once, and not thousands of them."""
    logged: dict[FrontendKey, StepRefused] = {}
    for item in refused:
        if len(logged) < LOGGED_AT_ONCE:
            logged.setdefault(item.step.key, item)
    for key, item in logged.items():
        log.error(
            messages.IPVS_REFUSED,
            verb=item.step.verb.name,
            frontend=str(key),
            destination=str(item.destination) if item.destination else None,
            err=item.reason,
        )
    if len(refused) > len(logged):
        log.error("Kernel refused more IPVS changes", count=len(refused) - len(logged))
