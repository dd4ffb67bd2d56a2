import errno

import pytest

import nft
from ipvsproxy.kernel.scripts import ruleset
from nft import NftError, Table, Transaction
from nft.fake import FakeNft

TABLE = Table("inet", "ipvsproxy")


def loaded():
    client = FakeNft()
    transaction = Transaction(TABLE)
    transaction.delete_table()
    transaction.load(ruleset())
    client.run(transaction)
    return client


def change(client, add=(), delete=()):
    transaction = Transaction(TABLE)
    transaction.delete_elements(delete)
    transaction.add_elements(add)
    client.run(transaction)


def test_text_groups_elements_by_set():
    transaction = Transaction(TABLE)
    transaction.add_elements(
        [("vips4", "10.0.0.1", ""), ("frontends4", "10.0.0.1 . tcp . 80", "accept"), ("vips4", "10.0.0.2", "")]
    )
    transaction.delete_elements([("vips6", "fd00::1")])
    assert str(transaction) == (
        "add element inet ipvsproxy vips4 { 10.0.0.1, 10.0.0.2 }\n"
        "add element inet ipvsproxy frontends4 { 10.0.0.1 . tcp . 80 : accept }\n"
        "delete element inet ipvsproxy vips6 { fd00::1 }\n"
    )


@pytest.mark.parametrize(
    "hostile",
    [
        "1.1.1.1 }; flush ruleset; add element x y { 1.1.1.1",
        "1.1.1.1\nflush ruleset",
        "a;b",
        "",
        "#",
        "$(x)",
        "\x00",
        "é",
        "a,b",
        '"a" }',
    ],
)
def test_nothing_from_outside_becomes_a_command(hostile):
    for use in (
        lambda t: t.add_elements([("vips4", hostile, "")]),
        lambda t: t.delete_elements([("vips4", hostile)]),
        lambda t: t.add_elements([(hostile, "1.1.1.1", "")]),
    ):
        with pytest.raises(ValueError, match="not a"):
            use(Transaction(TABLE))
    with pytest.raises(ValueError, match="not a table"):
        Table("inet", hostile)


def test_a_transaction_is_all_or_nothing():
    client = loaded()
    with pytest.raises(NftError) as caught:
        change(client, add=[("vips4", "10.0.0.1", "")], delete=[("vips4", "10.0.0.9")])
    assert caught.value.errno == errno.ENOENT
    assert client.dump() == ""


def test_an_element_keeps_its_value_until_it_is_deleted():
    client = loaded()
    key = "10.0.0.1 . tcp . 80"
    change(client, add=[("frontends4", key, "drop")])
    change(client, add=[("frontends4", key, "drop")])
    with pytest.raises(NftError) as caught:
        change(client, add=[("frontends4", key, "accept")])
    assert caught.value.errno == errno.EEXIST
    change(client, delete=[("frontends4", key)], add=[("frontends4", key, "accept")])
    assert client.dump() == f"frontends4 {key} : accept"


def test_without_a_table_there_is_nothing_to_change():
    with pytest.raises(NftError):
        change(FakeNft(), add=[("vips4", "10.0.0.1", "")])


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("internal:0:0-0: Error: Could not process rule: No such file or directory\n", errno.ENOENT),
        ("/dev/stdin:1:1-9: Error: Could not process rule: File exists\nadd x\n^^^", errno.EEXIST),
        ("Error: syntax error, unexpected newline\n", errno.EINVAL),
        ("", errno.EINVAL),
    ],
)
def test_errno_is_read_from_the_text(output, code):
    assert NftError.from_output(output).errno == code


def test_a_missing_binding_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nftables", None)
    with pytest.raises(NftError, match="python3-nftables"):
        nft.Libnftables()


def test_a_library_that_crashes_on_what_is_there_is_found_out_beforehand(monkeypatch):
    for program, survives in (
        ("raise SystemExit(0)", True),
        ("raise SystemExit(1)", True),
        ("import os; os.abort()", False),
    ):
        monkeypatch.setattr("nft.client.LOOK", program)
        assert nft.can_read_tables() is survives


def test_the_mark_of_replies_is_one_bit_anywhere():
    assert ruleset() == ruleset(0x4000)
    text = ruleset(1 << 31)
    assert "redefine reply = 0x80000000\n" in text
    assert "redefine others = 0x7fffffff\n" in text
    assert "0x4000" not in text


def test_sets_of_another_table_are_changed_and_deleted_in_the_same_transaction():
    transaction = Transaction(Table("inet", "a"), {"quiet4": Table("arp", "b")})
    transaction.delete_table()
    transaction.flush_sets(["quiet4", "vips4"])
    transaction.add_elements([("quiet4", "10.0.0.1", ""), ("vips4", "10.0.0.1", "")])
    assert str(transaction).splitlines() == [
        "add table inet a",
        "delete table inet a",
        "add table arp b",
        "delete table arp b",
        "flush set arp b quiet4",
        "flush set inet a vips4",
        "add element arp b quiet4 { 10.0.0.1 }",
        "add element inet a vips4 { 10.0.0.1 }",
    ]


def test_a_table_with_a_comment_in_place_of_others_and_rules_in_its_chains():
    transaction = Transaction(TABLE)
    transaction.delete_tables([Table("ip6", TABLE.name)])
    transaction.add_table("ipvsproxy v0.1.0, layout 0123")
    transaction.add_chains({"late_0": ["ip saddr 10.0.0.0/8 return", "drop"], "late_1": []})
    transaction.insert_rules("excluded", ["tcp dport 80 return"])
    transaction.replace_rules("excluded", ["drop"])
    transaction.delete_chains(["late_0", "late_1"])
    assert str(transaction).splitlines() == [
        "delete table ip6 ipvsproxy",
        'add table inet ipvsproxy { comment "ipvsproxy v0.1.0, layout 0123"; }',
        "table inet ipvsproxy {",
        "\tchain late_0 {",
        "\t\tip saddr 10.0.0.0/8 return",
        "\t\tdrop",
        "\t}",
        "\tchain late_1 {",
        "\t}",
        "}",
        "insert rule inet ipvsproxy excluded tcp dport 80 return",
        "flush chain inet ipvsproxy excluded",
        "add rule inet ipvsproxy excluded drop",
        "delete chain inet ipvsproxy late_0",
        "delete chain inet ipvsproxy late_1",
    ]
    for use in (
        lambda: transaction.add_table('"; }'),
        lambda: transaction.delete_tables([Table("ip6 x; flush", TABLE.name)]),
        lambda: transaction.insert_rules("x; y", ["drop"]),
        lambda: transaction.replace_rules("", ["drop"]),
        lambda: transaction.add_chains({"x; y": []}),
        lambda: transaction.delete_chains(["x y"]),
    ):
        with pytest.raises(ValueError, match="not a "):
            use()
