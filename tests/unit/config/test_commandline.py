import pytest

from ipvsproxy.config.commandline import WrongUsage, parse, usage
from ipvsproxy.config.table import BY_FLAG, FIELD_ALIASES, FLAG_ALIASES, SETTINGS


def values(*arguments):
    return parse(arguments).values


@pytest.mark.parametrize("arguments", [["--master=u"], ["--master", "u"], ["--master=x", "--master=u"]])
def test_both_ways_to_give_a_value(arguments):
    assert values(*arguments) == {"--master": "u"}


def test_underscores_are_dashes_in_names_only():
    assert values("--hostname_override=My_Node") == {"hostnameOverride": "My_Node"}


def test_a_boolean_takes_its_value_only_after_a_sign():
    assert values("--cleanup", "--masquerade-all=false") == {"--cleanup": True, "iptables.masqueradeAll": False}
    with pytest.raises(WrongUsage, match="true"):
        parse(["--cleanup", "true"])


@pytest.mark.parametrize("arguments", [["-v", "4"], ["-v=4"], ["-v4"], ["--v=4"], ["--v", "4"]])
def test_verbosity(arguments):
    assert values(*arguments) == {"logging.verbosity": 4}


def test_lists_and_maps_are_joined_when_given_again():
    got = values(
        "--ipvs-exclude-cidrs=a,b", "--ipvs-exclude-cidrs=c", "--feature-gates=A=true", "--feature-gates=B=0"
    )
    assert got == {"ipvs.excludeCIDRs": ["a", "b", "c"], "featureGates": {"A": True, "B": False}}


def test_version_may_stand_alone():
    assert values("--version")["--version"] == "true"
    assert values("--version=raw")["--version"] == "raw"


def test_empty_arguments_are_nothing():
    assert values("", "--", "") == {}


def test_every_mistake_is_reported():
    with pytest.raises(WrongUsage) as caught:
        parse(["word", "--nope=1", "-x", "--conntrack-min=a", "--cluster-cidr=ok", "--", "rest", "more", "--v"])
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "word", "--nope", "-x", "'a' is not a whole number", "rest more --v",
    ]  # fmt: skip


def test_a_flag_without_its_value():
    with pytest.raises(WrongUsage, match="needs a value: --master"):
        parse(["--master"])


def test_no_abbreviations():
    with pytest.raises(WrongUsage, match="--clust"):
        parse(["--clust=10.0.0.0/8"])


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag):
    assert parse([flag, "--nonsense"]).help


def test_usage_names_every_flag():
    assert {f"--{flag}" for flag in BY_FLAG} <= set(usage().split())


def test_keys_and_flags_are_unique():
    assert len({row.key for row in SETTINGS}) == len(SETTINGS)
    assert len(BY_FLAG) == sum(bool(row.flag) for row in SETTINGS)


def test_a_flag_that_was_renamed_works_by_its_old_name_and_a_note_has_the_new_one():
    for flag, row in FLAG_ALIASES.items():
        value = row.kind.show(row.kind.zero)
        found = parse([f"--{flag}={value}"])
        assert found.values == {row.key: row.kind.read(value)}
        assert found.notes == (f"--{flag}: deprecated, use --{row.flag}",)
        assert f"(--{flag} is deprecated)" in usage()
    assert parse(["--suppress-vip-arp=false"]).notes == ()


def test_no_alias_is_a_name_of_today():
    assert FLAG_ALIASES
    assert not FLAG_ALIASES.keys() & BY_FLAG.keys()
    assert not FIELD_ALIASES.keys() & {row.field for row in SETTINGS}
