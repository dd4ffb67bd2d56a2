"""Facts into findings: nothing to say about a healthy node, the cause first about each sick one."""

import sys

import pytest
from msgspec.structs import replace

from ipvsproxy.diagnosis.facts import (
    Api,
    DestinationFacts,
    Dns,
    DnsAnswer,
    ExternalName,
    Facts,
    KernelFacts,
    KubeProxy,
    Link,
    OwnNode,
    Process,
    Proxy,
    ServerFacts,
    SettingsFacts,
    from_json,
    to_json,
)
from ipvsproxy.diagnosis.finding import CheckResult
from ipvsproxy.diagnosis.node import diagnose
from ipvsproxy.diagnosis.programmed import API_STEP, NAME_STEP
from ipvsproxy.diagnosis.proxies import LAST_SYNC
from ipvsproxy.ruleset.filters import Condition, FilterChain, FilterRule

SYSCTLS = {"net/ipv4/vs/conntrack": 1, "net/ipv4/ip_forward": 1}
CALLS = {"net/bridge/bridge-nf-call-iptables": 1, "net/bridge/bridge-nf-call-ip6tables": 1}
LINKS = (
    Link("lo", addresses=("127.0.0.1", "::1")),
    Link("eth0", addresses=("192.0.2.1", "fe80::1")),
    Link("cni0", "bridge", addresses=("10.244.1.1",)),
    Link("veth1", "veth", master="cni0", hairpin=True),
    Link("kube-ipvs0", "dummy", is_up=False, addresses=("10.96.0.1", "10.96.3.1", "fe80::2")),
)
HERE, THERE = DestinationFacts("10.244.1.10", 8080), DestinationFacts("10.244.2.10", 8080)
SERVERS = (
    ServerFacts("10.96.0.1", "TCP", 443),
    ServerFacts("10.96.3.1", "TCP", 80, backends=(HERE, THERE)),
    ServerFacts("192.0.2.1", "TCP", 31001, backends=(HERE, THERE)),
)
OURS = FilterChain(
    "inet", "ipvsproxy", "input", "input", "filter", 0, rules=(FilterRule(1, (), "goto", "decide"),)
)
NAME, DNS_IP = "kubernetes.default.svc.cluster.local", "10.96.0.10"
EXTERNAL = ExternalName("default/e", "a.example.com", DnsAnswer(DNS_IP, "e", canonical="A.example.com."))
MARK = (0x4000).to_bytes(4, sys.byteorder)
MARKED = Condition("mark", MARK, MARK, MARK)
PODS = Condition("saddr", bytes([10, 244, 0, 0]), bytes([10, 244, 0, 0]), bytes([255, 255, 0, 0]))
NOT_PODS = Condition(
    "daddr", bytes([10, 244, 0, 0]), bytes([10, 244, 0, 0]), bytes([255, 255, 0, 0]), negated=True
)
UNREADABLE = Condition("?")
METRICS = {LAST_SYNC: 970.0, "ipvsproxy_build_info": 1.0}
METERED = Proxy(200, metrics=METRICS, read_at=1000.0)


def healthy(**changes):
    settings = SettingsFacts("node1", cluster_cidrs=("10.244.0.0/16",), sysctls=SYSCTLS)
    facts = Facts(
        settings=settings,
        host=KernelFacts("6.1.0-50-amd64", ("ip_vs", "ip_vs_rr"), ("ip_vs", "ip_vs_rr"), sysctls=SYSCTLS | CALLS),
        links=LINKS,
        pod_cidrs=("10.244.1.0/24",),
        chains=(OURS,),
        our_rules={"input": ("goto decide",)},
        servers=SERVERS,
        vips=("10.96.0.1", "10.96.3.1"),
        processes=(Process(1, "ipvsproxy"), Process(2, "ipvsproxy")),
        proxy=Proxy(200, metrics=METRICS, read_at=1000.0),
        api=Api("the API server", services=2, slices=1),
        drift=(),
        dns=Dns("kube-system/kube-dns", ("10.96.0.1",), DnsAnswer(DNS_IP, NAME, ("10.96.0.1",)), (EXTERNAL,)),
    )
    return replace(facts, **changes)


