import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.kube import json_stream, yaml_stream
from ipvsproxy.kube.documents import read
from ipvsproxy.kube.text import Unreadable
from tests.support.apiserver import endpoint_slice, node, service


def read_items(name, data):
    found = read(name, data)
    assert found.broken == []
    return found.items


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
    [
        ("a.yaml", yaml.safe_dump),
        ("a.yml", yaml.safe_dump),
        ("a.json", yaml.safe_dump),
        ("a.yaml", json.dumps),
        ("a.json", json.dumps),
        ("a", json.dumps),
    ],
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


BOMB = "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
BOMB = f"a: &a [{','.join('x' * 9)}]\n{BOMB}"


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("a: [1, 2", 1, 9, "did not find expected"),
        ("a: 1\nb: : 2\n", 2, 4, "mapping values are not allowed"),
        ("a: 1\n\tb: 2\n", 2, 1, "found a tab character"),
        ("b: *a\n", 1, 4, "alias *a has no anchor before it"),
        ("a: &a [*a]\n", 1, 8, "alias *a has no anchor before it"),
        (BOMB, 3, 14, "aliases expand to more than the size of the file"),
        ("<<: 1\n", 1, 1, "<< takes a mapping"),
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
def test_unreadable_yaml_reports_where(text, line, column, reason):
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
        ('{"kind": "Service",\n "x": }', 2, 7, "Expecting value"),
        ('{"kind": "Service"', 1, 19, "Expecting ',' delimiter"),
        ('{"a": NaN}', 1, 1, "NaN is no value of JSON"),
        ('{"x": ' + "[" * 100_000, 1, 1, "nested too deeply"),
        ('{"kind": "List", "items": {"a": 1}}', 0, 0, "items of document 1 are not a list"),
    ],
)
def test_unreadable_json_reports_where(text, line, column, reason):
    with pytest.raises(Unreadable) as info:
        read_items("a.json", text.encode())
    assert reason in info.value.reason
    assert (info.value.line, info.value.column) == (line, column)


@pytest.mark.parametrize("data", [b"kind: \xff\xfe", b"a: \x00", b"\x80", b"kind: S\x07", b"k: \xc2\x80"])
@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_bytes_that_are_no_text(data, name):
    with pytest.raises(Unreadable) as info:
        read_items(name, data)
    assert info.value.line == 1


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
    monkeypatch.setattr(yaml_stream, "LOADER", yaml.SafeLoader)
    assert items("kind: A\nx: [1, {b: 2026-01-01}]")[0][4] == {"kind": "A", "x": [1, {"b": "2026-01-01"}]}


# What else people have


SERVICE, SLICE = service(), endpoint_slice()
BOTH = [(SERVICE["kind"], SERVICE), (SLICE["kind"], SLICE)]


def bodies(data, name="a.yaml"):
    return [(found[3], found[4]) for found in items(data, name)]


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "dump", "<stdin>"])
@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("between", ["\n", "", "\n\n", "\r\n", "\n---\n", "\n--- # two\r\n", "\x1e"])
def test_json_one_after_the_other(name, indent, between):
    text = between.join(json.dumps(found, indent=indent) for found in (SERVICE, SLICE))
    assert bodies(text, name) == BOTH
    assert [found[0] for found in items(text + between, name)] == [1, 2]


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_lists_without_a_kind_and_lists_in_lists(dump):
    listed = {"kind": "List", "apiVersion": "v1", "items": [SLICE]}
    assert bodies(dump([SERVICE, SLICE])) == BOTH
    found = items(dump([{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {}}]}, listed]))
    assert [entry[:4] for entry in found] == [
        (1, 1, "v1", "Service"),
        (1, 2, "discovery.k8s.io/v1", "EndpointSlice"),
    ]
    for _ in range(5):
        listed = {"kind": "List", "items": [listed]}
    with pytest.raises(Unreadable, match="nested too deeply"):
        read("a.yaml", dump(listed).encode())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts_as_windows_writes_them(encoding, name, end):
    as_json = end.join(json.dumps(found, indent=1).replace("\n", end) for found in (SERVICE, SLICE))
    assert bodies(as_json.encode(encoding), name) == BOTH
    if not name.endswith(".json"):
        as_yaml = yaml.safe_dump_all([SERVICE, SLICE]).replace("\n", end)
        assert bodies(as_yaml.encode(encoding), name) == BOTH


