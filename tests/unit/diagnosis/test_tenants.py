"""Whether the proxy follows the tenants of namespaces and pods."""

import pytest

from ipvsproxy.diagnosis.facts import Facts, Proxy, SettingsFacts, TenantFacts
from ipvsproxy.diagnosis.finding import CheckResult
from ipvsproxy.diagnosis.tenants import check_tenants

LABEL = "ipvsproxy.io/tenant"


def judged(found, **others):
    return list(check_tenants(Facts(tenants=found, **others)))


@pytest.mark.parametrize(
    ("found", "verdict", "text"),
    [
        (TenantFacts(LABEL, 2, 3, 7, 0, 0), CheckResult.OK, "2 tenants in 3 namespaces"),
        (TenantFacts(LABEL, 1, 1, 1, 0, 0), CheckResult.OK, "1 address of pods of this node"),
        (TenantFacts(LABEL, 2, 3, 7, 1, 0), CheckResult.PROBLEM, "1 address of pods: the group is not"),
        (TenantFacts(LABEL, 2, 3, 7, 0, 2), CheckResult.PROBLEM, "2 frontends: not the tenants that may connect"),
        (TenantFacts(LABEL, 0, 0, 0, 0, 0), CheckResult.WARNING, f"no namespace has the label {LABEL}"),
        (TenantFacts(LABEL, 2, 3, 7), CheckResult.NOT_CHECKED, "is not known"),
    ],
)
def test_what_the_kernel_has_of_tenants(found, verdict, text):
    (finding,) = judged(found)
    assert finding.verdict is verdict
    assert text in " ".join((finding.summary, *finding.evidence))
    assert ("list and watch namespaces and pods" in finding.next) is (verdict is CheckResult.PROBLEM)


def test_nothing_is_said_where_there_are_to_be_none():
    assert judged(None) == []


def test_objects_that_cannot_be_read_leave_tenants_unchecked():
    (finding,) = judged(None, unread={"tenants": "objects cannot be read"})
    assert (finding.verdict, finding.summary) == (CheckResult.NOT_CHECKED, "objects cannot be read")


def test_a_proxy_with_other_settings_is_not_judged():
    settings = SettingsFacts(flags={"tenant-label": LABEL})
    (finding,) = judged(
        TenantFacts(LABEL, 2, 3, 7, 5, 5), settings=settings, proxy=Proxy(200, flags={"tenant-label": ""})
    )
    assert finding.verdict is CheckResult.NOT_CHECKED
