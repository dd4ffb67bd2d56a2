"""What the kernel tells about changes to what is ours, by any program: hints where to look, never the truth.

The loop compares a notice with what it has done itself; what remains was done by others.
"""

import msgspec

from ipvsproxy.plan.state import Vip


class VipsChanged(msgspec.Struct, frozen=True):
    """VIPs have come (True) or gone; `unsure`: whatever may have happened to them, or to kube-ipvs0."""

    changes: tuple[tuple[Vip, bool], ...] = ()
    unsure: bool = False


class RulesChanged(msgspec.Struct, frozen=True):
    """One transaction has changed our table, or rules of others that matter to ours.

    `generation` is the kernel's number of it, `sets` are the sets whose elements have changed. `whole`: a table, a
    chain, a rule or a set as such. `program` is the name of the one that did it.
    `unsure`: some transactions were lost, and any elements may have changed. `forward`: chains or rules have
    changed in a table `filter` of iptables-nft, where the chain FORWARD is. `untracked`: there is a new rule that
    keeps packets from conntrack.
    """

    generation: int
    sets: frozenset[str] = frozenset()
    whole: bool = False
    program: str = ""
    unsure: bool = False
    forward: bool = False
    untracked: bool = False


Notification = VipsChanged | RulesChanged
