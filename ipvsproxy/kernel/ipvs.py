"""IPVS over generic netlink: steps of the plan into messages, and the kernel's tables back into state.

Attribute numbers and layouts: include/uapi/linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c. The forwarding
method is always masquerading (NAT), thresholds are off. Firewall-mark servers belong to others and are not
even read.

`Ipvs` belongs to the loop's thread. Reading destinations has a socket of its own with a small receive buffer:
the kernel sizes its answer by the largest read a socket ever made, and small answers cost half the time.
"""

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache

from ipvsproxy.kernel.netlink import (
    GENERIC,
    KernelError,
    Message,
    Wire,
    attribute,
    attributes,
    generic,
    generic_family,
)
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import Destination, FrontendKey, Server, ServerState

GET_SERVICE, GET_DEST, SET_CONFIG, GET_CONFIG = 4, 8, 12, 13
CMD_SERVICE, CMD_DEST, CMD_TIMEOUT_TCP = 1, 2, 4
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK = 1, 2, 3, 4, 5
SVC_SCHED, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK = 6, 7, 8, 9
DEST_ADDR, DEST_PORT, DEST_FWD, DEST_WEIGHT, DEST_UPPER, DEST_LOWER = 1, 2, 3, 4, 5, 6
DEST_ACTIVE, DEST_INACTIVE, DEST_PERSISTENT, DEST_AF = 7, 8, 9, 11
NETLINK_GENERIC = 16
HASHED = 0x2
"""IP_VS_SVC_F_HASHED, which the kernel sets by itself."""
ALREADY_THERE = {Verb.NEW_SERVICE: Verb.SET_SERVICE, Verb.NEW_DEST: Verb.SET_DEST}
ALREADY_GONE = {Verb.DEL_SERVICE: (errno.ESRCH, errno.ENOENT), Verb.DEL_DEST: (errno.ENOENT, errno.ESRCH)}
SMALL_READ = 4096
PROBE = FrontendKey(bytes((198, 51, 100, 0)), socket.IPPROTO_TCP, 20000)
"""A frontend nobody has (TEST-NET-2), on which a scheduler is tried out."""


class Ipvs:
    """The virtual servers of this network namespace."""

    def __init__(self) -> None:
        """Open the sockets; raises KernelError(ENOENT) when the kernel has no IPVS."""
        self._family = generic_family("IPVS")
        self._wire = Wire(NETLINK_GENERIC)
        self._small = Wire(NETLINK_GENERIC, receive=SMALL_READ)

    def close(self) -> None:
        """Close the sockets."""
        self._wire.close()
        self._small.close()

    def apply(self, steps: Sequence[IpvsStep]) -> dict[int, int]:
        """Carry out steps in order and return {index: errno} of those that could not be.

        What is already there is set instead, and what is already gone counts as removed. Raises Lost.
        """
        failures = self._wire.batch([self._message(step) for step in steps])
        again = [i for i, code in failures.items() if code == errno.EEXIST and steps[i].verb in ALREADY_THERE]
        if again:
            # One that exists is set in place, never deleted and added: that would drop its connections.
            steps_again = [steps[i]._replace(verb=ALREADY_THERE[steps[i].verb]) for i in again]
            failed_again = self._wire.batch([self._message(step) for step in steps_again])
            failures = {i: code for i, code in failures.items() if i not in again}
            failures |= {again[j]: code for j, code in failed_again.items()}
        return {i: code for i, code in failures.items() if code not in ALREADY_GONE.get(steps[i].verb, ())}

    def servers(self) -> dict[FrontendKey, Server]:
        """Read all virtual servers but firewall-mark ones, in one dump. Raises Lost."""
        message = generic(self._family, GET_SERVICE, b"")
        return dict(filter(None, map(_parse_server, self._wire.dump(message))))

    def observe(self) -> dict[FrontendKey, ServerState]:
        """Read all virtual servers with the weights of their destinations. Raises Lost."""
        return {key: ServerState(server, self.weights(key)) for key, server in self.servers().items()}

    def connections(self, key: FrontendKey) -> dict[Destination, int]:
        """Return how many connections, active and inactive, each destination of a server has. Raises Lost."""
        return {d: active + inactive for d, _, active, inactive in self._destinations(key)}

    def probe(self, scheduler: str) -> None:
        """Make sure that a scheduler can be used, loading its module.

        Raises KernelError(ENOENT) when the kernel has no such scheduler.
        """
        server = Server(scheduler, 0, 0)
        failures = self.apply([IpvsStep(Verb.NEW_SERVICE, PROBE, server), IpvsStep(Verb.DEL_SERVICE, PROBE)])
        if failures:
            raise KernelError(f"IPVS scheduler {scheduler}", failures[min(failures)])

    def timeouts(self) -> tuple[int, int, int]:
        """Return the idle timeouts of TCP, TCP after FIN, and UDP, in seconds."""
        answer = self._wire.request(generic(self._family, GET_CONFIG, b""))
        values = {number: _u32(payload) for number, payload in attributes(answer, GENERIC.size)}
        tcp, tcp_fin, udp = (values.get(CMD_TIMEOUT_TCP + i, 0) for i in range(3))
        return tcp, tcp_fin, udp

    def set_timeouts(self, tcp: int, tcp_fin: int, udp: int) -> None:
        """Set idle timeouts in seconds; 0 leaves one as it is. Raises KernelError."""
        body = b"".join(
            attribute(CMD_TIMEOUT_TCP + i, struct.pack("=I", v)) for i, v in enumerate((tcp, tcp_fin, udp)) if v
        )
        failures = self._wire.batch([generic(self._family, SET_CONFIG, body)])
        if failures:
            raise KernelError("setting IPVS timeouts", failures[0])

    def weights(self, key: FrontendKey) -> dict[Destination, int]:
        """Return the destinations of a server with their weights; none for a server that is gone. Raises Lost."""
        return {destination: weight for destination, weight, _, _ in self._destinations(key)}

    def _destinations(self, key: FrontendKey) -> list[tuple[Destination, int, int, int]]:
        try:
            parts = self._small.dump(generic(self._family, GET_DEST, attribute(CMD_SERVICE, _key_attributes(key))))
        except KernelError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                return []
            raise
        return [_parse_destination(part, len(key.address)) for part in parts]

    def _message(self, step: IpvsStep) -> Message:
        body = _key_attributes(step.key)
        if step.server is not None:
            body += _server_attributes(step.server, len(step.key.address))
        parts = NESTED.pack(4 + len(body), CMD_SERVICE) + body
        if step.destination is not None:
            body = _destination_attributes(step.destination, step.weight)
            parts += NESTED.pack(4 + len(body), CMD_DEST) + body
        return generic(self._family, step.verb, parts)