def host(**changes):
    return replace(healthy().host, **changes)


def sysctl(name, value):
    return host(sysctls=SYSCTLS | CALLS | {name: value})


def links(**changes):
    """The links with one changed or added, by its name; None takes it away."""
    found = {link.name: link for link in LINKS} | {name.replace("_", "-"): link for name, link in changes.items()}
    return tuple(link for link in found.values() if link)


def with_rules(hook, *rules, kind="filter", priority=0, policy="accept", legacy=""):
    return (OURS, FilterChain("ip", "t", "c", hook, kind, priority, policy, rules, legacy))


def dport(number):
    return Condition("dport", number.to_bytes(2), number.to_bytes(2))


def sport(number):
    return Condition("sport", number.to_bytes(2), number.to_bytes(2))


ESTABLISHED = Condition("ctstate", *[(2).to_bytes(4, sys.byteorder)] * 3)


def on(link):
    return Condition("iifname", link.encode() + b"\0", link.encode() + b"\0")


def metrics(**changes):
    return Proxy(200, metrics=METRICS | changes, read_at=1000.0)


SICK = {
    "no ipvs": ({"host": host(has_ipvs=False)}, "kernel", "no IPVS"),
    "no nf_tables": ({"host": host(has_nftables=False)}, "kernel", "no nf_tables"),
    "old kernel": ({"host": host(release="4.19.0")}, "kernel", "older"),
    "no scheduler of a Service": ({"schedulers": ("rr", "twos")}, "scheduler", "twos, for which Services ask"),
    "no scheduler": ({"settings": SettingsFacts(scheduler="mh")}, "scheduler", "no scheduler mh"),
    "a sysctl": ({"host": sysctl("net/ipv4/vs/conntrack", 0)}, "sysctls", "net.ipv4.vs.conntrack is 0, not 1"),
    "full": ({"host": host(pressure=("conntrack: 9 entries, 10 limit; raise it",))}, "pressure", "9 entries"),
    "rp_filter": (
        {
            "host": sysctl("net/ipv4/conf/eth1/rp_filter", 1),
            "links": links(eth1=Link("eth1", addresses=("198.51.100.1",))),
        },
        "reverse path",
        "strict on eth1",
    ),
    "bridge": ({"host": sysctl("net/bridge/bridge-nf-call-iptables", 0)}, "bridge", "same node"),
    "no br_netfilter": ({"host": sysctl("net/bridge/bridge-nf-call-iptables", None)}, "bridge", "is not loaded"),
    "hairpin": ({"links": links(veth1=Link("veth1", "veth", master="cni0", hairpin=False))}, "hairpin", "off"),
    "no kube-ipvs0": ({"links": links(kube_ipvs0=None)}, "kube-ipvs0", "missing"),
    "no dummy": ({"links": links(kube_ipvs0=Link("kube-ipvs0", "veth"))}, "kube-ipvs0", "type veth"),
    "foreign address": (
        {"links": links(kube_ipvs0=Link("kube-ipvs0", "dummy", addresses=("10.9.9.9",)))},
        "kube-ipvs0",
        "10.9.9.9",
    ),
    "VIP twice": ({"links": links(eth1=Link("eth1", addresses=("10.96.3.1",)))}, "kube-ipvs0", "of eth1 as well"),
    "ClusterIP held": ({"held_vips": {"192.0.2.1": "default/x"}}, "VIPs", "address of eth0"),
    "kube-proxy": ({"processes": (Process(1, "kube-proxy"),)}, "other proxies", "kube-proxy runs"),
    "its rules": (
        {"chains": (OURS, FilterChain("ip", "nat", "KUBE-SERVICES"))},
        "other proxies",
        "1 chain in ip nat",
    ),
    "its rules, and no proxy": (
        {"chains": (OURS, FilterChain("ip", "kube-proxy", "x")), "proxy": None},
        "other proxies",
        "has left rules",
    ),
    "its legacy rules": ({"legacy_leftovers": ("iptables-legacy",)}, "other proxies", "in iptables-legacy"),
    "no proxy": ({"proxy": Proxy(error="Connection refused"), "drift": ("x",)}, "proxy", "Connection refused"),
    "not ours": ({"proxy": Proxy(200, is_ours=False)}, "proxy", "not ipvsproxy"),
    "other settings": (
        {
            "proxy": Proxy(
                200, metrics=METRICS, read_at=1000.0, flags={"cluster-cidr": "10.244.0.0/16", "v": "2"}
            ),
            "settings": SettingsFacts(flags={"cluster-cidr": ""}),
            "drift": ("element pod_cidrs4 { 10.244.0.0/16 } is not wanted",),
        },
        "settings",
        "--cluster-cidr is 10.244.0.0/16 there, and empty here",
    ),
    "ill": ({"proxy": Proxy(503, "{}")}, "proxy", "not healthy (503)"),
    "stuck": (
        {"proxy": metrics(kubeproxy_sync_proxy_rules_last_timestamp_seconds=100.0)},
        "proxy",
        "not synced for 900 s",
    ),
    "waiting": (
        {"proxy": metrics(kubeproxy_sync_proxy_rules_last_timestamp_seconds=0.0)},
        "proxy",
        "not synced yet",
    ),
    "refusing": ({"proxy": metrics(ipvsproxy_pending_objects=2)}, "proxy", "refuses 2 objects"),
    "no API": ({"api": Api("the API server", "timed out"), "drift": None}, "objects", "timed out"),
    "a bad object": ({"api": Api("the folder x", refused=("Service a/b: spec",))}, "objects", "a/b"),
    "no table": ({"chains": (), "drift": ("x",)}, "ruleset", "missing"),
    "no chain": ({"our_rules": {"decide": ("accept",)}}, "ruleset", "chain decide: missing"),
    "less rules": ({"our_rules": {"input": ("", "")}}, "ruleset", "chain input: 1 rules, not 2"),
    "another rule": ({"our_rules": {"input": ("accept",)}}, "ruleset", "rule 1 ends with goto decide, not accept"),
    "another policy": (
        {"chains": (replace(OURS, policy="drop"),), "our_rules": {"input": ("goto decide",)}},
        "ruleset",
        "its policy is drop",
    ),
    "drift": ({"drift": ("VIP 10.96.3.1 is missing",)}, "drift", "VIP 10.96.3.1 is missing"),
    "forward policy": (
        {"chains": with_rules("forward", policy="drop")},
        "other rules",
        "policy of ip t c drops repl",
    ),
    "legacy policy": (
        {"chains": with_rules("forward", policy="drop", legacy="iptables-legacy")},
        "other rules",
        "iptables-legacy t c",
    ),
    "input drops": (
        {"chains": with_rules("input", FilterRule(3, (dport(80),), "drop"))},
        "other rules",
        "rule 3 of ip t c",
    ),
    "output rejects": (
        {"chains": with_rules("output", FilterRule(3, (), "reject"))},
        "other rules",
        "rule 3 of ip t c",
    ),
    "hidden from conntrack": (
        {"chains": with_rules("prerouting", FilterRule(3, (dport(80),), "notrack"), priority=-300)},
        "other rules",
        "rule 3 of ip t c hides connections to 10.96.3.1",
    ),
    "dropped before conntrack": (
        {"chains": with_rules("prerouting", FilterRule(3, (dport(80),), "drop"), priority=-300)},
        "other rules",
        "rule 3 of ip t c drops connections to 10.96.3.1",
    ),
    "replies dropped at once": (
        {"chains": with_rules("prerouting", FilterRule(3, (sport(8080), ESTABLISHED), "drop"), priority=-150)},
        "other rules",
        "rule 3 of ip t c drops replies",
    ),
    "dropped at the end": (
        {"chains": with_rules("postrouting", FilterRule(3, (dport(8080),), "drop"), priority=50)},
        "other rules",
        "rule 3 of ip t c drops what 10.96.3.1:80/TCP sends",
    ),
    "perhaps dropped": (
        {"chains": with_rules("forward", FilterRule(3, (UNREADABLE,), "accept"), policy="drop")},
        "other rules",
        "unless a rule",
    ),
    "perhaps accepted by a map": (
        {"chains": with_rules("forward", FilterRule(3, (), "?"), policy="drop")},
        "other rules",
        "unless a rule",
    ),
    "mark dropped": (
        {"chains": with_rules("forward", FilterRule(3, (MARKED,), "drop"))},
        "packet mark",
        "drops them",
    ),
    "mark set": ({"chains": with_rules("forward", FilterRule(3, marks=0x4000))}, "packet mark", "uses bit 0x4000"),
    "hostPort": (
        {"chains": with_rules("prerouting", FilterRule(3, (dport(31001),), "dnat"), kind="nat", priority=-100)},
        "hostPort",
        "NodePort 192.0.2.1:31001/TCP",
    ),
    "a port of a load balancer": (
        {
            "chains": with_rules("prerouting", FilterRule(3, (dport(443),), "dnat"), kind="nat", priority=-100),
            "servers": (*SERVERS, ServerFacts("192.0.2.1", "TCP", 443, backends=(HERE,))),
        },
        "hostPort",
        "192.0.2.1:443/TCP elsewhere",
    ),
    "early DNAT of a VIP": (
        {"chains": with_rules("prerouting", FilterRule(3, (dport(80),), "dnat"), kind="nat", priority=-150)},
        "hostPort",
        "VIP 10.96.3.1:80/TCP",
    ),
    "masquerade": (
        {"chains": with_rules("postrouting", FilterRule(3, (PODS,), "masquerade"), kind="nat", priority=100)},
        "masquerade",
        "masquerades what one pod sends",
    ),
    "DNS silent": ({"dns": Dns("a/dns", (), DnsAnswer(DNS_IP, NAME, error="timed out"))}, "DNS", "timed out"),
    "DNS wrong": (
        {"dns": Dns("a/dns", ("10.96.0.1",), DnsAnswer(DNS_IP, NAME, ("10.1.1.1",)))},
        "DNS",
        "10.1.1.1",
    ),
    "CNAME wrong": (
        {"dns": Dns("a/dns", (), None, (ExternalName("d/e", "a.b", DnsAnswer(DNS_IP, "e", canonical="c.d")),))},
        "DNS",
        "declares a.b, DNS has c.d",
    ),
}

