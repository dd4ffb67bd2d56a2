import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.config import kinds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("1h2m3.5s", 3723.5), ("500ms", 0.5), ("1.5m", 90), ("10us", 1e-5), ("-1s", -1),
     ("+2s", 2), (".5s", 0.5), ("1.s", 1), ("3ns", 3e-9), ("1m1h", 3660)],
)  # fmt: skip
def test_durations(text, seconds):
    assert kinds.duration(text) == round(seconds * 10**9)


@pytest.mark.parametrize(
    "text", ["", "5", "1d", "s", "1s2", "x", "--1s", "1 s", "-", ".", "2562048h", f"{'9' * 9999}h", "1s" * 999]
)
def test_what_is_no_duration(text):
    with pytest.raises(kinds.BadValue, match=r"duration|292 years"):
        kinds.duration(text)


@pytest.mark.parametrize(
    "text", ["0s", "30s", "1m30s", "24h0m0s", "500ms", "1.5s", "2.5ms", "10µs", "7ns", "-1m0s"]
)
def test_durations_are_written_as_go_writes_them(text):
    assert kinds.format_duration(kinds.duration(text)) == text


@given(st.integers(-(2**62), 2**62))
def test_a_written_duration_reads_the_same(nanoseconds):
    assert kinds.duration(kinds.format_duration(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("T", True), ("1", True), ("0", False), ("False", False)]
)
def test_booleans(text, value):
    assert kinds.BOOL.read(text) is value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(kinds.BOOL, "yes"), (kinds.BOOL, ""), (kinds.INT, "1.5"), (kinds.INT, ""), (kinds.INT, str(2**31)),
     (kinds.UINT, "-1"), (kinds.FLOAT, "x"), (kinds.GATES, "A"), (kinds.GATES, "A=maybe"), (kinds.VMODULE, "a=x"),
     (kinds.QUANTITIES, "1Q")],
)  # fmt: skip
def test_wrong_texts(kind, text):
    with pytest.raises(kinds.BadValue):
        kind.read(text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(kinds.STRING, 1), (kinds.STRING, True), (kinds.BOOL, "true"), (kinds.BOOL, 1), (kinds.INT, "1"),
     (kinds.INT, True), (kinds.INT, 1.5), (kinds.DURATION, 30), (kinds.DURATION, "30"), (kinds.LIST, "a,b"),
     (kinds.LIST, [1]), (kinds.CIDRS, ["a"]), (kinds.GATES, {"A": "true"}), (kinds.FLOAT, "5"),
     (kinds.VMODULE, [{"verbosity": 1}]), (kinds.VMODULE, "x=1"), (kinds.QUANTITIES, [])],
)  # fmt: skip
def test_a_file_must_hold_the_right_type(kind, value):
    with pytest.raises(kinds.BadValue):
        kind.decode(value)


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [(kinds.BOOL, "1", "true"), (kinds.LIST, "a, b", "a,b"), (kinds.GATES, "A=1,B=f", "A=true,B=false"),
     (kinds.VMODULE, "a*=3,b=1", "a*=3,b=1"), (kinds.FLOAT, "5", "5"), (kinds.INT, "0x10", "16")],
)  # fmt: skip
def test_values_are_shown_as_flags(kind, text, shown):
    assert kind.show(kind.read(text)) == shown
