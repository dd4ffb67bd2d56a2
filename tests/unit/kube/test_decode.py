import json

import msgspec
import pytest

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.decode import decode_json, decode_mapping, identify, key_of
from ipvsproxy.kube.decoded import InvalidObject
from ipvsproxy.plan.model import Protocol
from tests.support.apiserver import endpoint_slice, node, service

DELETE = object()


def decoded(obj):
    """Decode both ways, which must agree."""
    kind = Kind(obj["kind"])
    from_json = decode_json(kind, json.dumps(obj).encode())
    assert decode_mapping(kind, obj) == from_json
    assert decode_json(kind, msgspec.Raw(json.dumps(obj).encode())) == from_json
    return from_json


def value(obj):
    found = decoded(obj)
    assert found.complaints == ()
    return found.object


def refusal(obj):
    kind = Kind(obj["kind"])
    with pytest.raises(InvalidObject) as first:
        decode_mapping(kind, obj)
    with pytest.raises(InvalidObject) as second:
        decode_json(kind, json.dumps(obj).encode())
    assert (first.value.field, first.value.reason) == (second.value.field, second.value.reason)
    return first.value.field, first.value.reason


def changed(obj, path, new):
    """Return a copy with one place changed; numbers in the path are indexes."""
    copy = json.loads(json.dumps(obj))
    *parents, last = path
    place = copy
    for part in parents:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    if new is DELETE:
        del place[last]
    else:
        place[last] = new
    return copy


def shown(addresses):
    return [format_ip(address) for address in addresses]


# ClusterIPs: the cases of kube-proxy's own TestGetClusterIPByFamily.

DUAL = {"clusterIPs": ["10.0.0.10", "2000::1"], "ipFamilies": ["IPv4", "IPv6"]}
DUAL_V6_FIRST = {"clusterIPs": ["2000::1", "10.0.0.10"], "ipFamilies": ["IPv6", "IPv4"]}
CLUSTER_IP_BY_FAMILY = [
    ({"clusterIP": "10.0.0.10"}, "IPv4", "10.0.0.10"),
    ({"clusterIP": "10.0.0.10"}, "IPv6", ""),
    ({"clusterIP": "2000::1"}, "IPv4", ""),
    ({"clusterIP": "2000::1"}, "IPv6", "2000::1"),
    ({"clusterIPs": ["10.0.0.10"], "ipFamilies": ["IPv4"]}, "IPv4", "10.0.0.10"),
    ({"clusterIPs": ["10.0.0.10"], "ipFamilies": ["IPv4"]}, "IPv6", ""),
    ({"clusterIPs": ["2000::1"], "ipFamilies": ["IPv6"]}, "IPv4", ""),
    ({"clusterIPs": ["2000::1"], "ipFamilies": ["IPv6"]}, "IPv6", "2000::1"),
    (DUAL, "IPv4", "10.0.0.10"),
    (DUAL, "IPv6", "2000::1"),
    (DUAL_V6_FIRST, "IPv4", "10.0.0.10"),
    (DUAL_V6_FIRST, "IPv6", "2000::1"),
]


@pytest.mark.parametrize(("spec", "family_name", "result"), CLUSTER_IP_BY_FAMILY)
def test_cluster_ip_by_family(spec, family_name, result):
    obj = service()
    obj["spec"] = {"ports": [{"port": 80}], **spec}
    size = 4 if family_name == "IPv4" else 16
    found = [format_ip(ip) for ip in value(obj).cluster_ips if len(ip) == size]
    assert found == ([result] if result else [])


