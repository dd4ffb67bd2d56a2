"""`show` and `diff` from words to output and exit status, on a plan as if it were in the kernel."""

import json

import pytest

from ipvsproxy import cli
from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import diff, objects, rows, show
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.output import follow
from ipvsproxy.commands.service_names import Names
from ipvsproxy.config import DataPath
from ipvsproxy.exchange.inbox import Kind, Listed
from ipvsproxy.kernel.read.connections import Connection, parse
from ipvsproxy.kube.once import read_objects
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.records import Counters
from ipvsproxy.plan.state import Destination
from tests.support.build import config, destination, endpoint, key, service, slice_of
from tests.support.elements import element
from tests.support.memory_state import MemoryState
from tests.support.memory_view import MemoryView

HERE = [parse_ip("192.0.2.1")]
LINE = "TCP C00002{:02X} D8B2 0A60000A 0050 0AF40101 1F90 ESTABLISHED     899"
WEB, DNS = key("10.96.0.10:80"), key("10.96.0.53:53/UDP")


class StoredObjects:
    """Objects that have been read."""

    refused = ("Service default/broken: spec.ports: missing",)
    left_out = notes = ()
    servers = ()
    neighbours = objects.NOT_ASKED

    def listed(self):
        return listed()


def listed():
    web = service(load_balancer_ips=["203.0.113.1"], source_ranges=["198.51.100.0/24"])
    dns = service("dns", ["10.96.0.53"], ((53, 0, "UDP"),))
    pieces = [slice_of("web", "10.244.1.1", "10.244.2.1"), slice_of("dns", ports=((53, "UDP", ""),))]
    return [
        Listed(Kind.SERVICE, {svc.key: svc for svc in (web, dns)}),
        Listed(Kind.ENDPOINT_SLICE, {piece.key: piece for piece in pieces}),
        Listed(Kind.NODE, {}),
    ]


@pytest.fixture
def view(monkeypatch):
    ledger = desired(config(cluster_cidrs=("10.244.0.0/16",)), listed(), HERE)
    view = MemoryView(MemoryState(ledger, HERE))
    view.state.counters = Counters(7, 70, 60, 7000, 6000)
    view.state.active = {WEB: 2}
    known = Names({str(name): ledger.owner(name) for name in ledger.frontends})
    for module in (show, diff):
        monkeypatch.setattr(module, "KernelReader", lambda: view)
    monkeypatch.setattr(show, "names", lambda *_: known)
    monkeypatch.setattr(rows, "all_connections", lambda: map(parse, map(LINE.format, range(1, 6))))
    monkeypatch.setattr(objects, "read_objects", lambda _: StoredObjects())
    monkeypatch.setattr(objects, "of_this_host", lambda given: given)
    return view


def shown(capsys, *words, status=0):
    assert cli.main(["show", *words, "-o", "json"]) == status
    return json.loads(capsys.readouterr().out)


def test_services(view, capsys):
    document = shown(capsys, "services")
    assert (document["version"], document["kind"], document["named"]) == (1, "ServiceList", True)
    items = {row["frontend"]: row for row in document["items"]}
    assert items.keys() == {str(WEB), str(DNS), "203.0.113.1:80/TCP"}
    row, dns = items[str(WEB)], items[str(DNS)]
    assert (row["namespace"], row["service"]) == ("default", "web")
    assert (row["verdict"], row["scheduler"], row["endpoints"], row["draining"]) == ("accept", "rr", 2, 0)
    assert (row["active"], row["connections"], row["inBytes"]) == (4, 7, 7000)
    assert (dns["service"], dns["verdict"], dns["endpoints"]) == ("dns", "refuse", 0)


