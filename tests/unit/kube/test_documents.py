import json
import math

import pytest
import yaml
from apiserver import endpoint_slice, node, service
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.kube import documents
from ipvsproxy.kube.documents import Unreadable, read_items


def items(text, name="a.yaml"):
    data = text if isinstance(text, bytes) else text.encode()
    return [
        (
            item.document,
            item.place,
            item.api_version,
            item.kind,
            item.body if isinstance(item.body, dict) else json.loads(bytes(item.body)),
        )
        for item in read_items(name, data)
    ]


def tree(text):
    (item,) = read_items("a.yaml", text.encode())
    return item.body


@pytest.mark.parametrize(
    ("name", "dump"),
    [("a.yaml", yaml.safe_dump), ("a.yml", yaml.safe_dump), ("a.yaml", json.dumps), ("a.json", json.dumps)],
)
def test_what_kubectl_prints(name, dump):
    objects = [service(), endpoint_slice(), node()]
    listed = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": objects}
    expected = [(1, place, obj["apiVersion"], obj["kind"], obj) for place, obj in enumerate(objects, 1)]
    assert items(dump(listed), name) == expected
    assert items(dump(objects[0]), name) == [(1, 0, "v1", "Service", objects[0])]


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_what_the_api_itself_sends_has_no_kind_in_its_items(dump):
    listed = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [{"metadata": {}}]}
    assert items(dump(listed)) == [(1, 1, "discovery.k8s.io/v1", "EndpointSlice", {"metadata": {}})]


@pytest.mark.parametrize("empty", ["", "null", "[]"])
def test_an_empty_list(empty):
    assert items(f"kind: List\nitems: {empty}") == []
    assert items(json.dumps({"kind": "ServiceList", "items": []}), "a.json") == []
    assert items(json.dumps({"kind": "ServiceList"}), "a.json") == []


def test_documents_are_counted_as_written():
    text = "# nothing\n---\nkind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n...\n---\nkind: D\n"
    assert [found[:4] for found in items(text)] == [
        (1, 0, "", "A"),
        (3, 1, "", "B"),
        (3, 2, "", "C"),
        (4, 0, "", "D"),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:45", "12:30:45"),
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("10.96.0.1", "10.96.0.1"),
        ("80", 80),
        ("-1", -1),
        ("0", 0),
        ("007", "007"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".inf", ".inf"),
        ("true", True),
        ("off", False),
        ("'off'", "off"),
        ('"80"', "80"),
        ("!!str 80", "80"),
        ("~", None),
        ("", None),
        ("''", ""),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars(text, value):
    found = tree(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


@settings(deadline=None)  # a busy machine is no bug
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**15), 10**15)
        # PyYAML leaves 0E0 and 0o7 without quotes, which kubectl's YAML takes for numbers, and so do we.
        | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"])).filter(
            lambda text: not text.startswith(tuple("+-.0123456789"))
        ),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc-./", max_size=5), inner),
        max_leaves=15,
    )
)
def test_what_pyyaml_writes_is_read_back(value):
    assert tree(yaml.dump({"x": value}, Dumper=yaml.CSafeDumper))["x"] == value


BOMB = "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("a: [1, 2", 2, 1, "did not find expected"),
        ("a: 1\nb: : 2\n", 2, 4, "mapping values are not allowed"),
        ("a: 1\n\tb: 2\n", 2, 1, "found a tab character"),
        (BOMB, 2, 8, "alias *a is not supported"),
        ("kind: Service\nspec: 1\nspec: 2\n", 3, 1, "key 'spec' is given twice"),
        ("? [a]\n: b\n", 1, 3, "a key must be a scalar"),
        ("x: !!python/object:os.system 1", 1, 4, "tag tag:yaml.org,2002:python/object:os.system is not supported"),
        ("x: !!binary aGk=", 1, 4, "tag tag:yaml.org,2002:binary is not supported"),
        ("{" * 10, 1, 2, "a key must be a scalar"),
        ("[" * 200, 1, 101, "nested too deeply"),
        ("- " * 100_000, 1, 201, "nested too deeply"),
        ("kind: List\nitems: {}\nx: 1", 0, 0, ""),
        ("kind: List\nitems: {a: 1}", 0, 0, "items of document 1 are not a list"),
    ],
)
def test_unreadable_yaml_says_where(text, line, column, reason):
    if not reason:
        assert items(text) == []
        return
    with pytest.raises(Unreadable) as info:
        read_items("a.yaml", text.encode())
    assert reason in info.value.reason
    assert (info.value.line, info.value.column) == (line, column)


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ('{"kind": "Service",\n "x": }', 2, 7, "invalid character"),
        ('{"kind": "Service"', 1, 19, "truncated"),
        ('{"a": 1} {"a": 2}', 1, 11, "trailing characters"),
        ('{"a": NaN}', 1, 7, "invalid character"),
        ("[1]", 0, 0, "Expected `object`"),
        ('{"kind": 5}', 0, 0, "Expected `str`"),
        ('{"x": ' + "[" * 100_000, 0, 0, "nested too deeply"),
    ],
)
def test_unreadable_json_says_where(text, line, column, reason):
    with pytest.raises(Unreadable) as info:
        read_items("a.json", text.encode())
    assert reason in info.value.reason
    assert (info.value.line, info.value.column) == (line, column)


@pytest.mark.parametrize("data", [b"kind: \xff\xfe", b"a: \x00", b"\x80", b"kind: S\x07"])
@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_bytes_that_are_no_text(data, name):
    with pytest.raises(Unreadable):
        read_items(name, data)


def test_json_in_a_yaml_file_may_also_be_yaml():
    assert items('{"kind": "A", "x": 1}')[0][4] == {"kind": "A", "x": 1}
    assert items("{kind: A, x: 1} # flow style")[0][4] == {"kind": "A", "x": 1}


def test_a_byte_order_mark():
    assert items("\ufeffkind: A")[0][3] == "A"
    assert items('\ufeff{"kind": "A"}', "a.json")[0][3] == "A"


def test_one_bad_item_does_not_hide_the_others():
    found = read_items("a.json", b'{"kind": "List", "items": [5, {"kind": 7}, {"kind": "Service"}]}')
    assert [(item.place, item.kind) for item in found] == [(1, ""), (2, ""), (3, "Service")]
    found = read_items("a.yaml", b"kind: List\nitems: [5, {kind: 7}, {kind: Service}]")
    assert [(item.place, item.kind) for item in found] == [(1, ""), (2, ""), (3, "Service")]


def test_huge_numbers_do_no_harm():
    assert math.isinf(tree("x: 1e999")["x"])
    assert tree("x: " + "9" * 5000)["x"] == "9" * 5000


def test_without_libyaml_it_is_only_slower(monkeypatch):
    monkeypatch.setattr(documents, "LOADER", yaml.SafeLoader)
    assert items("kind: A\nx: [1, {b: 2026-01-01}]")[0][4] == {"kind": "A", "x": [1, {"b": "2026-01-01"}]}
