"""The schema says the same as the nft scripts, and so do the names by which others know us."""

import re

import pytest

from ipvsproxy.base import names
from ipvsproxy.kernel.scripts import PARTS, part, ruleset, script
from ipvsproxy.ruleset.schema import SETS, Field, OwnerKind

TABLE = re.compile(r"^table (\w+) (\w+) {", re.MULTILINE)
DECLARATION = re.compile(r"(set|map) (\w+) { typeof ([^;:]+?)(?: : ([^;]+))?;( flags interval;)?( counter;)? }")
TYPEOF = {words: field for field in Field for words in field.value.typeof}
SCRIPT = ruleset()


def fields(text):
    return tuple(TYPEOF[words] for words in text.split(" . ")) if text else ()


def declared():
    """Return (table, kind, key, value, interval, counter) of each set, by name."""
    tables = TABLE.split(SCRIPT)[1:]
    return {
        name: (family, kind, fields(key), fields(value), bool(interval), bool(counter))
        for family, body in zip(tables[::3], tables[2::3], strict=True)
        for kind, name, key, value, interval, counter in DECLARATION.findall(body)
    }


def test_every_set_of_the_scripts_is_in_the_schema_as_it_is_there():
    assert declared() == {
        name: (kind.table, "map" if kind.value else "set", kind.key, kind.value, kind.interval, kind.counts)
        for name, kind in SETS.items()
    }
    assert len(declared()) == len(re.findall(r"^\t(?:set|map) ", SCRIPT, re.MULTILINE))


@pytest.mark.parametrize("kind", SETS.values(), ids=str)
def test_keys_begin_with_their_owner(kind):
    owner = kind.key[: kind.owner]
    assert (
        owner
        in {
            OwnerKind.NODE: ((),),
            OwnerKind.ADDRESS: ((Field.IP4,), (Field.IP6,)),
            OwnerKind.FRONTEND: tuple((ip, Field.PROTOCOL, Field.PORT) for ip in (Field.IP4, Field.IP6)),
        }[kind.owner]
    )
    assert len(kind.key) - len(owner) in (0, 1)


@pytest.mark.parametrize("kind", SETS.values(), ids=str)
def test_a_set_of_one_family_has_its_addresses_and_its_number(kind):
    addresses = {field for field in (*kind.key, *kind.value) if field in (Field.IP4, Field.IP6)}
    assert addresses == {4: {Field.IP4}, 6: {Field.IP6}, 0: set()}[kind.family]
    assert kind.name[-1] == str(kind.family) or not kind.family


def test_parts_are_those_of_the_scripts():
    assert {kind.part for kind in SETS.values()} - {""} <= set(PARTS)


def test_the_scripts_state_the_names_by_which_others_know_us():
    assert {name for _, name in TABLE.findall(SCRIPT)} == {names.TABLE}
    priorities = re.findall(r"type nat hook (?:prerouting|output) priority (\S+);", script("ipvsproxy"))
    assert priorities == [str(names.NAT_PRIORITY)] * 2
    assert f"redefine reply = {1 << names.MASQUERADE_BIT:#010x}" in part("replies", 1 << names.MASQUERADE_BIT)