def test_a_service_in_full():
    obj = service(
        clusterIP="10.96.0.10",
        type="LoadBalancer",
        ports=[
            {"name": "http", "port": 80, "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "x", "port": 9, "protocol": "SCTP", "appProtocol": "whatever"},
        ],
        externalIPs=["198.51.100.1", " 198.51.100.2 ", "", "198.51.100.1"],
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Local",
        healthCheckNodePort=32000,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        loadBalancerSourceRanges=["10.0.0.0/8", " 192.0.2.0/24"],
    )
    found = value(obj)
    assert found.key == "default/web"
    assert found.created == "2026-01-01T00:00:00Z"
    assert [(p.name, p.protocol, p.port, p.node_port) for p in found.ports] == [
        ("http", Protocol.TCP, 80, 30080),
        ("dns", Protocol.UDP, 53, 0),
        ("x", Protocol.SCTP, 9, 0),
    ]
    assert shown(found.external_ips) == ["198.51.100.1", "198.51.100.2"]
    assert found.external_local
    assert found.internal_local
    assert found.health_check_port == 32000
    assert found.affinity_seconds == 60
    assert [str(cidr) for cidr in found.source_ranges] == ["10.0.0.0/8", "192.0.2.0/24"]


@pytest.mark.parametrize(
    "obj",
    [
        service(clusterIP="None"),
        service(clusterIP="None", clusterIPs=["None"], ipFamilies=["IPv4"]),
        service(type="ExternalName"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service(labels={"service.kubernetes.io/service-proxy-name": ""}),
        endpoint_slice(addressType="FQDN"),
        endpoint_slice(labels={"service.kubernetes.io/headless": ""}),
    ],
)
def test_right_but_not_proxied(obj):
    assert value(obj) is None
    assert decoded(obj).skipped


@pytest.mark.parametrize("name", ["", None])
def test_a_slice_without_a_service_is_unusable_and_the_reason_is_reported(name):
    obj = endpoint_slice()
    obj["metadata"]["labels"] = {} if name is None else {"kubernetes.io/service-name": name}
    assert value(obj) is None
    assert "no label kubernetes.io/service-name" in decoded(obj).skipped


@pytest.mark.parametrize(
    ("entry", "addresses"),
    [
        ({"ip": "203.0.113.1"}, ["203.0.113.1"]),
        ({"ip": "203.0.113.1", "ipMode": "VIP"}, ["203.0.113.1"]),
        ({"ip": "203.0.113.1", "ipMode": "Proxy"}, []),
        ({"hostname": "lb.example"}, []),
        ({"ip": ""}, []),
    ],
)
@pytest.mark.parametrize("type_", ["ClusterIP", "LoadBalancer"])
def test_load_balancer_ips(entry, addresses, type_):
    obj = service(type=type_)
    obj["status"] = {"loadBalancer": {"ingress": [entry]}}
    assert shown(value(obj).load_balancer_ips) == addresses


@pytest.mark.parametrize(
    ("ranges", "left"),
    [
        (["0.0.0.0/0", "10.0.0.0/8", "2001:db8::/32"], ["2001:db8::/32"]),
        (["0.0.0.0/0", "::/0"], []),
        (["10.0.0.1/8"], ["10.0.0.0/8"]),
    ],
)
def test_an_open_source_range_opens_its_family(ranges, left):
    assert [str(c) for c in value(service(loadBalancerSourceRanges=ranges)).source_ranges] == left


@pytest.mark.parametrize(
    ("ranges", "left", "shut"),
    [
        (["10.0.0.0/8", "2001:db8::/32", "nonsense"], ["10.0.0.0/8", "2001:db8::/32"], []),
        (["10.0.0.0/8", "10.0.0.0/33"], ["10.0.0.0/8"], []),
        (["10.0.0.0/33", "2001:db8::/32"], ["2001:db8::/32", "0.0.0.0/32"], [4]),
        (["10.0.0.0/33", "::/0"], ["0.0.0.0/32"], [4]),
        (["10.0.0.0/8", "2001:db8::/129"], ["10.0.0.0/8", "::/128"], [6]),
        (["10.0.0.0/8", "nonsense"], ["10.0.0.0/8", "::/128"], [6]),
        (["0.0.0.0/0", "10.0.0.0/33"], [], []),
    ],
)
def test_a_family_of_which_no_source_range_can_be_read_is_shut(ranges, left, shut):
    found = decoded(service(loadBalancerSourceRanges=ranges))
    assert [str(cidr) for cidr in found.object.source_ranges] == left
    assert [text for text in found.complaints if "shut" in text] == [
        f"spec.loadBalancerSourceRanges: no readable range of IPv{number}; it is shut for all" for number in shut
    ]
    assert len(found.complaints) == len(shut) + 1


def test_source_ranges_of_which_none_can_be_read_refuse_the_service():
    assert refusal(service(loadBalancerSourceRanges=["nonsense"]))[0] == "spec.loadBalancerSourceRanges"


def test_a_bad_external_ip_is_left_out():
    found = decoded(service(externalIPs=["198.51.100.1", "x"]))
    assert shown(found.object.external_ips) == ["198.51.100.1"]
    assert found.complaints == ("spec.externalIPs: 'x' is not an IP address; left out",)


@pytest.mark.parametrize(
    ("type_", "external_ips", "local"),
    [
        ("ClusterIP", [], False),
        ("ClusterIP", ["198.51.100.1"], True),
        ("NodePort", [], True),
        ("LoadBalancer", [], True),
    ],
)
def test_external_local_needs_a_way_in(type_, external_ips, local):
    obj = service(type=type_, externalIPs=external_ips, externalTrafficPolicy="Local", healthCheckNodePort=5)
    obj["spec"]["ports"][0]["nodePort"] = 30080
    assert value(obj).external_local is local
    assert value(obj).health_check_port == (5 if type_ == "LoadBalancer" else 0)


def test_a_missing_health_check_port_is_reported():
    found = decoded(service(type="LoadBalancer", externalTrafficPolicy="Local"))
    assert found.object.health_check_port == 0
    assert [complaint.partition(":")[0] for complaint in found.complaints] == ["spec.healthCheckNodePort"]
    ports = [{"port": 80, "nodePort": 30080}]
    assert decoded(service(type="NodePort", externalTrafficPolicy="Local", ports=ports)).complaints == ()


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        (DELETE, 10800),
        (None, 10800),
        ({"clientIP": {}}, 10800),
        ({"clientIP": {"timeoutSeconds": 1}}, 1),
        ({"clientIP": {"timeoutSeconds": 86400}}, 86400),
    ],
)
def test_affinity(config, seconds):
    obj = service(sessionAffinity="ClientIP", sessionAffinityConfig=None)
    assert value(changed(obj, ["spec", "sessionAffinityConfig"], config)).affinity_seconds == seconds


