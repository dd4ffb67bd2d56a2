"""Waiting for a kube-proxy that takes this node over, before what is ours goes: no new connection is refused then.

Each mode has programmed a family when what it writes last is there (`kernel.filters.kube_proxy`). Until then the
state that ipvsproxy has left goes on serving, and is put back where a kube-proxy that starts takes it away.
"""

import errno
import math
import time
from collections.abc import Mapping

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import family
from ipvsproxy.kernel.filters.kube_proxy import programmed
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.kept_state import KeptState
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.wire.netlink import KernelError

LOOK_SECONDS, REMINDER_SECONDS = 0.1, 30.0
OTHER_FAMILY_SECONDS = 30.0
"""kube-proxy programs its two families one after the other."""

log = structlog.get_logger()


def await_kube_proxy() -> Mapping[int, str]:
    """Wait until a kube-proxy has programmed every family (4, 6) that has virtual servers; return its modes.

    A family that is not there long after the other one is not served by that kube-proxy. Raises KernelError and
    OSError.
    """
    served = _served_families()
    # Without a table of ours, servers are those of other programs.
    kept = KeptState.secured() if served and Ruleset(TABLE.name).tables() else None
    log.info(messages.WAITING_FOR_RULES, families=sorted(served))
    deadline, reminded, problem = math.inf, time.monotonic(), ""
    while True:
        modes, now = programmed(), time.monotonic()
        deadline = min(deadline, now + OTHER_FAMILY_SECONDS) if modes else math.inf
        if modes and (served <= modes.keys() or now >= deadline):
            log.info("Found the rules of kube-proxy", modes=modes)
            if kept is not None:
                kept.release()
            return modes
        if now >= reminded + REMINDER_SECONDS:
            reminded = now
            log.warning(messages.NO_RULES_YET, families=sorted(served - modes.keys()))
        if kept is not None:
            problem = _put_back(kept, problem)
        time.sleep(LOOK_SECONDS)


def _put_back(kept: KeptState, known: str) -> str:
    """Put back what was taken away; return why that failed, empty if it did not, and log a reason that is new.

    What was secured is nowhere else, so the next look tries again.
    """
    try:
        kept.put_back()
    except KernelError as error:
        if str(error) != known:
            log.error(messages.NOT_PUT_BACK, err=str(error))
        return str(error)
    return ""


def _served_families() -> set[int]:
    try:
        return {family(key.address) for key in Ipvs().servers()}
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return set()  # a kernel without IPVS has no servers
        raise