FINE = {
    "a plugin that masquerades what leaves the cluster": with_rules(
        "postrouting", FilterRule(3, (PODS, NOT_PODS), "masquerade"), kind="nat", priority=100
    ),
    "a hostPort that VIPs are claimed before": with_rules(
        "prerouting", FilterRule(3, (dport(80),), "dnat"), kind="nat", priority=-100
    ),
    "a policy of drop with a plugin that accepts pods": with_rules(
        "forward", FilterRule(3, (PODS,), "accept"), policy="drop"
    ),
    "our own rule in FORWARD": with_rules(
        "forward", FilterRule(3, (MARKED,), "accept", comment="ipvsproxy replies 0x4000"), policy="drop"
    ),
    "a firewall for ports of the host": with_rules("input", FilterRule(3, (dport(22),), "drop")),
    "drops that we cannot judge": with_rules("forward", FilterRule(3, (UNREADABLE,), "drop")),
    "another bit of the mark": with_rules("forward", FilterRule(3, marks=0x8000)),
    "chains that kube-proxy left since portmap uses them": (OURS, FilterChain("ip", "nat", "KUBE-MARK-MASQ")),
    "a NAT chain that asks for the mark, as flannel's": with_rules(
        "postrouting", FilterRule(3, (MARKED,), "return"), kind="nat", priority=100
    ),
    "a firewall that trusts the bridge of the pods": with_rules(
        "input",
        FilterRule(3, (on("cni0"),), "accept"),
        FilterRule(4, (dport(31001), on("eth0")), "accept"),
        policy="drop",
    ),
    "drops by ports behind IPVS": with_rules("input", FilterRule(3, (dport(80),), "drop"), priority=150),
    "drops of what the node itself sends to VIPs, behind IPVS": with_rules(
        "output", FilterRule(3, (dport(80),), "drop"), priority=0
    ),
    "what asks for a state before conntrack": with_rules(
        "prerouting", FilterRule(3, (ESTABLISHED,), "drop"), priority=-300
    ),
    "chains of the kubelet": (OURS, FilterChain("ip", "mangle", "KUBE-KUBELET-CANARY")),
}