@pytest.mark.parametrize("seconds", [0, -1, 86401])
def test_affinity_out_of_range_gets_the_default(seconds):
    obj = service(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}})
    found = decoded(obj)
    assert found.object.affinity_seconds == 10800
    assert found.complaints[0].startswith("spec.sessionAffinityConfig.clientIP.timeoutSeconds: ")


def annotated(value, name="drain-timeout", **spec):
    return changed(service(**spec), ["metadata", "annotations"], {f"ipvsproxy.io/{name}": value, "other": "x"})


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("0s", 0), ("0", 0), ("pod", -1)])
def test_a_drain_timeout(text, seconds):
    assert value(annotated(text)).drain_seconds == seconds


def test_no_drain_timeout():
    assert value(service()).drain_seconds is None
    assert value(changed(service(), ["metadata", "annotations"], {"other": "x"})).drain_seconds is None


@pytest.mark.parametrize("text", ["soon", "", "30", "-1s", "9999999999h", f"{'9' * 9999}h", 30, True, ["30s"]])
def test_a_malformed_drain_timeout_is_reported_and_the_default_counts(text):
    found = decoded(annotated(text))
    assert found.object.drain_seconds is None
    (complaint,) = found.complaints
    assert complaint.startswith("metadata.annotations[ipvsproxy.io/drain-timeout]: ")
    assert complaint.endswith("is not a duration such as 30s or 1h or the word pod; default used")
    assert len(complaint) < 200


def test_a_scheduler_of_its_own():
    assert value(annotated("mh", "scheduler")).scheduler == "mh"
    assert value(annotated("90s")).scheduler == value(service()).scheduler == ""


@pytest.mark.parametrize("text", ["", "RR", "round-robin", "rr ", "x" * 9999, 1, ["rr"], {"rr": 1}])
def test_what_is_no_scheduler_is_reported_and_the_default_counts(text):
    found = decoded(annotated(text, "scheduler"))
    assert found.object.scheduler == ""
    (complaint,) = found.complaints
    assert complaint.startswith("metadata.annotations[ipvsproxy.io/scheduler]: ")
    assert len(complaint) < 200


@pytest.mark.parametrize(("text", "wanted"), [("true", True), ("false", False)])
def test_one_packet(text, wanted):
    assert value(annotated(text, "one-packet")).one_packet is wanted
    assert value(service()).one_packet is False


@pytest.mark.parametrize("text", ["", "yes", "True", True, 1, ["true"]])
def test_one_packet_that_is_no_boolean_is_reported_and_left_out(text):
    found = decoded(annotated(text, "one-packet"))
    assert found.object.one_packet is False
    assert found.complaints[0].startswith("metadata.annotations[ipvsproxy.io/one-packet]: ")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("web-0=3", (("web-0", 3),)),
        ("web-0=3, web-1=0,web-canary-*=65535", (("web-0", 3), ("web-1", 0), ("web-canary-*", 65535))),
        ("*=2", (("*", 2),)),
    ],
)
def test_weights_of_pods(text, wanted):
    assert value(annotated(text, "weights")).weights == wanted
    assert (
        value(changed(endpoint_slice(), ["metadata", "annotations"], {"ipvsproxy.io/weights": text})).weights
        == wanted
    )


@pytest.mark.parametrize(
    "text",
    ["", "web-0", "web-0=", "=3", "web-0=-1", "web-0=1.5", "web-0=65536", "web-0=\u0663", "web-0=3,",
     "web-0=3,web-0=4", "We=1", "w*b=1", ",".join(f"a{n}*=1" for n in range(17)), "x=" + "9" * 9999, 3,
     ["web-0=3"]],
)  # fmt: skip
def test_weights_that_are_none_are_left_out(text):
    on_slice = changed(endpoint_slice(), ["metadata", "annotations"], {"ipvsproxy.io/weights": text})
    for obj in (annotated(text, "weights"), on_slice):
        found = decoded(obj)
        (complaint,) = found.complaints
        assert found.object.weights == ()
        assert found.object.misused == (complaint,)
        assert complaint.startswith("metadata.annotations[ipvsproxy.io/weights]: ")
        assert len(complaint) < 300


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("100", (100, 0)), ("100/80", (100, 80)), ("1/1", (1, 1)), ("1000000", (1_000_000, 0)), ("0", (0, 0))],
)
def test_a_limit_of_connections(text, wanted):
    assert value(annotated(text, "max-connections")).max_connections == wanted


