"""Lines of /proc/net/ip_vs_conn."""

from build import destination, key

from ipvsproxy.kernel.connections import connections, parse

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