def said(findings):
    return [finding for finding in findings if finding.verdict is not CheckResult.OK]


def test_a_healthy_node():
    assert said(diagnose(healthy())) == []


@pytest.mark.parametrize("chains", FINE.values(), ids=FINE)
def test_no_false_alarm(chains):
    assert said(diagnose(healthy(chains=chains))) == []


@pytest.mark.parametrize(("changes", "check", "words"), SICK.values(), ids=SICK)
def test_the_cause_comes_first_with_a_next_step(changes, check, words):
    first = diagnose(healthy(**changes))[0]
    assert (first.check, first.verdict in (CheckResult.PROBLEM, CheckResult.WARNING)) == (check, True)
    assert words in " ".join((first.summary, *first.evidence))
    assert first.next


def test_what_could_not_be_read_is_not_checked():
    findings = diagnose(Facts(unread={"chains": "not permitted"}))
    assert {finding.verdict for finding in said(findings)} == {CheckResult.NOT_CHECKED}
    assert "not permitted" in {finding.summary for finding in findings}


@pytest.mark.parametrize("changes", [changes for changes, *_ in SICK.values()], ids=SICK)
def test_facts_of_a_file_are_judged_alike(changes):
    facts = healthy(**changes)
    assert diagnose(from_json(to_json(facts))) == diagnose(facts)