@pytest.mark.parametrize(
    "text",
    ["", "0/0", "-1", "many", "80/100", "100/", "100/0", "1000001", "1e3", "\u0663", "9" * 9999, 100, [100]],
)
def test_a_limit_of_connections_that_is_none_is_left_out(text):
    found = decoded(annotated(text, "max-connections"))
    (complaint,) = found.complaints
    assert found.object.max_connections == (0, 0)
    assert complaint.startswith("metadata.annotations[ipvsproxy.io/max-connections]: ")
    assert "1 to 1000000" in complaint
    assert len(complaint) < 300


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sh-port", ("sh-port",)),
        ("mh-port, mh-fallback", ("mh-port", "mh-fallback")),
        ("none", ()),
        ("flag-1", ("flag-1",)),
    ],
)
def test_scheduler_flags(text, wanted):
    assert value(annotated(text, "scheduler-flags")).scheduler_flags == wanted
    assert value(service()).scheduler_flags is None


@pytest.mark.parametrize(("text", "wanted"), [("24", (24, 0)), ("24,64", (24, 64)), ("32, 128", (32, 128))])
def test_the_netmask_of_affinity(text, wanted):
    assert value(annotated(text, "affinity-netmask")).affinity_prefixes == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("scheduler-flags", text) for text in ["", "sh", "sh-port,", "none,sh-port", "SH-PORT", 1, ["sh-port"]]),
        *(
            ("affinity-netmask", text)
            for text in ["", "0", "33", "24,", "24,129", ",64", "/24", "255.255.255.0", 24]
        ),
    ],
)
def test_what_is_not_allowed_in_an_annotation_of_servers_is_left_out(name, text):
    found = decoded(annotated(text, name))
    (complaint,) = found.complaints
    assert (found.object.scheduler_flags, found.object.affinity_prefixes) == (None, (0, 0))
    assert complaint.startswith(f"metadata.annotations[ipvsproxy.io/{name}]: ")


def test_names_that_kube_router_has_are_read_and_ours_come_first():
    theirs = {"kube-router.io/service.scheduler": "mh", "kube-router.io/service.schedflags": "flag-1,flag-2"}
    found = value(changed(service(), ["metadata", "annotations"], theirs))
    assert (found.scheduler, found.scheduler_flags) == ("mh", ("flag-1", "flag-2"))
    both = theirs | {"ipvsproxy.io/scheduler": "sh"}
    assert value(changed(service(), ["metadata", "annotations"], both)).scheduler == "sh"
    wrong = decoded(changed(service(), ["metadata", "annotations"], {"kube-router.io/service.scheduler": "x"}))
    assert wrong.complaints[0].startswith(
        "metadata.annotations[kube-router.io/service.scheduler]: 'x' is not an IPVS"
    )


@pytest.mark.parametrize(("text", "wanted"), [("1", 1), ("10", 10), ("1000", 1000)])
def test_the_weight_of_endpoints_in_the_same_zone(text, wanted):
    assert value(annotated(text, "same-zone-weight")).same_zone_weight == wanted


@pytest.mark.parametrize("text", ["", "0", "1001", "ten", "1.5", "-1", 10])
def test_a_weight_of_the_same_zone_that_is_none_is_left_out(text):
    found = decoded(annotated(text, "same-zone-weight"))
    (complaint,) = found.complaints
    assert found.object.same_zone_weight == 1
    assert "a number from 1 to 1000" in complaint


@pytest.mark.parametrize(("zone", "wanted"), [("a", "a"), (None, "")])
def test_an_endpoint_has_a_zone(zone, wanted):
    assert value(changed(endpoint_slice(), ["endpoints", 0, "zone"], zone)).endpoints[0].zone == wanted


@pytest.mark.parametrize(("name", "nearest"), [("sheduler", "scheduler"), ("onepacket", "one-packet")])
def test_a_misspelt_annotation_is_named_with_the_nearest_known_one(name, nearest):
    found = decoded(annotated("mh", name))
    (complaint,) = found.complaints
    assert found.object.misused == (complaint,)
    near = f"not known; the nearest that is: ipvsproxy.io/{nearest}"
    assert complaint == f"metadata.annotations[ipvsproxy.io/{name}]: {near}"


def test_very_many_unknown_annotations_are_counted():
    obj = changed(service(), ["metadata", "annotations"], {f"ipvsproxy.io/x{n}": "" for n in range(10_000)})
    found = decoded(obj)
    assert len(found.complaints) == 6
    assert found.complaints[-1] == "and 1 more"


def test_annotations_of_others_are_not_looked_at():
    obj = changed(service(), ["metadata", "annotations"], {"example.com/sheduler": [1], "ipvsproxy.io": "x"})
    assert decoded(obj).complaints == ()


