import pytest

from ipvsproxy.plan.leftovers import SETS, FoundTable, Jump, is_leftover, kept, removal


def found(*jumps, chains=("KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")):
    return FoundTable("ip", "nat", frozenset(chains), frozenset({"PREROUTING", "POSTROUTING"}), tuple(jumps))


@pytest.mark.parametrize(
    "name",
    [
        "KUBE-SERVICES", "KUBE-NODE-PORT", "KUBE-NODEPORTS", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
        "KUBE-FORWARD", "KUBE-PROXY-CANARY",
        "KUBE-SVC-ERIFXISQEP7F7OF4", "KUBE-SEP-IT2ZTR26TO4XFPTO", "KUBE-EXT-X", "KUBE-SVL-X",
    ],
)  # fmt: skip
def test_chains_of_kube_proxy_are_known(name):
    assert is_leftover(name)


@pytest.mark.parametrize(
    "name",
    [
        "KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-MARK-DROP", "KUBE-ROUTER-SERVICES",
        "KUBE-NWPLCY-DEFAULT", "KUBE-POD-FW-ABC", "KUBE-SERVICES-OF-MINE", "cali-FORWARD", "KUBE-SVC-a; x",
    ],
)  # fmt: skip
def test_chains_of_the_kubelet_and_of_others_are_not(name):
    assert not is_leftover(name)


def test_jumps_go_first_then_contents_then_chains():
    jumps = Jump("PREROUTING", 7, "KUBE-SERVICES"), Jump("PREROUTING", 8, "DOCKER")
    assert removal(found(*jumps, chains=("KUBE-SVC-B", "KUBE-SERVICES"))) == [
        "delete rule ip nat PREROUTING handle 7",
        "flush chain ip nat KUBE-SERVICES",
        "flush chain ip nat KUBE-SVC-B",
        "delete chain ip nat KUBE-SERVICES",
        "delete chain ip nat KUBE-SVC-B",
    ]


def test_masquerading_stays_while_another_program_marks_packets_for_it():
    jumps = (
        Jump("PREROUTING", 3, "KUBE-SERVICES"),
        Jump("POSTROUTING", 4, "KUBE-POSTROUTING"),
        Jump("CNI-HOSTPORT-SETMARK", 5, "KUBE-MARK-MASQ"),
    )
    assert kept(found(*jumps)) == {"KUBE-MARK-MASQ", "KUBE-POSTROUTING"}
    assert removal(found(*jumps)) == [
        "delete rule ip nat PREROUTING handle 3",
        "flush chain ip nat KUBE-SERVICES",
        "delete chain ip nat KUBE-SERVICES",
    ]
    assert not kept(found(*jumps[:2]))


def test_names_of_sets_are_cut_as_the_kernel_wants_them():
    assert len(SETS) == len(set(SETS)) == 34
    assert {"KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"} <= set(SETS)
    assert max(map(len, SETS)) == 31