NESTED = struct.Struct("=HH")
KEY = struct.Struct("=HHH2x HHH2x HH16s HH2s2x".replace(" ", ""))
SERVER = struct.Struct("=HHII HHI HHI".replace(" ", ""))
DESTINATION = struct.Struct("=HH16s HH2s2x HHI HHI HHI HHI HHH2x".replace(" ", ""))


def address_family(address: bytes) -> int:
    """Return AF_INET or AF_INET6."""
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


@lru_cache(maxsize=8)  # a server and its destinations come one after the other
def _key_attributes(key: FrontendKey) -> bytes:
    address, protocol, port = key
    return KEY.pack(
        *(6, SVC_AF, address_family(address)),
        *(6, SVC_PROTOCOL, protocol),
        *(20, SVC_ADDR, address),  # padded with zeros to the 16 bytes of union nf_inet_addr
        *(6, SVC_PORT, port.to_bytes(2)),
    )


@lru_cache(maxsize=64)
def _server_attributes(server: Server, address_length: int) -> bytes:
    netmask = 0xFFFFFFFF if address_length == 4 else 128  # IPv6: a prefix length
    return attribute(SVC_SCHED, server.scheduler.encode() + b"\0") + SERVER.pack(
        *(12, SVC_FLAGS, server.flags, 0xFFFFFFFF),
        *(8, SVC_TIMEOUT, server.timeout),
        *(8, SVC_NETMASK, netmask),
    )


def _destination_attributes(destination: Destination, weight: int) -> bytes:
    address, port = destination
    return DESTINATION.pack(
        *(20, DEST_ADDR, address),
        *(6, DEST_PORT, port.to_bytes(2)),
        *(8, DEST_FWD, 0),  # masquerading
        *(8, DEST_WEIGHT, weight),
        *(8, DEST_UPPER, 0),
        *(8, DEST_LOWER, 0),
        *(6, DEST_AF, address_family(address)),
    )


def _parse_server(part: bytes) -> tuple[FrontendKey, Server] | None:
    """Read one record of a GET_SERVICE dump; None for firewall-mark servers."""
    fields = _nested(part, CMD_SERVICE)
    if SVC_FWMARK in fields or SVC_PORT not in fields:
        return None
    length = 4 if _u16(fields[SVC_AF]) == socket.AF_INET else 16
    key = FrontendKey(
        bytes(fields[SVC_ADDR][:length]), _u16(fields[SVC_PROTOCOL]), int.from_bytes(fields[SVC_PORT], "big")
    )
    scheduler = bytes(fields[SVC_SCHED]).rstrip(b"\0").decode()
    return key, Server(scheduler, _u32(fields[SVC_FLAGS]) & ~HASHED, _u32(fields[SVC_TIMEOUT]))


def _parse_destination(part: bytes, length: int) -> tuple[Destination, int, int, int]:
    """Read one record of a GET_DEST dump: destination, weight, active and inactive connections."""
    fields = _nested(part, CMD_DEST)
    if DEST_AF in fields:
        length = 4 if _u16(fields[DEST_AF]) == socket.AF_INET else 16
    destination = Destination(bytes(fields[DEST_ADDR][:length]), int.from_bytes(fields[DEST_PORT], "big"))
    return destination, _u32(fields[DEST_WEIGHT]), _u32(fields[DEST_ACTIVE]), _u32(fields[DEST_INACTIVE])


def _nested(part: bytes, wanted: int) -> dict[int, memoryview]:
    for number, payload in attributes(part, GENERIC.size):
        if number == wanted:
            return dict(attributes(payload))
    return {}


def _u16(data: memoryview) -> int:
    return int.from_bytes(data[:2], sys.byteorder)


def _u32(data: memoryview) -> int:
    return int.from_bytes(data[:4], sys.byteorder)
