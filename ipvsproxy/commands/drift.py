"""What in the kernel is not as the objects want it. What is only on its way there is no drift.

The kernel and the objects are read at different moments, in a big cluster seconds apart, and meanwhile a running
proxy programs what changes. So what differs is looked at again, and counts only if it still does.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from ipvsproxy.base.address import Ranges, parse_cidr
from ipvsproxy.commands.objects import Surroundings, desired, of_this_host
from ipvsproxy.config import Config
from ipvsproxy.inspect.difference import Action, Change, changes
from ipvsproxy.inspect.group_numbers import renumbered
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.kube.once import Unavailable, read_objects
from ipvsproxy.plan.state import FrontendKey, KernelState
from ipvsproxy.reconciler.wanted_state import WantedState

LOOKS = 2
"""How often what differs is looked at again: what changes back and forth may differ the same way once more."""
PAUSE_SECONDS = 1.0
"""Beside the least pause between two syncs of the proxy."""
MOST_LOOKS = 20
"""While each of them finds less: the proxy is at work on a large change, which it makes in slices."""


def differences(config: Config, wanted: WantedState, kernel: KernelState) -> list[Change]:
    """Return what would have to change in the kernel to make it as wanted, but for excluded virtual servers."""
    excluded = Ranges(map(parse_cidr, config.exclude_cidrs))
    if config.tenant_label:
        kernel = replace(kernel, elements=renumbered(kernel.elements, wanted.elements))
    return list(changes(wanted, kernel, lambda key: key.address in excluded))


def confirmed(
    config: Config, suspected: list[Change], pause: Callable[[float], None] = time.sleep
) -> list[Change]:
    """Return what still differs when it is looked at again, beside a proxy that runs.

    Where a second look fails, what the first one saw counts.
    """
    same = 0
    for _ in range(MOST_LOOKS):
        if not suspected or same == LOOKS:
            break
        pause(config.min_sync_period + PAUSE_SECONDS)
        again = _look(config)
        still = [change for change in suspected if again is None or change in again]
        same = same + 1 if len(still) == len(suspected) else 0
        suspected = still
    return suspected


def _look(config: Config) -> Collection[Change] | None:
    try:
        objects = read_objects(config)
        with KernelReader() as view:
            around, here, kernel = Surroundings.of(view), view.other_addresses(), state(view)
    except (Unavailable, KernelError, OSError):
        return None
    wanted = desired(
        of_this_host(config), objects.listed(), here, around, objects.servers, objects.neighbours, kernel.servers
    )
    return set(differences(config, wanted, kernel))


def state(view: KernelReader) -> KernelState:
    """Return what the kernel has of ours. Raises KernelError."""
    found = view.all_elements() if view.has_table() else {}
    return KernelState(servers=view.server_states(), vips=view.vips(), elements=found)


def sentences(found: Iterable[Change]) -> Iterator[str]:
    """Yield changes as what is wrong now."""
    for change in found:
        what = f"{change.object} {change.name}" + (f" of {change.frontend}" if change.object == "endpoint" else "")
        if change.action is Action.ADD:
            yield f"{what} is missing"
        elif change.action is Action.REMOVE:
            yield f"{what} is not wanted"
        else:
            yield f"{what} is {change.was}, not {change.wanted}"


def about(found: Iterable[Change], only: Collection[FrontendKey]) -> list[Change]:
    """Return the changes that concern some frontends: of themselves, and of the VIPs that they have."""
    keys, addresses = set(only), {key.address for key in only}
    return [c for c in found if c.owner in keys or (c.object == "VIP" and c.owner in addresses)]