def test_files_with_byte_order_marks_that_were_joined():
    mark = b"\xef\xbb\xbf"
    assert bodies(b"---\n".join(mark + yaml.safe_dump(found).encode() for found in (SERVICE, SLICE))) == BOTH


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x1f\x8b\x08", "gzip: unpack it first (gunzip"),
        (b"PK\x03\x04", "zip"),
        (b"x" * 257 + b"ustar", "tar archive"),
        (b"\xff\xfek\x00\x00", "not text: begins like UTF-16, but byte 4 does not fit it"),
    ],
)
def test_what_is_packed_reports_how_to_unpack_it(data, said):
    with pytest.raises(Unreadable) as info:
        read("dump.yaml.gz", data)
    assert said in info.value.reason


def test_aliases_share_and_merge():
    text = "labels: &l {app: web}\nselector: *l\nport: &p 80\nnode: {<<: *l, tier: *p}\n"
    assert tree(f"{text}both: {{<<: [*l, {{a: 1}}], app: x}}\n") == {
        "labels": {"app": "web"}, "selector": {"app": "web"}, "port": 80,
        "node": {"app": "web", "tier": 80}, "both": {"app": "x", "a": 1},
    }  # fmt: skip


BROKEN = [
    "a: [1, 2", "a: b: c", "\tx: 1", "x: 1\nx: 2", "x: *nowhere", "'open", '"open', "x: |\n y\nz", "? [a]\n: b",
    "[" * 200, "x: \x07", "x: \xff", "{{ .Values.x }}", "@x", "x: !!python/name:os x", "- a\nb: c",
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_yaml_document_affects_nothing_else(broken):
    data = f"kind: A\n--- # two\n{broken}\n---\nkind: C\n---\r\nkind: D\n".encode("latin-1")
    found = read("a.yaml", data)
    assert [(item.document, item.kind) for item in found.items] == [(1, "A"), (3, "C"), (4, "D")]
    ((number, error),) = found.broken
    assert number == 2
    assert 2 <= error.line <= 6
    assert str(error).startswith(f"line {error.line}: ")


def test_broken_json_affects_nothing_else():
    text = json.dumps(SERVICE) + '\n{"kind": "Bad",\n  "x": }\n' + json.dumps(SLICE, indent=1)
    found = read("a.json", text.encode())
    assert [(item.document, item.kind) for item in found.items] == [(1, "Service"), (3, "EndpointSlice")]
    assert [(b.document, b.error.line, b.error.column) for b in found.broken] == [(2, 3, 8)]


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_only_so_many_broken_documents_are_looked_at(name):
    separator, bad = ("\n", "{x\n") if name == "a.json" else ("\n---\n", "a: [\n")
    good = json.dumps(SERVICE) if name == "a.json" else yaml.safe_dump(SERVICE)
    found = read(name, separator.join([good, *[bad] * 50, good]).encode())
    most = json_stream.MAX_BROKEN
    assert (len(found.items), len(found.broken)) == (1, most + 1)
    assert "the rest is not read" in found.broken[-1].error.reason


def test_logs_in_a_cluster_info_dump_are_passed_over_and_that_is_reported():
    logs = "==== START logs for container c of pod a/b ====\n{not json\n{}\n==== END logs for container c ====\n"
    text = f"{json.dumps(SERVICE, indent=4)}\n{logs}{logs}{json.dumps(SLICE, indent=4)}\n{logs}"
    found = read("dump.txt", text.encode())
    assert [item.kind for item in found.items] == ["Service", "EndpointSlice"]
    ((_, error),) = found.broken
    assert "--output-directory" in error.reason


@pytest.mark.parametrize("text", ["{}" * 5000, "[" + "{}," * 5000 + "{}]", "---\n1\n" * 5000, "- x\n" * 5000])
def test_items_that_are_smaller_than_any_object_are_not_counted_out(text):
    """Each would cost a hundred times its size."""
    with pytest.raises(Unreadable, match="these are no Kubernetes objects"):
        read("a", text.encode())