def test_services_have_the_tenants_of_their_namespaces(view, capsys, monkeypatch):
    names = Names({str(WEB): "default/web", str(DNS): "other/dns"}, tenants_of_namespaces={"default": "blue"})
    monkeypatch.setattr(show, "names", lambda *_: names)
    items = {row["frontend"]: row["tenant"] for row in shown(capsys, "services")["items"]}
    assert (items[str(WEB)], items[str(DNS)]) == ("blue", None)
    assert cli.main(["show", "services", "-o", "wide"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [dict(zip(head.split(), line.split(), strict=False))["TENANT"] for line in lines if "web" in line] == [
        "blue"
    ]


def test_frontends_on_the_short_path(capsys, view, monkeypatch):
    ledger = desired(config(cluster_cidrs=("10.244.0.0/16",), data_path=DataPath.AUTO), listed(), HERE)
    monkeypatch.setattr(show, "KernelReader", lambda: MemoryView(MemoryState(ledger, HERE)))
    capsys.readouterr()
    items = [row for row in shown(capsys, "services")["items"] if row["frontend"] == str(WEB)]
    assert [(row["scheduler"], row["verdict"], row["endpoints"]) for row in items] == [("short path", "accept", 2)]
    found = [row for row in shown(capsys, "endpoints")["items"] if row["frontend"] == str(WEB)]
    assert {row["endpoint"]: row["state"] for row in found} == {
        "10.244.1.1:8080": "serving", "10.244.2.1:8080": "serving"
    }  # fmt: skip
    (row,) = [row for row in shown(capsys, "rules")["items"] if row["frontend"] == str(WEB)]
    assert row["verdict"] == "accept"
    assert cli.main(["show", "services", "-o", "wide"]) == 0
    assert "short path" in capsys.readouterr().out


def test_connections_of_the_short_path_are_those_of_conntrack(capsys, view, monkeypatch):
    ledger = desired(config(cluster_cidrs=("10.244.0.0/16",), data_path=DataPath.AUTO), listed(), HERE)
    state = MemoryState(ledger, HERE)
    monkeypatch.setattr(show, "KernelReader", lambda: MemoryView(state))
    monkeypatch.setattr(rows, "all_connections", lambda: iter(()))
    client, near, gone = map(destination, ("192.0.2.9:4711", "10.244.1.1:8080", "10.244.9.9:8080"))
    found = [(near, "ESTABLISHED"), (near, "ESTABLISHED"), (near, "TIME_WAIT"), (gone, "ESTABLISHED")]
    found.append((Destination(WEB.address, 80), "CLOSE"))
    state.connections = [Connection(client, WEB, endpoint, word, 9) for endpoint, word in found]
    capsys.readouterr()
    (web,) = [row for row in shown(capsys, "services")["items"] if row["frontend"] == str(WEB)]
    assert (web["endpoints"], web["draining"], web["active"], web["inactive"]) == (2, 1, 3, 1)
    items = [row for row in shown(capsys, "endpoints")["items"] if row["frontend"] == str(WEB)]
    assert {row["endpoint"]: (row["state"], row["weight"], row["active"], row["inactive"]) for row in items} == {
        "10.244.1.1:8080": ("serving", 1, 2, 1),
        "10.244.2.1:8080": ("serving", 1, 0, 0),
        "10.244.9.9:8080": ("draining", 0, 1, 0),
    }
    assert [row["endpoint"] for row in shown(capsys, "connections")["items"]] == [*[str(near)] * 3, str(gone)]


def test_weights_on_the_short_path(capsys, view, monkeypatch):
    near, far = "10.244.1.1:8080", "10.244.2.1:8080"
    slices = slice_of("web", endpoint("10.244.1.1", name="web-0"), endpoint("10.244.2.1", name="web-1"))

    def rows_of(topic, *weights):
        svc = service(data_path="auto", scheduler="wrr", weights=weights)
        objects = [Listed(Kind.SERVICE, {svc.key: svc}), Listed(Kind.ENDPOINT_SLICE, {slices.key: slices})]
        ledger = desired(config(), [*objects, Listed(Kind.NODE, {})], HERE)
        resting = {str(key): [*map(str, found)] for key, found in ledger.in_maintenance().items()}
        monkeypatch.setattr(show, "KernelReader", lambda: MemoryView(MemoryState(ledger, HERE)))
        monkeypatch.setattr(show, "names", lambda *_: Names({}, maintenance=resting))
        capsys.readouterr()
        return shown(capsys, topic)["items"]

    def endpoints(*weights):
        return {row["endpoint"]: (row["state"], row["weight"]) for row in rows_of("endpoints", *weights)}

    assert endpoints(("web-0", 30), ("web-1", 20)) == {near: ("serving", 3), far: ("serving", 2)}
    assert endpoints(("web-0", 7), ("web-1", 0)) == {near: ("serving", 1), far: ("maintenance", 0)}
    none = ("web-0", 0), ("web-1", 0)
    assert endpoints(*none) == {near: ("maintenance", 0), far: ("maintenance", 0)}
    (web,) = rows_of("services", *none)
    assert (web["verdict"], web["endpoints"], web["maintenance"]) == ("refuse", 0, 2)


def test_the_internal_view_of_a_frontend_on_the_short_path(capsys, view, monkeypatch):
    svc = service(external_local=True, load_balancer_ips=["203.0.113.77"], data_path="auto", scheduler="wrr",
                  same_zone_weight=3)  # fmt: skip
    local = [Listed(Kind.SERVICE, {svc.key: svc}), *listed()[1:]]
    ledger = desired(config(cluster_cidrs=("10.244.0.0/16",)), local, HERE)
    monkeypatch.setattr(show, "KernelReader", lambda: MemoryView(MemoryState(ledger, HERE)))
    capsys.readouterr()
    (row,) = [row for row in shown(capsys, "rules")["items"] if row["frontend"] == "203.0.113.77:80/TCP"]
    assert (row["verdict"], row["inside"]) == ("accept", "short path, 2 endpoints")


def test_endpoints(view, capsys):
    view.state.weights = dict.fromkeys(view.state.servers[WEB][:1], 0)
    items = [row for row in shown(capsys, "endpoints")["items"] if row["frontend"] == str(WEB)]
    assert sorted((row["state"], row["weight"]) for row in items) == [("draining", 0), ("serving", 1)]


def test_endpoints_in_maintenance_are_not_shown_as_draining(view, capsys, monkeypatch):
    resting, *_ = view.state.servers[WEB]
    view.state.weights = dict.fromkeys(view.state.servers[WEB], 0)
    monkeypatch.setattr(show, "names", lambda *_: Names({}, maintenance={str(WEB): [str(resting)]}))
    items = [row for row in shown(capsys, "endpoints")["items"] if row["frontend"] == str(WEB)]
    assert {row["endpoint"]: row["state"] for row in items if row["state"] != "draining"} == {
        str(resting): "maintenance"
    }
    (web,) = [row for row in shown(capsys, "services")["items"] if row["frontend"] == str(WEB)]
    assert (web["endpoints"], web["draining"], web["maintenance"]) == (0, 1, 1)


def test_objects_report_which_endpoints_are_in_maintenance():
    svc = service(weights=(("web-0", 0),))
    slices = slice_of("web", endpoint("10.244.1.1", name="web-0"), endpoint("10.244.2.1", name="web-1"))
    wanted = desired(
        config(),
        [
            Listed(Kind.SERVICE, {svc.key: svc}),
            Listed(Kind.ENDPOINT_SLICE, {slices.key: slices}),
            Listed(Kind.NODE, {}),
        ],
        HERE,
    )
    assert wanted.in_maintenance() == {WEB: {destination("10.244.1.1:8080")}}
    (reason,) = desired(
        config(),
        [Listed(Kind.SERVICE, {svc.key: service(affinity_prefixes=(24, 64))}), Listed(Kind.NODE, {})],
        HERE,
    ).unmet(svc.key)
    assert "netmask" in reason


def test_endpoints_with_a_limit_of_connections(view, capsys):
    view.state.limits = dict.fromkeys(view.state.servers[WEB], (4, 3))
    view.state.active[WEB] = 4
    items = [row for row in shown(capsys, "endpoints")["items"] if row["frontend"] == str(WEB)]
    assert [(row["state"], row["upperThreshold"], row["lowerThreshold"]) for row in items] == [("full", 4, 3)] * 2
    assert cli.main(["show", "endpoints", "-o", "wide"]) == 0
    assert {"UPPER", "LOWER"} <= set(capsys.readouterr().out.splitlines()[0].split())


def test_connections_are_limited_and_that_is_reported(view, capsys):
    assert cli.main(["show", "connections", "--limit=3", "-o", "json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (len(document["items"]), document["truncated"]) == (3, True)
    assert "--limit" in captured.err
    document = shown(capsys, "connections")
    assert (len(document["items"]), document["truncated"]) == (5, False)
    assert document["items"][0]["client"] == "192.0.2.1:55474"
    assert document["items"][0]["service"] == "web"


def test_rules(view, capsys):
    items = {row["frontend"]: row for row in shown(capsys, "rules")["items"]}
    vip = items["203.0.113.1:80/TCP"]
    assert (vip["sourceRanges"], vip["masquerade"], vip["address"]) == (["198.51.100.0/24"], "always", "vip")
    assert items[str(WEB)]["masquerade"] == "unless-local-pod"
    assert items[str(DNS)]["verdict"] == "refuse"


def test_rules_of_ranges_of_ports(view, monkeypatch, capsys):
    ranges = ((Protocol.UDP, 30000, 31000), (Protocol.UDP, 5060, 5060))
    ranged = service("rtp", ["10.96.0.60"], ((53, 0, "UDP"),), port_ranges=ranges)
    pieces = {"default/rtp": slice_of("rtp", "10.244.1.1", ports=((53, "UDP", ""),))}
    found = [
        Listed(Kind.SERVICE, {ranged.key: ranged}),
        Listed(Kind.ENDPOINT_SLICE, pieces),
        Listed(Kind.NODE, {}),
    ]
    ledger = desired(config(cluster_cidrs=("10.244.0.0/16",)), found, HERE)
    monkeypatch.setattr(show, "KernelReader", lambda: MemoryView(MemoryState(ledger, HERE)))
    capsys.readouterr()
    items = {row["frontend"]: row for row in shown(capsys, "rules")["items"]}
    row = items["10.96.0.60:0/UDP"]
    assert (row["ports"], row["verdict"], row["masquerade"]) == (
        ["30000-31000", "5060"], "accept", "unless-local-pod"
    )  # fmt: skip
    assert items["10.96.0.60:53/UDP"]["ports"] == []
    services = {row["frontend"]: row for row in shown(capsys, "services")["items"]}
    assert services["10.96.0.60:0/UDP"]["verdict"] == "accept"
    assert services["10.96.0.60:0/UDP"]["affinitySeconds"] == 10800


@pytest.mark.parametrize(
    ("words", "services"),
    [
        ([], {"web", "dns"}),
        (["-n", "default"], {"web", "dns"}),
        (["-n", "other"], set()),
        (["-n", "other", "-A"], {"web", "dns"}),
        (["web"], {"web"}),
        (["default/dns"], {"dns"}),
    ],
)
def test_filters(view, words, services, capsys):
    assert {row["service"] for row in shown(capsys, "services", *words)["items"]} == services


def test_labels_need_objects(view, monkeypatch, tmp_path, capsys):
    assert cli.main(["show", "services", "-l", "app=web"]) == 2
    (tmp_path / "web.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default, labels: {app: web}}\n---\n"
        "apiVersion: v1\nkind: Service\nmetadata: {name: dns, namespace: default}\n"
    )
    (tmp_path / "broken.yaml").write_text("[")
    monkeypatch.setattr(objects, "read_objects", read_objects)
    items = shown(capsys, "services", "-l", "app=web", f"--manifests={tmp_path}")["items"]
    assert {row["service"] for row in items} == {"web"}


def test_sorting(view, capsys):
    def order(*words):
        return [row["frontend"] for row in shown(capsys, "services", *words)["items"]]

    assert order("--sort-by=ACTIVE")[-1] == str(WEB)
    assert order("--sort-by=-active")[0] == str(WEB)
    assert order("--sort-by", "frontend") == sorted(order())
    assert cli.main(["show", "services", "--sort-by=colour"]) == 2


def test_for_people(view, capsys):
    assert cli.main(["show", "services"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["NAMESPACE", "SERVICE", "FRONTEND", "VERDICT"]
    assert lines[0].split()[:4] == ["default", "dns", str(DNS), "refuse"]
    assert cli.main(["show", "services", "-o", "wide"]) == 0
    assert "SCHEDULER" in capsys.readouterr().out.splitlines()[0]


def test_names_that_no_service_has(view, capsys):
    document = shown(capsys, "services", "default/dns", "wbe", "other/web", status=1)
    assert {row["service"] for row in document["items"]} == {"dns"}
    assert document["missing"] == ["wbe", "other/web"]
    assert cli.main(["show", "services", "wbe"]) == 1
    assert "no Service wbe has a frontend here; there are: default/web" in capsys.readouterr().err


def test_without_names_no_one_can_tell_whether_there_is_such_a_service(view, capsys, monkeypatch):
    monkeypatch.setattr(show, "names", lambda *_: Names({}, "names of Services are unknown: nobody answers"))
    assert cli.main(["show", "services", "web"]) == 1
    assert "no Service" not in capsys.readouterr().err
    document = shown(capsys, "services", "web", status=1)
    assert (document["named"], document["missing"]) == (False, [])


def test_an_empty_answer_reports_it(view, capsys):
    assert cli.main(["show", "endpoints", "dns"]) == 0
    assert capsys.readouterr().err == "nothing to show\n"
    view.has_ipvs = False
    assert cli.main(["show", "services"]) == 0
    assert "no IPVS" in capsys.readouterr().err
    assert cli.main(["diff", "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16"]) == 1
    said = capsys.readouterr()
    assert "no IPVS" in said.err
    assert "None" not in said.out


@pytest.mark.parametrize(
    "words",
    [[], ["pods"], ["services", "-o", "xml"], ["services", "--interval=0"], ["services", "-w", "--interval=-1s"]],
)
def test_wrong_usage(view, words, capsys):
    assert cli.main(["show", *words]) == 2


def test_watching_looks_again(view, monkeypatch, capsys):
    class Enough(Exception):
        pass

    def pause(seconds):
        assert seconds == 0.5
        view.state.active[WEB] += 1
        if view.state.active[WEB] == 4:
            raise Enough

    monkeypatch.setattr(show, "follow", lambda *given: follow(*given, pause))
    with pytest.raises(Enough):
        cli.main(["show", "services", "web", "-w", "--interval=500ms", "-o", "json"])
    looks = [json.loads(line)["items"] for line in capsys.readouterr().out.splitlines()]
    assert [max(row["active"] for row in look) for look in looks] == [4, 6]


def test_no_difference(view, monkeypatch, capsys):
    monkeypatch.setattr(diff.host, "read_sysctl", lambda _: 1)
    words = ["diff", "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == "A run would change nothing.\n"
    view.state.elements[element("frontends4", "10.96.0.10 . tcp . 80")] = "drop"
    assert cli.main(words) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == [
        *("~", "element", "frontends4", "{", "10.96.0.10", ".", "tcp", ".", "80", "}"),
        *("-", "-", "drop", "goto", "own"),
    ]  # fmt: skip
    assert out[-1] == "A run would make 1 change: 0 to add, 1 to change, 0 to remove."
    assert cli.main([*words, "-o", "json"]) == 1
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["action"], change["was"], change["wanted"]) == ("change", "drop", "goto own")
    assert cli.main([*words, "word"]) == 2
