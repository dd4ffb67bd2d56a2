"""Whether the proxy follows the tenants of namespaces and pods."""

import pytest
from msgspec.structs import replace

from ipvsproxy.diagnosis.facts import DnsAnswer, Facts, Proxy, SettingsFacts, TenantDns, TenantFacts
from ipvsproxy.diagnosis.finding import CheckResult
from ipvsproxy.diagnosis.tenants import check_tenant_dns, check_tenants

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


FROM = "192.0.2.1:40000"
OWN = DnsAnswer("10.96.0.54", "web.blue-web.svc.cluster.local", ("10.96.0.20",), asked_from=FROM)
HIDDEN = DnsAnswer("10.96.0.54", "web.green-web.svc.cluster.local", error="NXDOMAIN")
BLUE = TenantDns("blue", "blue-dns/dns", OWN, ("10.96.0.20",), "green", HIDDEN, ("10.96.0.30",))


@pytest.mark.parametrize(
    ("found", "verdict", "text"),
    [
        (BLUE, CheckResult.OK, "1 DNS Service of tenants"),
        (replace(BLUE, foreign=None), CheckResult.OK, "1 DNS Service of tenants"),
        # What a name server outside of the cluster says to any name.
        (replace(BLUE, foreign=replace(HIDDEN, error="", addresses=("192.0.2.80",))), CheckResult.OK, ""),
        (replace(BLUE, own=replace(OWN, error="no answer within 4 s", asked_from="")), CheckResult.PROBLEM,
         "does not answer: no answer within 4 s"),
        (replace(BLUE, own=replace(OWN, error="NXDOMAIN")), CheckResult.WARNING, "does not resolve web.blue-web"),
        (replace(BLUE, own=replace(OWN, addresses=())), CheckResult.WARNING, "no address"),
        (replace(BLUE, foreign=replace(HIDDEN, error="", addresses=("10.96.0.30",))), CheckResult.PROBLEM,
         "resolves web.green-web.svc.cluster.local, a Service of tenant green"),
    ],
)  # fmt: skip
def test_the_dns_of_a_tenant_answers_and_resolves_names_of_its_tenant_only(found, verdict, text):
    (finding,) = check_tenant_dns(Facts(tenant_dns=(found,)))
    assert finding.verdict is verdict
    assert text in finding.summary
    assert list(check_tenant_dns(Facts())) == []


def test_nothing_is_reported_where_there_are_to_be_none():
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
