"""Signs of pressure, read from files as the kernel has them, said once each."""

import pytest
import structlog.testing

from ipvsproxy.base import messages
from ipvsproxy.kernel import pressure


@pytest.fixture
def kernel(tmp_path):
    def write(**values):
        paths = {
            "count": tmp_path / pressure.CONNTRACK_COUNT,
            "limit": tmp_path / pressure.CONNTRACK_MAX,
            "bits": tmp_path / pressure.CONNECTION_BITS,
            "estimation": tmp_path / pressure.RUN_ESTIMATION,
            "threads": tmp_path / pressure.ESTIMATION_THREADS,
        }
        for name, value in values.items():
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_text(f"{value}\n")
        return pressure.Pressure(tmp_path, tmp_path, cpus=64)

    return write


def subjects(looking, servers=10, destinations=50):
    return {concern.subject for concern in looking.concerns(servers, destinations)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, set()),
        ({"count": 790, "limit": 1000}, set()),
        ({"count": 810, "limit": 1000}, {"conntrack"}),
        ({"count": 810, "limit": 0}, set()),
        ({"count": 32_000, "limit": 10**6, "bits": 12}, set()),
        ({"count": 40_000, "limit": 10**6, "bits": 12}, {"IPVS connection table"}),
        ({"count": 40_000, "limit": 10**6, "bits": 20}, set()),
    ],
)
def test_tables(kernel, values, expected):
    assert subjects(kernel(**values)) == expected


@pytest.mark.parametrize(
    ("values", "statistics", "expected"),
    [
        ({"estimation": 1}, 60_000, {"IPVS rate estimation"}),
        ({"estimation": 1}, 6_000, set()),
        ({"estimation": 0}, 60_000, set()),
        ({"estimation": 1, "threads": 0}, 60_000, set()),
        ({}, 60_000, set()),
    ],
)
def test_estimation(kernel, values, statistics, expected):
    assert subjects(kernel(**values), statistics // 6, statistics * 5 // 6) == expected


def test_each_concern_is_reported_when_it_comes_and_when_it_goes(kernel):
    looking = kernel(count=900, limit=1000)
    with structlog.testing.capture_logs() as said:
        looking.look(1, 1)
        looking.look(1, 1)
        kernel(count=10)
        looking.look(1, 1)
    assert [(line["log_level"], line["event"]) for line in said] == [
        ("warning", messages.PRESSURE),
        ("info", messages.PRESSURE_OVER),
    ]
    assert (said[0]["subject"], said[0]["entries"], said[0]["limit"]) == ("conntrack", 900, 1000)
    assert "--conntrack-max-per-core" in said[0]["advice"]
