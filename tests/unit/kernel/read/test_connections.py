"""Lines of /proc/net/ip_vs_conn."""

from ipvsproxy.kernel.read.connections import Asker, connections, parse, trace
from tests.support.build import destination, key

HEAD = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
FOUR = "TCP C0000264 D8B2 0A600A33 0050 0AF4010A 1F90 ESTABLISHED     899\n"
SIX = (
    "UDP 2001:0db8:0002:0000:0000:0000:0000:0100 0035 fd00:0010:0096:0000:0000:0000:0000:0001 0035"
    " fd00:0010:0244:0001:0000:0000:0000:0010 14E9 UDP             300\n"
)


def test_both_families():
    found = parse(FOUR)
    assert (found.client, found.frontend) == (destination("192.0.2.100:55474"), key("10.96.10.51:80/TCP"))
    assert (str(found.endpoint), found.state, found.expires) == ("10.244.1.10:8080", "ESTABLISHED", 899)
    found = parse(SIX)
    assert str(found.client) == "[2001:db8:2::100]:53"
    assert str(found.frontend) == "[fd00:10:96::1]:53/UDP"
    assert (str(found.endpoint), found.expires) == ("[fd00:10:244:1::10]:5353", 300)


def test_what_is_no_connection_is_left_out(tmp_path):
    path = tmp_path / "ip_vs_conn"
    path.write_text(HEAD + FOUR + "IP  C0000264 0000 0A600A33 0000 0AF4010A 0000 NONE 3\n" + "\n" + SIX)
    assert len(list(connections(path))) == 2
    assert list(connections(tmp_path / "none")) == []


def test_the_frontends_that_had_a_client_are_found_in_one_pass(tmp_path):
    path = tmp_path / "ip_vs_conn"
    path.write_text(HEAD + FOUR + SIX)
    here, gone = Asker(6, destination("192.0.2.100:55474")), Asker(17, destination("192.0.2.100:55474"))
    assert trace([here, gone], path) == {here: [key("10.96.10.51:80/TCP")], gone: []}
    assert trace([here], tmp_path / "none") == {here: []}  # no IPVS
    assert trace([], path) == {}


def test_what_was_not_found_before_the_limit_is_not_known(tmp_path):
    path = tmp_path / "ip_vs_conn"
    path.write_text(HEAD + FOUR + SIX)
    first, second = Asker(6, destination("192.0.2.100:55474")), Asker(17, destination("[2001:db8:2::100]:53"))
    assert trace([first, second], path, most=1) is None
    assert trace([first], path, most=1) == {first: [key("10.96.10.51:80/TCP")]}