def test_the_order_is_by_verdict():
    order = [
        finding.verdict for finding in diagnose(healthy(drift=("x",), dns=None, held_vips={"192.0.2.1": "x"}))
    ]
    assert order == sorted(order, key=list(CheckResult).index)
    assert order[:3] == [CheckResult.PROBLEM, CheckResult.WARNING, CheckResult.NOT_CHECKED]


def about(changes, check):
    return [finding for finding in diagnose(healthy(**changes)) if finding.check == check]


SAID = '{{"nodeEligible":false,{}"healthy":{},"status":{{}}}}'


@pytest.mark.parametrize(
    ("proxy", "remark"),
    [
        (replace(METERED, health=503, health_body=SAID.format("", "true")), "about to be deleted"),
        (
            replace(METERED, health=503, health_body=SAID.format('"reason":"Node n not found",', "true")),
            "load balancers get 503: Node n not found",
        ),
        (Proxy(200, '{"waitingFor":"process 7","healthy":true}', metrics=METRICS | {LAST_SYNC: 0.0}), "process 7"),
    ],
)
def test_a_healthy_proxy_in_an_unusual_state_is_no_problem(proxy, remark):
    found = diagnose(healthy(proxy=proxy, node=OwnNode("n", about_to_be_deleted=True)))
    assert {finding.verdict for finding in found} == {CheckResult.OK}
    (finding,) = (finding for finding in found if finding.check == "proxy")
    assert remark in " ".join(finding.evidence)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (SAID.format("", "false"), "not healthy (503)"),
        ('{"nodeEligible":true,"healthy":false}', "not synced yet"),
        ("gateway timeout", "not healthy (503)"),
        ("[]", "not healthy (503)"),
    ],
)
def test_an_ill_proxy_is_a_problem_whatever_it_reports(body, words):
    (finding,) = about({"proxy": replace(METERED, health=503, health_body=body)}, "proxy")
    assert (finding.verdict, words in finding.summary) == (CheckResult.PROBLEM, True)


def test_the_node_that_is_missing_is_the_cause_of_503():
    missing = OwnNode("n", found=False, others=("node1", "node2"), likely=("node2",))
    first, *_ = diagnose(
        healthy(node=missing, proxy=replace(METERED, health=503, health_body=SAID.format("", "true")))
    )
    assert (first.check, first.verdict) == ("node", CheckResult.PROBLEM)
    assert first.evidence == ("nodes that objects name: node2, node1",)
    assert first.next.endswith("--hostname-override=node2")