def test_one_packet_and_affinity_exclude_each_other():
    found = decoded(annotated("true", "one-packet", sessionAffinity="ClientIP"))
    assert (found.object.one_packet, found.object.affinity_seconds) == (False, 10800)
    assert "sessionAffinity" in found.complaints[0]


def test_no_affinity():
    config = {"clientIP": {"timeoutSeconds": 7}}
    assert value(service(sessionAffinity="None", sessionAffinityConfig=config)).affinity_seconds == 0


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (DELETE, (True, True, False)),
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
        ({"ready": True, "serving": False}, (True, False, False)),
    ],
)
def test_conditions(conditions, expected):
    obj = changed(endpoint_slice(), ["endpoints", 0, "conditions"], None)
    found = value(changed(obj, ["endpoints", 0, "conditions"], conditions)).endpoints[0]
    assert (found.ready, found.serving, found.terminating) == expected


@pytest.mark.parametrize(
    ("hints", "zones", "nodes"),
    [
        (None, (), ()),
        ({}, (), ()),
        ({"forZones": None, "forNodes": []}, (), ()),
        ({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n"}]}, ("a", "b"), ("n",)),
    ],
)
def test_hints(hints, zones, nodes):
    found = value(changed(endpoint_slice(), ["endpoints", 0, "hints"], hints)).endpoints[0]
    assert (found.zone_hints, found.node_hints) == (zones, nodes)


@pytest.mark.parametrize(
    ("ref", "name"), [({"kind": "Pod", "name": "web-0"}, "web-0"), ({"kind": "Pod"}, ""), (None, "")]
)
def test_an_endpoint_has_the_name_of_its_pod(ref, name):
    assert value(changed(endpoint_slice(), ["endpoints", 0, "targetRef"], ref)).endpoints[0].name == name


def test_a_slice_in_full():
    obj = endpoint_slice(
        ports=[
            {"name": "", "port": 8080},
            {"name": "http", "port": 80, "protocol": "UDP"},
            {"port": 81},
            {"name": "none", "port": None},
            {"name": "zero", "port": 0},
        ],
        endpoints=[
            {"addresses": ["10.244.1.5", "10.244.1.6"], "nodeName": "node1"},
            {"addresses": []},
            {},
            {"addresses": ["10.244.1.7"]},
        ],
    )
    found, complaints = decoded(obj).object, decoded(obj).complaints
    assert (found.key, found.service, found.family) == ("default/web-abc", "default/web", 4)
    assert [(p.name, p.protocol, p.port) for p in found.ports] == [
        ("", Protocol.TCP, 8080),
        ("http", Protocol.UDP, 80),
        ("", Protocol.TCP, 81),
    ]
    assert complaints == (
        "ports[3].port: missing; the port is left out",
        "ports[4].port: missing; the port is left out",
        "endpoints[1].addresses: missing; left out",
        "endpoints[2].addresses: missing; left out",
        "endpoints[0].addresses: only the first of 2 is used",
    )
    assert [(format_ip(e.address), e.node) for e in found.endpoints] == [
        ("10.244.1.5", "node1"),
        ("10.244.1.7", ""),
    ]


def test_endpoints_null_is_an_empty_slice():
    found = value(endpoint_slice(endpoints=None, ports=None))
    assert (found.ports, found.endpoints) == ((), ())


def test_wrong_endpoints_are_left_out():
    found = decoded(endpoint_slice(addresses=["10.244.1.5", "fd00::1", "x"]))
    assert shown(e.address for e in found.object.endpoints) == ["10.244.1.5"]
    assert [c.split(":")[0] for c in found.complaints] == [
        "endpoints[1].addresses[0]",
        "endpoints[2].addresses[0]",
    ]


def test_a_node_in_full():
    obj = node()
    obj["spec"]["podCIDRs"] = ["10.244.1.0/24", "fd00:1::/64"]
    obj["status"]["addresses"] = [
        {"type": "Hostname", "address": "node1"},
        {"type": "ExternalIP", "address": "203.0.113.9"},
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "InternalIP", "address": "2001:db8::1"},
    ]
    found = value(obj)
    assert (found.key, found.zone) == ("node1", "zone-a")
    assert shown(found.addresses) == ["192.0.2.1", "2001:db8::1", "203.0.113.9"]
    assert [str(cidr) for cidr in found.pod_cidrs] == ["10.244.1.0/24", "fd00:1::/64"]


def test_a_bare_node():
    found = value({"kind": "Node", "metadata": {"name": "n"}})
    assert (found.addresses, found.pod_cidrs, found.zone) == ((), (), "")


@pytest.mark.parametrize(
    ("path", "new", "eligible"),
    [
        (["spec", "taints"], [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}], False),
        (["spec", "taints"], [{"key": "node.kubernetes.io/unschedulable"}], True),
        (["spec", "taints"], None, True),
        (["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z", False),
    ],
)
def test_a_node_about_to_go_should_get_no_traffic(path, new, eligible):
    assert value(changed(node(), path, new)).eligible is eligible


TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


@pytest.mark.parametrize(
    ("annotations", "seconds"),
    [
        (None, 0),
        ({}, 0),
        ({"other": "x" * 1000}, 0),
        ({TRIGGER: "2026-09-21T14:13:20.250000123Z"}, 1_790_000_000.25),
        ({TRIGGER: "2026-09-21T16:13:20+02:00"}, 1_790_000_000),
        ({TRIGGER: "yesterday"}, 0),
        ({TRIGGER: 7}, 0),
    ],
)
def test_when_a_change_began_is_no_part_of_the_slice(annotations, seconds):
    found = decoded(changed(endpoint_slice(), ["metadata", "annotations"], annotations))
    assert found.triggered == seconds
    assert found.object == value(endpoint_slice())


def test_uids_are_kept_for_events():
    assert value(changed(service(), ["metadata", "uid"], "1234")).uid == "1234"
    assert value(service()).uid == ""


TWO_PORTS = service(ports=[{"name": "a", "port": 1, "nodePort": 30001}, {"name": "b", "port": 2}])
BAD = [
    (service(), ["spec"], DELETE, "spec"),
    (service(), ["spec"], [], "spec"),
    (service(), ["metadata", "name"], "", "metadata.name"),
    (service(), ["metadata", "name"], DELETE, "metadata.name"),
    (service(), ["metadata", "labels"], {"a": 1}, "metadata.labels[...]"),
    (service(), ["spec", "ports", 0, "port"], 0, "spec.ports[0].port"),
    (service(), ["spec", "ports", 0, "port"], 65536, "spec.ports[0].port"),
    (service(), ["spec", "ports", 0, "port"], "80", "spec.ports[0].port"),
    (service(), ["spec", "ports", 0, "port"], 80.5, "spec.ports[0].port"),
    (service(), ["spec", "ports", 0, "port"], True, "spec.ports[0].port"),
    (service(), ["spec", "ports", 0, "port"], DELETE, "spec.ports[0].port"),
    (service(), ["spec", "ports", 0, "nodePort"], -1, "spec.ports[0].nodePort"),
    (service(), ["spec", "ports", 0, "protocol"], "tcp", "spec.ports[0].protocol"),
    (service(), ["spec", "clusterIP"], "10.0.0.999", "spec.clusterIP"),
    (service(), ["spec", "clusterIPs"], ["10.0.0.1", 5], "spec.clusterIPs[1]"),
    (service(), ["spec", "healthCheckNodePort"], 70000, "spec.healthCheckNodePort"),
    (TWO_PORTS, ["spec", "ports", 1, "name"], "a", "spec.ports[1].name"),
    (TWO_PORTS, ["spec", "ports", 1, "port"], 1, "spec.ports[1].port"),
    (TWO_PORTS, ["spec", "ports", 1, "nodePort"], 30001, "spec.ports[1].nodePort"),
    (service(ipFamilies=["IPv6"]), ["spec", "clusterIPs"], ["10.0.0.1"], "spec.clusterIPs"),
    (endpoint_slice(), ["addressType"], "IPv5", "addressType"),
    (endpoint_slice(), ["addressType"], DELETE, "addressType"),
    (endpoint_slice(), ["addressType"], None, "addressType"),
    (endpoint_slice(), ["ports", 0, "port"], 65536, "ports[0].port"),
    (endpoint_slice(), ["ports", 0, "protocol"], "QUIC", "ports[0].protocol"),
    (endpoint_slice(), ["endpoints", 0, "addresses"], ["1.1.1.1", None], "endpoints[0].addresses[1]"),
    (endpoint_slice(), ["endpoints", 0, "conditions"], {"ready": "yes"}, "endpoints[0].conditions.ready"),
    (
        endpoint_slice(),
        ["endpoints", 0, "hints"],
        {"forZones": [{"name": "a"}, {"name": 1}]},
        "endpoints[0].hints.forZones[1].name",
    ),
    (node(), ["spec", "podCIDRs"], ["10.0.0.0/8", "x"], "spec.podCIDRs"),
    (node(), ["status", "addresses", 0, "type"], DELETE, "status.addresses[0].type"),
]


@pytest.mark.parametrize(("obj", "path", "new", "field"), BAD, ids=lambda case: str(case)[:60])
def test_a_refusal_names_the_field(obj, path, new, field):
    assert refusal(changed(obj, path, new))[0] == field


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"nonsense", b"[" * 100_000])
def test_not_an_object_at_all(body):
    with pytest.raises(InvalidObject):
        decode_json(Kind.SERVICE, body)
    with pytest.raises(InvalidObject):
        identify(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"metadata": {"name": "\xff"}, "spec": {}}',
        b'{"metadata": {"name": "a"}, "x": ' + b"[" * 100_000,
    ],
)
def test_hostile_bytes_are_a_refusal_and_nothing_worse(body):
    with pytest.raises(InvalidObject):
        decode_json(Kind.SERVICE, body)


