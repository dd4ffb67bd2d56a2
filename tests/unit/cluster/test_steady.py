"""Steady requests: no source port comes back, nor has another target it."""

from __future__ import annotations

import itertools

import pytest

from tests.cluster import steady


def ports(index: int, count: int) -> list[int]:
    return list(itertools.islice(steady.source_ports(index), count))


def test_a_port_comes_back_after_all_others_and_is_of_one_target(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steady.time, "monotonic", lambda: 12345.0)
    assert len(set(ports(0, steady.PORTS))) == steady.PORTS
    assert not set(ports(0, steady.PORTS)) & set(ports(1, steady.PORTS))


def test_a_process_that_follows_another_one_has_other_ports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steady.time, "monotonic", lambda: 1000.9)
    before = ports(3, 4)  # in 3.1 seconds, the last one a moment ago
    monkeypatch.setattr(steady.time, "monotonic", lambda: 1004.0)
    assert not set(before) & set(ports(3, 120))