BARE = {
    "chains": (),
    "servers": (),
    "vips": (),
    "processes": (),
    "links": LINKS[:-1],
    "proxy": Proxy(error="127.0.0.1:10256: Connection refused"),
    "drift": ("server 10.96.0.1:443/TCP is missing",),
    "host": None,
}


def test_before_installation_one_finding_reports_it():
    host = replace(healthy().host, sysctls=SYSCTLS | CALLS | {"net/ipv4/vs/conntrack": 0})
    no_dns = Dns("kube-system/kube-dns", ("10.96.0.1",), DnsAnswer(DNS_IP, NAME, error="no answer"))
    found = diagnose(healthy(**BARE | {"host": host, "dns": no_dns}))
    assert [f.check for f in found if f.verdict is not CheckResult.OK] == ["installation"]
    assert found[0].verdict is CheckResult.WARNING
    unnamed = {"host": host, "api": Api("the API server", "no configuration"), "drift": None, "dns": None}
    found = diagnose(healthy(**BARE | unnamed))
    assert CheckResult.PROBLEM not in {f.verdict for f in found}
    assert "objects" in {f.check for f in found if f.verdict is CheckResult.NOT_CHECKED}


def test_an_api_server_that_nothing_names_is_to_be_named():
    steps = {}
    for named in (True, False):
        api = Api("the API server", "it is not there", named=named)
        for bare in ({}, BARE):
            (found,) = [f for f in diagnose(healthy(**bare | {"api": api, "drift": None})) if f.check == "objects"]
            steps[named, bool(bare)] = found.next
    assert {steps[True, bare] for bare in (False, True)} == {API_STEP}
    assert {steps[False, bare] for bare in (False, True)} == {NAME_STEP}


def test_ipv6_forwarding_is_the_operators():
    v6 = replace(healthy().servers[0], address="fd00:10:96::1")
    found = diagnose(healthy(host=sysctl("net/ipv6/conf/all/forwarding", 0), servers=(v6,)))
    (finding,) = [f for f in found if f.check == "sysctls" and f.verdict is CheckResult.PROBLEM]
    assert "which program" not in finding.next
    assert "/etc/sysctl.d" in finding.next


@pytest.mark.parametrize(
    "kube_proxys",
    [
        {"processes": (Process(7, "kube-proxy", "/usr/local/bin/kube-proxy"),)},
        {"kube_proxy": KubeProxy(("http://127.0.0.1:10249/proxyMode says iptables",))},
        {
            "chains": (FilterChain("ip", "nat", "KUBE-SERVICES"),),
            "links": LINKS,
            "proxy": Proxy(200, is_ours=False),
        },
    ],
)
def test_a_kube_proxy_is_at_its_place_before_installation(kube_proxys):
    found = diagnose(healthy(**BARE | {"host": healthy().host} | kube_proxys))
    (finding,) = (f for f in found if f.verdict is not CheckResult.OK)
    assert (finding.check, finding.verdict) == ("installation", CheckResult.WARNING)
    assert any(line.startswith("of kube-proxy: ") for line in finding.evidence)


@pytest.mark.parametrize(
    "left",
    [{"holder": "process 1"}, {"processes": (Process(1, "ipvsproxy"),)}, {"chains": (OURS,)}, {"links": LINKS}],
)
def test_a_proxy_that_ended_or_fails_is_not_called_missing(left):
    checks = {f.check for f in diagnose(healthy(**BARE | {"host": healthy().host} | left))}
    assert "installation" not in checks
    assert "proxy" in checks


RULES = {"chains": (OURS, FilterChain("ip", "kube-proxy", "x"))}


@pytest.mark.parametrize(
    ("changes", "verdict", "words", "advises_cleanup"),
    [
        (RULES | {"proxy": None}, CheckResult.WARNING, "kube-proxy has left rules", True),
        (
            RULES | {"proxy": None, "kube_proxy": KubeProxy(sees_processes=False)},
            CheckResult.WARNING,
            "whether a kube-proxy still runs is not to be seen here",
            False,
        ),
        (
            RULES | {"proxy": None, "kube_proxy": KubeProxy(("http://127.0.0.1:10249/proxyMode says nftables",))},
            CheckResult.PROBLEM,
            "a kube-proxy runs on this node",
            False,
        ),
        (RULES, CheckResult.PROBLEM, "a kube-proxy is at work", False),
    ],
)
def test_cleanup_is_advised_only_where_no_kube_proxy_can_be_alive(changes, verdict, words, advises_cleanup):
    (finding,) = about(changes, "other proxies")
    assert (finding.verdict, words in finding.summary) == (verdict, True)
    assert ("ipvsproxy cleanup" in finding.next) is advises_cleanup


