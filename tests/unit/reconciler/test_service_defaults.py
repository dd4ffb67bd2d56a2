"""What a node has for Services that do not say it themselves."""

import pytest

from ipvsproxy.config.annotations import DEFAULTS
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.decode import decode_mapping
from ipvsproxy.plan.state import PERSISTENT, SCHED_1, SCHED_2, ServerAttributes
from tests.support.build import key, service
from tests.support.memory_proxy import MemoryProxy, RefusalRecorder

WEB = key("10.96.0.10:80")


def served(*services, **defaults):
    """Return the servers of some Services on a node with defaults, and what is reported of the Services."""
    texts = tuple((name.replace("_", "-"), value) for name, value in defaults.items())
    proxy = MemoryProxy(services, ["10.244.1.1"], heard=RefusalRecorder(), service_defaults=texts)
    return proxy.node.ipvs.table, proxy.heard.heard


def decoded(**annotations):
    """A Service as the API has it."""
    return decode_mapping(
        Kind.SERVICE,
        {
            "metadata": {"name": "web", "annotations": {f"ipvsproxy.io/{k}": v for k, v in annotations.items()}},
            "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
        },
    ).object


def test_a_service_gets_the_default_of_the_node():
    table, _ = served(service(), scheduler="mh", max_connections="100/80")
    assert table[WEB].server == ServerAttributes("mh", SCHED_1 | SCHED_2, 0)
    (attributes,) = table[WEB].destinations.values()
    assert (attributes.upper_threshold, attributes.lower_threshold) == (100, 80)


def test_the_annotation_of_a_service_comes_first():
    own = decoded(**{"scheduler": "rr", "max-connections": "0"})
    table, _ = served(own, scheduler="mh", max_connections="100/80", scheduler_flags="mh-port")
    assert table[WEB].server.scheduler == "rr"
    (attributes,) = table[WEB].destinations.values()
    assert attributes.upper_threshold == 0


def test_an_unusable_value_of_a_service_leaves_the_default_of_the_node():
    table, _ = served(decoded(scheduler="round-robin"), scheduler="sh")
    assert table[WEB].server.scheduler == "sh"


def test_defaults_that_mean_nothing_for_a_service_are_passed_over():
    table, said = served(
        service(affinity_seconds=60),
        service("udp", ["10.96.0.11"], ((53, 0, "UDP"),)),
        one_packet="true", scheduler_flags="mh-port", affinity_netmask="24", same_zone_weight="10",
    )  # fmt: skip
    assert table[WEB].server == ServerAttributes("rr", PERSISTENT, 60, 0xFFFFFF00)
    assert table[key("10.96.0.11:53/UDP")].server.flags
    assert said == []


@pytest.mark.parametrize("row", DEFAULTS.values(), ids=lambda row: row.name)
def test_every_annotation_of_a_service_can_be_a_default(row):
    value = row.example.strip('"')
    table, _ = served(service(), **{row.name: value})
    assert (WEB in table) is (row.name != "data-path")  # which has no server