def test_a_mapping_with_a_wrong_key():
    obj = service()
    obj["metadata"]["labels"] = {1: "a"}
    with pytest.raises(InvalidObject) as info:
        decode_mapping(Kind.SERVICE, obj)
    assert (info.value.field, info.value.reason) == ("metadata.labels", "Expected `str`, got `int` as a key")


def test_identify_does_not_care_for_the_rest():
    obj = service(ports="nonsense", labels={"a": 1})
    assert key_of(Kind.SERVICE, identify(obj)) == "default/web"
    assert key_of(Kind.SERVICE, identify(json.dumps(obj).encode())) == "default/web"
    assert key_of(Kind.NODE, identify(node())) == "node1"
    assert key_of(Kind.SERVICE, identify({"metadata": {"name": "x"}})) == "default/x"
    bookmark = b'{"metadata": {"resourceVersion": "7", "creationTimestamp": null}}'
    assert identify(bookmark).resource_version == "7"
    with pytest.raises(InvalidObject, match=r"metadata\.name: missing"):
        key_of(Kind.SERVICE, identify(bookmark))


def test_objects_that_differ_in_what_we_do_not_read_are_equal():
    other = service(selector={"a": "b"})
    other["metadata"]["annotations"] = {"x": "y"}
    assert value(other) == value(service())
    assert value(service(clusterIP="10.96.0.11")).cluster_ips == (parse_ip("10.96.0.11"),)


