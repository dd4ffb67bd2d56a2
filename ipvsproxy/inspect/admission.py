"""Whether the sender of a packet may connect to a frontend, by the groups of sources that tenants are.

Follows nft/rulesets/by_source.nft. The kernel knows groups by their numbers only; which tenants they are is not
known here. No I/O but the questions to `State`.
"""

from enum import StrEnum
from typing import NamedTuple

from ipvsproxy.base.address import family
from ipvsproxy.plan.records import ElementMatch, State
from ipvsproxy.plan.state import FrontendKey
from ipvsproxy.ruleset.elements import ADMIT_OR_DROP
from ipvsproxy.ruleset.schema import ADMITTED, AUDIENCES, BY_AUDIENCE, RESTRICTED, SHARED_GROUP


class Rule(StrEnum):
    """What decides whether a sender may connect, as far as tenants go."""

    NOT_JUDGED = "the node, pods in its network and outside clients are not judged"
    OPEN = "all pods may connect to the Service"
    SHARED_POD = "pods of shared namespaces may connect to every Service"
    ADMITTED = "the Service is of the pod's tenant, or shared with it"
    FOREIGN = "the Service is another tenant's, and not shared with the pod's tenant"
    UNKNOWN_POD = "the tenant of the pod is not known on this node, and the Service is a tenant's"

    @property
    def admits(self) -> bool:
        """Whether the packet goes on."""
        return self not in (Rule.FOREIGN, Rule.UNKNOWN_POD)


class AdmissionRule(NamedTuple):
    """The rule that decides, and the elements it comes from.

    `group` is the sender's, None where it is in none. `drops`: a packet that may not connect gets no answer.
    """

    rule: Rule
    group: int | None = None
    member: ElementMatch | None = None
    admitted: ElementMatch | None = None
    drops: bool = False


NOT_JUDGED = AdmissionRule(Rule.NOT_JUDGED)


def admission(source: bytes, link: str, to: FrontendKey, state: State, *, is_pod: bool) -> AdmissionRule:
    """Say whether what comes in by a link (empty: a process of this node sends it) may connect.

    Raises KernelError.
    """
    number = family(to.address)
    member = state.find(AUDIENCES[number], source) if link else None
    group = member.value if member and isinstance(member.value, int) else None
    if not link or (group is None and not is_pod):
        return NOT_JUDGED
    if not state.find(RESTRICTED[number], to):
        return AdmissionRule(Rule.OPEN, group, member)
    if group is None:
        return AdmissionRule(Rule.UNKNOWN_POD, drops=True)
    if admitted := state.find(ADMITTED[number], to, group):
        return AdmissionRule(Rule.ADMITTED, group, member, admitted)
    if group == SHARED_GROUP:
        return AdmissionRule(Rule.SHARED_POD, group, member)
    verdict = state.find(BY_AUDIENCE[number], to)
    return AdmissionRule(Rule.FOREIGN, group, member, drops=bool(verdict and verdict.value == ADMIT_OR_DROP))
