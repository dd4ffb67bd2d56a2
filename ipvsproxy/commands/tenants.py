"""The tenants of both sides of a connection, and the rule between them, in words."""

from typing import NamedTuple

from ipvsproxy.commands.service_names import NO_TENANT, Names
from ipvsproxy.config.annotation_values import EVERY_TENANT
from ipvsproxy.config.annotations import PREFIX
from ipvsproxy.inspect.admission import AdmissionRule, Rule
from ipvsproxy.inspect.explanation import Explanation
from ipvsproxy.plan.tenants import SHARED

SHARE_WITH = f"{PREFIX}share-with"
UNKNOWN = "unknown"
NOT_JUDGED = "not judged"


class Sides(NamedTuple):
    """The tenants of sender and Service (SHARED: of none, None: not known), and the rule that decides."""

    sender: str | None
    owner: str | None
    rule: str
    is_judged: bool = True

    def __str__(self) -> str:
        sender = _shown(self.sender) if self.is_judged else NOT_JUDGED
        return f"Tenants: {sender} -> {_shown(self.owner)}: {self.rule}"


def sides(explanation: Explanation, known: Names) -> Sides | None:
    """Return what tenants have to do with a connection, None where no tenants are known of."""
    found = explanation.admission
    if not known.has_tenants and found.group is None and found.rule.admits:
        return None
    owner = known.owner(explanation.packet.to)
    sender = None if found.group is None else known.sender(found.group)
    return Sides(sender, owner, _rule(found, sender, owner), found.rule is not Rule.NOT_JUDGED)


def _rule(found: AdmissionRule, sender: str | None, owner: str | None) -> str:
    """Say the rule as exactly as the names allow."""
    if found.rule is Rule.OPEN and owner == SHARED:
        return "the Service is in a shared namespace, which all pods may connect to"
    if found.rule is Rule.OPEN and owner:
        return f'the Service is shared with all tenants ({SHARE_WITH}: "{EVERY_TENANT}")'
    if found.rule is Rule.ADMITTED and owner and sender:
        return "the same tenant" if sender == owner else f"the Service is shared with {sender} ({SHARE_WITH})"
    if found.rule is Rule.FOREIGN and owner and sender:
        return f"another tenant's Service, not shared with {sender} ({SHARE_WITH})"
    return found.rule.value


def _shown(tenant: str | None) -> str:
    return UNKNOWN if tenant is None else tenant or NO_TENANT