# What the API server would fill in, and what is missing where it has no default


BARE_SERVICE = {
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
}
BARE_SLICE = {
    "kind": "EndpointSlice",
    "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "ports": [{"port": 8080}],
    "endpoints": [{"addresses": ["10.244.1.5"]}],
}
DEFAULTED_SERVICE = {
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "None",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
    },
}


def test_a_bare_service_is_what_the_api_server_makes_of_it():
    assert value(BARE_SERVICE) == value(DEFAULTED_SERVICE)
    nulls = json.loads(json.dumps(DEFAULTED_SERVICE))
    nulls["metadata"]["namespace"] = None
    nulls["metadata"]["labels"] = None
    nulls["spec"] = dict.fromkeys(nulls["spec"]) | {"clusterIP": "10.96.0.10"}
    nulls["spec"]["ports"] = [{"name": None, "port": 80, "protocol": None, "nodePort": None, "targetPort": None}]
    assert value(nulls) == value(DEFAULTED_SERVICE)


def test_a_bare_slice_is_what_the_api_server_makes_of_it():
    full = json.loads(json.dumps(BARE_SLICE))
    full["metadata"]["namespace"] = "default"
    full["ports"] = [{"name": "", "protocol": "TCP", "port": 8080}]
    full["endpoints"][0]["conditions"] = {"ready": True, "serving": True, "terminating": False}
    assert value(BARE_SLICE) == value(full)


@pytest.mark.parametrize(
    "affinity", [{"clientIP": {"timeoutSeconds": None}}, {"clientIP": {}}, {"clientIP": None}, None]
)
def test_affinity_without_a_time_lasts_three_hours(affinity):
    spec = BARE_SERVICE["spec"] | {"sessionAffinity": "ClientIP", "sessionAffinityConfig": affinity}
    assert value(BARE_SERVICE | {"spec": spec}).affinity_seconds == 10800


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIPs": ["10.96.0.10", "fd00::10"]},
        {"clusterIPs": ["fd00::10", "10.96.0.10"]},
        {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "ipFamilies": None},
        {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "ipFamilies": ["IPv4", "IPv6"]},
    ],
)
def test_families_follow_from_the_addresses(spec):
    found = value(BARE_SERVICE | {"spec": {"ports": [{"port": 80}], **spec}})
    assert shown(found.cluster_ips) == ["10.96.0.10", "fd00::10"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"clusterIP": ""}, "spec.clusterIP: missing"),
        ({"clusterIP": None, "clusterIPs": []}, "spec.clusterIP: missing"),
        ({"type": "NodePort"}, "spec.ports[0].nodePort: missing"),
        ({"ports": None}, "spec.ports: missing"),
        ({"clusterIPs": ["10.96.0.11"]}, "spec.clusterIP: 10.96.0.10 is not spec.clusterIPs[0]"),
    ],
)
def test_what_has_no_default_is_missed_in_words(spec, said):
    found = decoded(BARE_SERVICE | {"spec": BARE_SERVICE["spec"] | spec})
    (complaint,) = found.complaints
    assert complaint.startswith(said)
    assert bool(found.object) is not said.startswith("spec.clusterIP: missing")


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        (service(type="ExternalName"), "type ExternalName"),
        (service(clusterIP="None"), "headless"),
        (service(labels={"service.kubernetes.io/service-proxy-name": "cilium"}), "leaves it to cilium"),
        (endpoint_slice(addressType="FQDN"), "addressType FQDN"),
        (endpoint_slice(labels={"service.kubernetes.io/headless": ""}), "headless"),
    ],
)
def test_what_is_left_to_others_reports_why(obj, reason):
    assert reason in decoded(obj).skipped