def test_a_name_server_that_was_reached_without_ipvs_is_a_problem():
    answer = DnsAnswer(DNS_IP, NAME, ("10.96.0.1",), asked_from="192.0.2.1:4711", balanced_here=False)
    (finding,) = about({"dns": Dns("kube-system/kube-dns", ("10.96.0.1",), answer)}, "DNS")
    assert (finding.verdict, "not by this node's IPVS" in finding.summary) == (CheckResult.PROBLEM, True)


def test_where_the_settings_come_from_is_reported():
    origin = "those of the running proxy, from http://127.0.0.1:10249/configz"
    (finding,) = about({"settings": replace(healthy().settings, origin=origin)}, "settings")
    assert (finding.verdict, finding.summary) == (CheckResult.OK, origin)


SHORT = tuple(replace(server, scheduler="") for server in SERVERS)
DROP = FilterRule(3, (dport(80),), "drop"), FilterRule(4, (dport(8080),), "drop")


@pytest.mark.parametrize(
    ("hook", "priority", "rule", "by_ipvs", "short"),
    [
        # What the client has dialled is rewritten in prerouting, and what follows crosses FORWARD.
        ("prerouting", -150, DROP[0], "connections to 10.96.3.1:80/TCP", "connections to 10.96.3.1:80/TCP"),
        ("prerouting", 0, DROP[0], "connections to 10.96.3.1:80/TCP", ""),
        ("input", 0, DROP[0], "connections to 10.96.3.1:80/TCP", ""),
        ("output", -150, DROP[0], "connections from the node to 10.96.3.1:80/TCP",
         "connections from the node to 10.96.3.1:80/TCP"),
        ("output", -105, DROP[0], "connections from the node to 10.96.3.1:80/TCP", ""),
        ("forward", 0, DROP[1], "", "new connections through 10.96.3.1:80/TCP to its endpoint 10.244.1.10:8080"),
        ("postrouting", 0, DROP[1], "what 10.96.3.1:80/TCP sends to its endpoint 10.244.1.10:8080",
         "what 10.96.3.1:80/TCP sends to its endpoint 10.244.1.10:8080"),
    ],
)  # fmt: skip
def test_rules_are_judged_where_packets_of_a_path_meet_them(hook, priority, rule, by_ipvs, short):
    for servers, lost in ((SERVERS, by_ipvs), (SHORT, short)):
        chains = with_rules(hook, rule, priority=priority)
        found = [one.summary for one in said(of_check("other rules", chains=chains, servers=servers))]
        assert found == ([f"rule {rule.handle} of ip t c drops {lost}"] if lost else []), servers[0].scheduler


SIX_UDP = ServerFacts("fd00:10:96::10", "UDP", 53)
LIMIT = "long datagrams"


def of_check(name, **changes):
    return [one for one in diagnose(healthy(**changes)) if one.check == name]


def test_the_limit_of_long_ipv6_datagrams_is_named_where_it_matters_and_is_no_problem():
    assert of_check(LIMIT) == []
    assert of_check(LIMIT, servers=(ServerFacts("10.96.0.10", "UDP", 53),)) == []
    (bridged,) = of_check(LIMIT, servers=(SIX_UDP,))
    assert bridged.verdict is CheckResult.OK
    assert "processes of this node and pods on a bridge" in bridged.summary
    assert of_check(LIMIT, servers=(replace(SIX_UDP, scheduler=""),)) == []
    routed = sysctl("net/bridge/bridge-nf-call-ip6tables", None)
    (node_only,) = of_check(LIMIT, servers=(SIX_UDP,), host=routed)
    assert "from processes of this node, do not" in node_only.summary
