"""The attributes of a Service's virtual servers: scheduler and its flags, session affinity, single packets.

In: the Service and the scheduler that it has. Out: `ServerAttributes`, and sentences about what is asked for and
has no effect. Deterministic, no I/O.
"""

from collections.abc import Sequence
from functools import lru_cache

from msgspec.structs import replace

from ipvsproxy.config.annotation_values import FLAGS
from ipvsproxy.plan.model import Protocol, Service
from ipvsproxy.plan.state import ONE_PACKET, PERSISTENT, SCHED_1, SCHED_2, SCHED_3, ServerAttributes

SCHEDULER_FLAGS = {"mh": SCHED_1 | SCHED_2, "sh": SCHED_1}
"""A removed or draining destination must not refuse new connections, hence the fallback; mh
counts the client's port too, as in kube-proxy; sh does not, since one place per client is what it is for."""
BITS = (0, SCHED_1, SCHED_2, SCHED_3)
"""By the kernel's number of a flag."""


def server_of(service: Service, scheduler: str, protocol: Protocol, number: int) -> ServerAttributes:
    """Return the attributes for one protocol and one family (4 or 6)."""
    one_packet = service.one_packet and protocol is Protocol.UDP and not service.affinity_seconds
    prefix = service.affinity_prefixes[number == 6] if service.affinity_seconds else 0
    engine = service.affinity_engine if protocol is Protocol.UDP and service.affinity_seconds else ""
    made = _attributes(scheduler, service.scheduler_flags, service.affinity_seconds, one_packet, number, prefix)
    return replace(made, engine=engine) if engine else made


@lru_cache(maxsize=1024)  # one value for all Services that want the same
def _attributes(
    scheduler: str,
    names: tuple[str, ...] | None,
    affinity: int,
    one_packet: bool,
    number: int,
    prefix: int,
) -> ServerAttributes:
    flags = _flags(names, scheduler)
    flags |= (PERSISTENT if affinity else 0) | (ONE_PACKET if one_packet else 0)
    return ServerAttributes(scheduler, flags, affinity, _netmask(number, prefix))


def _flags(names: Sequence[str] | None, scheduler: str) -> int:
    """Return the flags that a Service asks for; None leaves them to us."""
    if names is None:
        return SCHEDULER_FLAGS.get(scheduler, 0)
    flags = 0
    for name in names:
        of, number = FLAGS[name]
        flags |= BITS[number] if of in ("", scheduler) else 0
    return flags


def _netmask(number: int, prefix: int) -> int | None:
    """Return how IPVS has a prefix: a mask for IPv4, the length for IPv6, None for the whole address."""
    if prefix in (0, 32 if number == 4 else 128):
        return None
    return prefix if number == 6 else 0xFFFFFFFF << (32 - prefix) & 0xFFFFFFFF


def unused_server_wishes(service: Service, scheduler: str) -> list[str]:
    """Return what a Service asks for itself and has no effect."""
    found = []
    if service.scheduler_flags and "scheduler_flags" in service.annotated:
        of_others = [name for name in service.scheduler_flags if FLAGS[name][0] not in ("", scheduler)]
        found += [
            f"{name} has no effect: it is a flag of another scheduler than {scheduler}" for name in of_others
        ]
    asks_for_affinity = any(service.affinity_prefixes) and "affinity_prefixes" in service.annotated
    if asks_for_affinity and not service.affinity_seconds:
        found.append("a netmask of affinity has no effect without sessionAffinity ClientIP")
    if service.affinity_engine and "affinity_engine" in service.annotated:
        udp = any(port.protocol is Protocol.UDP for port in service.ports)
        if not (udp and service.affinity_seconds):
            found.append("an engine of affinity has no effect without sessionAffinity ClientIP and a UDP port")
    return found
