"""Each setting is stated once: its row has the attribute of `Config` that it becomes, and the default there."""

from dataclasses import MISSING, fields

import pytest

from ipvsproxy.config import Config, ConntrackSettings, IpvsTimeouts, Listen
from ipvsproxy.config.assemble import config
from ipvsproxy.config.model import ROW, with_defaults
from ipvsproxy.config.settle import settle
from ipvsproxy.config.table import BY_ATTRIBUTE, SETTINGS

GROUPS = {"": Config, "conntrack": ConntrackSettings, "ipvs_timeouts": IpvsTimeouts}
NO_ROWS = {
    "node_name", "allow_external_ips", "conntrack", "ipvs_timeouts", "families", "serve_flagz", "serve_statusz",
    "kubernetes_version", "other_mode", "document", "own_document", "flags", "files",
}  # fmt: skip
"""Attributes that depend on more than one setting, or on none."""


def test_each_attribute_has_one_row_or_depends_on_more():
    named = [row.attribute for row in SETTINGS if row.attribute]
    assert len(named) == len(set(named))
    expected = {
        f"{group}.{field.name}".lstrip(".") for group, cls in GROUPS.items() for field in fields(cls)
    } - NO_ROWS
    assert set(named) == expected


def test_no_default_is_left_out():
    for cls in GROUPS.values():
        for field in fields(cls):
            assert field.default is not ROW
            assert (
                field.default is not MISSING or field.default_factory is not MISSING or field.name == "node_name"
            )


def test_nothing_given_means_the_defaults():
    assembled = config(settle({}, {}), "node1")
    # From flags the least pause has another default than from a file (contract 1.3).
    assert assembled.min_sync_period == 1.0
    assert config(settle({"ipvs.minSyncPeriod": 0}, {}), "node1") == Config("node1")
    assert (assembled.oom_score_adj, assembled.masquerade_bit, assembled.sync_period) == (-999, 14, 30.0)
    assert assembled.conntrack == ConntrackSettings(32768, 131072, 86400.0, 3600.0, False, 0.0, 0.0)
    assert assembled.metrics_bind_address == Listen(bytes((127, 0, 0, 1)), 10249)


def test_an_attribute_without_a_row_is_an_error():
    with pytest.raises(KeyError, match="nonsense"):

        @with_defaults()
        class Wrong:
            nonsense: int = ROW


def test_flags_that_decide_what_the_kernel_has_are_rows_with_an_attribute():
    deciding = [row for row in SETTINGS if row.decides]
    assert deciding
    assert all(row.flag and BY_ATTRIBUTE[row.attribute] is row for row in deciding)
