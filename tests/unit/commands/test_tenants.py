"""The tenants of both sides of a connection, and the rule between them."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands.explain import document, parts
from ipvsproxy.commands.service_names import Names
from ipvsproxy.commands.tenants import sides
from ipvsproxy.inspect.admission import AdmissionRule, Rule
from ipvsproxy.inspect.explanation import Explanation, Packet, PacketOutcome, Sender
from ipvsproxy.ruleset.schema import SHARED_GROUP
from tests.support.build import key

WEB = key("10.96.0.10:80")
BLUE, GREEN = 2, 3
GROUPS = {"2": "blue", "3": "green"}


def asked(rule, group=None):
    packet = Packet(parse_ip("10.244.1.9"), WEB, "pods0")
    found = AdmissionRule(rule, group)
    return Explanation(packet, Sender.POD, (), PacketOutcome.ACCEPTED, "", admission=found)


def known(owner):
    return Names(
        {str(WEB): "shop/web"}, tenants=GROUPS, tenants_of_namespaces={} if owner is None else {"shop": owner}
    )


@pytest.mark.parametrize(
    ("rule", "group", "owner", "text"),
    [
        (Rule.ADMITTED, BLUE, "blue", "blue -> blue: the same tenant"),
        (Rule.ADMITTED, GREEN, "blue",
         "green -> blue: the Service is shared with green (ipvsproxy.io/share-with)"),
        (Rule.FOREIGN, GREEN, "blue",
         "green -> blue: another tenant's Service, not shared with green (ipvsproxy.io/share-with)"),
        (Rule.FOREIGN, GREEN, None, f"green -> unknown: {Rule.FOREIGN.value}"),
        (Rule.FOREIGN, 9, "blue",
         "group 9 -> blue: another tenant's Service, not shared with group 9 (ipvsproxy.io/share-with)"),
        (Rule.SHARED_POD, SHARED_GROUP, "blue", f"no tenant -> blue: {Rule.SHARED_POD.value}"),
        (Rule.OPEN, GREEN, "",
         "green -> no tenant: the Service is in a shared namespace, which all pods may connect to"),
        (Rule.OPEN, GREEN, "blue",
         'green -> blue: the Service is shared with all tenants (ipvsproxy.io/share-with: "*")'),
        (Rule.OPEN, None, None, f"unknown -> unknown: {Rule.OPEN.value}"),
        (Rule.UNKNOWN_POD, None, "blue", f"unknown -> blue: {Rule.UNKNOWN_POD.value}"),
        (Rule.NOT_JUDGED, None, "blue", f"not judged -> blue: {Rule.NOT_JUDGED.value}"),
    ],
)  # fmt: skip
def test_both_tenants_and_the_rule_are_named(rule, group, owner, text):
    explanation = asked(rule, group)
    assert str(sides(explanation, known(owner))) == f"Tenants: {text}"
    assert f"Tenants: {text}" in list(parts(explanation, known(owner)))


def test_programs_get_them_too():
    assert document(asked(Rule.ADMITTED, BLUE), known("blue"))["tenants"] == {
        "from": "blue", "to": "blue", "rule": "the same tenant"
    }  # fmt: skip


@pytest.mark.parametrize("rule", [Rule.OPEN, Rule.NOT_JUDGED])
def test_nothing_is_reported_about_tenants_where_there_are_none(rule):
    explanation = asked(rule)
    assert sides(explanation, Names({str(WEB): "shop/web"})) is None
    assert document(explanation, Names({}))["tenants"] is None


def test_without_names_the_rule_is_still_reported():
    assert str(sides(asked(Rule.FOREIGN, GREEN), Names({}, "no proxy answers"))).startswith(
        "Tenants: group 3 -> unknown"
    )