def test_what_is_reported_about_an_object_is_bounded():
    endpoints = [{"addresses": [text]} for text in ("x" * 100_000, *["no address"] * 999)]
    found = decoded(endpoint_slice(endpoints=endpoints, ports=[{"name": str(n)} for n in range(1000)]))
    assert len("".join(found.complaints)) < 2500
    assert found.complaints[-1] == "and 1995 more"


def of_kube_router(name, text, **spec):
    return changed(service(**spec), ["metadata", "annotations"], {f"kube-router.io/service.{name}": text})


@pytest.mark.parametrize("text", ["true", "", "yes"])
def test_local_of_kube_router_is_both_policies(text):
    found = decoded(of_kube_router("local", text, type="NodePort"))
    assert (found.object.internal_local, found.object.external_local) == (True, True)
    (complaint,) = found.object.misused
    assert complaint in found.complaints
    assert "counts as internalTrafficPolicy Local and externalTrafficPolicy Local" in complaint
    inner = decoded(of_kube_router("local", text)).object
    assert (inner.internal_local, inner.external_local) == (True, False)


def test_local_of_kube_router_needs_no_port_for_health_checks():
    found = decoded(of_kube_router("local", "true", type="LoadBalancer"))
    assert len(found.complaints) == 1
    assert found.object.health_check_port == 0


def test_what_has_no_effect_of_kube_router_is_reported():
    found = decoded(of_kube_router("hairpin", "true"))
    (complaint,) = found.complaints
    assert "each pod reaches itself" in complaint
    assert found.object == msgspec.structs.replace(value(service()), misused=found.object.misused)


@pytest.mark.parametrize(("text", "tunnel"), [("ipip", "ipip"), ("gue", "gue"), ("masquerade", "")])
def test_the_way_to_endpoints(text, tunnel):
    found = decoded(annotated(text, "forwarding"))
    assert (found.object.forwarding, found.complaints) == (tunnel, ())


def test_a_way_that_is_none():
    found = decoded(annotated("direct", "forwarding"))
    assert found.object.forwarding == ""
    (complaint,) = found.complaints
    assert "'direct' is not one of masquerade, ipip, gue; default used" in complaint


def test_direct_server_return_of_kube_router():
    """Nothing is put into its pods any more, so that somebody has to be told."""
    found = decoded(of_kube_router("dsr", "tunnel"))
    assert found.object.forwarding == "ipip"
    (complaint,) = found.complaints
    assert "pods need an init container" in complaint


def test_what_kube_router_has_not_on_is_passed_over():
    found = decoded(of_kube_router("local", "false"))
    assert (found.object, found.complaints) == (value(service()), ())


@pytest.mark.parametrize("key", ["ipvsproxy.io/weight", "service.cilium.io/weight"])
@pytest.mark.parametrize(("text", "weight"), [("0", 0), ("3", 3), ("65535", 65535), ("65536", -1), ("x", -1)])
def test_the_weight_of_a_slice(key, text, weight):
    raw = changed(endpoint_slice(), ["metadata", "annotations"], {key: text})
    found = decode_mapping(Kind.ENDPOINT_SLICE, raw)
    assert found.object.weight == weight
    assert len(found.complaints) == (weight < 0)


@pytest.mark.parametrize("text", ["port", "service"])
def test_the_scope_of_affinity(text):
    assert value(annotated(text, "affinity-scope")).affinity_scope == text


def test_a_scope_of_affinity_that_is_none_is_left_out():
    found = decoded(annotated("pod", "affinity-scope"))
    assert (found.object.affinity_scope, len(found.complaints)) == ("", 1)


TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("30000-31000/udp", ((UDP, 30000, 31000),)),
        ("*", ((TCP, 1, 65535),)),
        ("*/udp, 21,1024-2048/tcp", ((TCP, 21, 21), (TCP, 1024, 2048), (UDP, 1, 65535))),
    ],
)
def test_ranges_of_ports(text, ranges):
    assert value(annotated(text, "port-range")).port_ranges == ranges


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "2-1",
        "1-",
        "-1",
        "1-2-3",
        "80/icmp",
        "1-10,5-20",
        "*,80",
        "a",
        ",".join(map(str, range(1, 18))),
    ],
)
def test_ranges_of_ports_that_are_none_are_left_out(text):
    found = decoded(annotated(text, "port-range"))
    (complaint,) = found.complaints
    assert found.object.port_ranges == ()
    assert complaint.startswith("metadata.annotations[ipvsproxy.io/port-range]: ")
