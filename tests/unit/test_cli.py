import argparse

import pytest

from ipvsproxy import cli
from ipvsproxy.config import DetectLocalMode, VipMode


def parse(*arguments):
    return cli.configuration(cli.parser().parse_args(cli.normalized(arguments)))


def test_a_leading_flag_means_run():
    assert cli.normalized(["--hostname-override=n"]) == ["run", "--hostname-override=n"]
    assert cli.normalized(["cleanup"]) == ["cleanup"]


def test_underscores_are_dashes_in_names_only():
    config = parse("run", "--hostname_override=My_Node")
    assert config.node_name == "my_node"


def test_lists_are_split_and_repeated():
    config = parse("run", "--cluster-cidr=10.0.0.0/8,fd00::/8", "--ipvs-exclude-cidrs=a", "--ipvs-exclude-cidrs=b")
    assert config.cluster_cidrs == ("10.0.0.0/8", "fd00::/8")
    assert config.exclude_cidrs == ("a", "b")


def test_defaults():
    config = parse("run")
    assert (config.scheduler, config.sync_period, config.vip_mode) == ("rr", 30.0, VipMode.AUTO)
    assert config.detect_local_mode is DetectLocalMode.CLUSTER_CIDR
    assert list(config.check()) == []


@pytest.mark.parametrize(("text", "value"), [("true", True), ("0", False), ("F", False)])
def test_booleans(text, value):
    assert parse("run", f"--masquerade-all={text}").masquerade_all is value
    assert parse("run", "--masquerade-all").masquerade_all is True


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("1h2m3.5s", 3723.5), ("500ms", 0.5), ("1.5m", 90), ("10us", 1e-5), ("-1s", -1)],
)
def test_durations(text, seconds):
    assert cli.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "1d", "s", "1s2", "x", "--1s"])
def test_wrong_durations(text):
    with pytest.raises(argparse.ArgumentTypeError, match="duration"):
        cli.duration(text)


def test_all_problems_are_said_at_once_with_their_flag(capsys):
    status = cli.main(
        ["run", "--cluster-cidr=nonsense", "--nodeport-addresses=1.2.3.4", "--ipvs-sync-period=0s",
         "--hostname-override= ", "--detect-local-mode=BridgeInterface", "--manifests=x", "--master=y"]
    )  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    flags = {line.split(":")[1].strip() for line in lines}
    assert flags >= {
        "--cluster-cidr", "--nodeport-addresses", "--ipvs-sync-period", "--hostname-override",
        "--pod-bridge-interface", "--manifests",
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [["run", "--nonsense"], ["run", "positional"], ["run", "--clust=x"], []])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("ipvsproxy v")
