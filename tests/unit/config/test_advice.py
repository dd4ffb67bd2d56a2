import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import Config, DetectLocalMode, Listen
from ipvsproxy.config.advice import family_advice, nodeport_note

FOUR, BOTH = frozenset((4,)), frozenset((4, 6))
QUIET = {"node_name": "n", "nodeport_addresses": ("primary",)}


def advice(families, **settings):
    return family_advice(Config(**QUIET | settings), families)


def test_nothing_to_report():
    assert advice(BOTH, cluster_cidrs=("10.0.0.0/8", "fd00::/8")) == ("", [])
    assert advice(FOUR, cluster_cidrs=("10.0.0.0/8",)) == ("", [])
    assert advice(FOUR) == ("", [])


def test_pods_of_a_family_the_host_has_not_got():
    problem, _ = advice(FOUR, cluster_cidrs=("fd00::/8",))
    assert "clusterCIDR fd00::/8" in problem
    assert advice(FOUR, cluster_cidrs=("fd00::/8",), detect_local_mode=DetectLocalMode.NODE_CIDR)[0] == ""
    problem, warnings = advice(FOUR, cluster_cidrs=("10.0.0.0/8", "fd00::/8"))
    assert problem == ""
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"exclude_cidrs": ("fd00::/8", "10.0.0.0/8")}, "ipvs.excludeCIDRs: fd00::/8"),
        ({"healthz_bind_address": Listen(parse_ip("::1"), 1)}, "healthzBindAddress: [::1]:1"),
        ({"metrics_bind_address": Listen(parse_ip("::"), 1)}, "metricsBindAddress: [::]:1"),
        ({"nodeport_addresses": ("fd00::/8",)}, "no IPv4 range"),
    ],
)
def test_what_an_operator_should_know(settings, word):
    problem, warnings = advice(FOUR, **settings)
    assert problem == ""
    assert [word in warning for warning in warnings] == [True]


def test_a_missing_family_is_open():
    assert "no IPv6 range" in advice(BOTH, nodeport_addresses=("10.0.0.0/8",))[1][0]


def test_that_nodeports_answer_everywhere_is_no_warning():
    assert advice(BOTH, nodeport_addresses=()) == ("", [])
    assert "nodePortAddresses is not set" in nodeport_note(Config("n"))
    assert nodeport_note(Config(**QUIET)) == ""
