from pathlib import Path

import pytest

from ipvsproxy import cli
from ipvsproxy.base.errors import Fatal
from ipvsproxy.kernel import host
from ipvsproxy.process import app, cleanup, signals

KUBEADM = Path(__file__).parents[1] / "config" / "kubeadm-config.conf"


@pytest.fixture(autouse=True)
def honored(monkeypatch):
    """When signals began to be honored; not in this process, which is the tests'."""
    calls = []
    monkeypatch.setattr(signals, "end_at_once", lambda: calls.append("signals"))
    return calls


@pytest.fixture
def ran(monkeypatch):
    """What the assembly was asked to do; the kernel is not touched."""
    calls = []
    monkeypatch.setattr(app, "run", lambda config, recheck: calls.append(("run", config, recheck)))
    monkeypatch.setattr(app, "init", lambda config: calls.append(("init", config)))
    monkeypatch.setattr(cleanup, "cleanup", lambda _, **asked: calls.append(("cleanup", asked)))
    return calls


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("/usr/local/bin/kube-proxy", [f"--config={KUBEADM}", "--hostname-override=n1"]),
        ("ipvsproxy", ["--hostname-override=n1"]),
        ("ipvsproxy", ["run", "--hostname-override", "n1"]),
        ("/usr/local/bin/kube-proxy", ["--hostname_override=N1"]),
    ],
)
def test_ways_to_run(program, arguments, ran):
    assert cli.main(arguments, program) == 0
    assert [(what, config.node_name) for what, config, _ in ran] == [("run", "n1")]


def test_kube_proxy_needs_no_argument(ran):
    assert cli.main([], "kube-proxy") == 0
    assert ran[0][0] == "run"


@pytest.mark.parametrize("arguments", [["cleanup", "--proxy-mode=iptables"], ["--cleanup"], ["run", "--cleanup"]])
def test_cleaning_up_is_allowed_in_every_mode(arguments, ran):
    assert cli.main(arguments) == 0
    assert ran == [("cleanup", {"everything": False, "wait": False, "handover": False})]


CLEANUP_FLAGS = {"--cleanup-kube-proxy": "everything", "--cleanup-wait": "wait", "--cleanup-handover": "handover"}


@pytest.mark.parametrize(("flag", "asked"), CLEANUP_FLAGS.items())
def test_what_a_cleanup_waits_for_and_removes_of_others_is_asked_by_flags(flag, asked, ran):
    assert cli.main(["cleanup", flag]) == 0
    ((what, told),) = ran
    assert (what, [name for name, value in told.items() if value]) == ("cleanup", [asked])


@pytest.mark.parametrize("flag", CLEANUP_FLAGS)
def test_flags_of_a_cleanup_mean_nothing_for_a_run(flag, ran, capsys):
    assert cli.main(["run", flag]) == 2
    assert f"{flag}: means nothing without --cleanup" in capsys.readouterr().err
    assert not ran


@pytest.mark.parametrize(
    ("where", "what", "word"),
    [(app, "run", "run"), (app, "init", "--init-only"), (cleanup, "cleanup", "--cleanup")],
)
def test_signals_count_before_anything_is_done(where, what, word, honored, monkeypatch):
    monkeypatch.setattr(where, what, lambda *_, **__: honored.append("work"))
    assert cli.main([word]) == 0
    assert honored == ["signals", "work"]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_file_with_another_mode_does_not_keep_a_node_without_a_proxy(tmp_path, ran, monkeypatch, mode):
    """kubeadm 1.37 writes `mode: iptables` where nobody chose a mode."""
    monkeypatch.setattr(host, "obstacles", lambda _: [])
    path = tmp_path / "config.conf"
    path.write_text(KUBEADM.read_text().replace('mode: ""', f"mode: {mode}"))
    assert cli.main([f"--config={path}"], "kube-proxy") == 0
    ((_, config, recheck),) = ran
    assert f"{path}: KubeProxyConfiguration.mode is {mode}" in config.other_mode
    assert "IPVSPROXY_REPLACE_PROXY_MODE=true" in config.other_mode
    assert config.document["mode"] == "ipvs"
    assert recheck() == []


@pytest.mark.parametrize("flag", [True, False])
def test_the_wish_to_replace_another_mode_ends_all_questions(ran, flag, monkeypatch):
    if not flag:
        monkeypatch.setenv("IPVSPROXY_REPLACE_PROXY_MODE", "true")
    assert cli.main(["--proxy-mode=iptables", *(["--replace-proxy-mode"] if flag else [])], "kube-proxy") == 0
    assert ran[0][1].other_mode == ""


def test_init_only(ran):
    assert cli.main(["--init-only"]) == 0
    assert [call[0] for call in ran] == ["init"]


@pytest.mark.parametrize(
    ("program", "arguments", "status"),
    [
        ("kube-proxy", ["--nonsense"], 1),
        ("kube-proxy", ["run"], 1),
        ("ipvsproxy", ["--nonsense"], 1),
        ("ipvsproxy", ["run", "--nonsense"], 2),
        ("ipvsproxy", ["run", "positional"], 2),
        ("ipvsproxy", ["nonsense"], 2),
        ("ipvsproxy", [], 2),
        ("ipvsproxy", ["run", "--conntrack-min=-1"], 2),
        ("ipvsproxy", ["--conntrack-min=-1"], 1),
        ("ipvsproxy", ["run", "--config=/nonexistent"], 1),
        ("kube-proxy", ["--proxy-mode=userspace"], 1),
    ],
)
def test_wrong_usage_has_the_status_of_its_grammar(program, arguments, status, ran, capsys):
    assert cli.main(arguments, program) == status
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0].startswith("Error: ")
    assert "--conntrack-max-per-core" not in captured.err
    assert captured.out == ""
    assert ran == []


@pytest.mark.parametrize(
    ("program", "arguments", "lines"),
    [
        ("kube-proxy", ["--ipvs-shceduler=rr", "--nodeport-adresses=x", "--zzz"],
         ["Error: unknown flag: --ipvs-shceduler; did you mean --ipvs-scheduler?",
          "Error: unknown flag: --nodeport-adresses; did you mean --nodeport-addresses?",
          "Error: unknown flag: --zzz", "See 'kube-proxy --help'."]),
        ("kube-proxy", ["-config=x"],
         ["Error: unknown flag: -config; did you mean --config?", "See 'kube-proxy --help'."]),
        ("ipvsproxy", ["show", "services", "--ouput=json"],
         ["Error: unknown flag: --ouput; did you mean --output?", "See 'ipvsproxy show --help'."]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_first_and_with_what_was_meant(program, arguments, lines, ran, capsys):
    assert cli.main(arguments, program) in (1, 2)
    assert capsys.readouterr().err.splitlines() == lines


def test_help_goes_to_stdout(capsys):
    assert cli.main(["--help"], "kube-proxy") == 0
    assert "usage: kube-proxy [flags]" in capsys.readouterr().out


def test_what_cannot_go_on_is_one_line(monkeypatch, capsys):
    def fail(config, recheck):
        raise Fatal("no IPVS")

    monkeypatch.setattr(app, "run", fail)
    assert cli.main(["run"]) == 1
    assert capsys.readouterr().err == "Error: no IPVS\n"


@pytest.mark.parametrize(
    ("arguments", "start"),
    [(["version"], "Kubernetes v1.36.2 (ipvsproxy v"), (["--version"], "Kubernetes v1.36.2 "),
     (["--version=true"], "Kubernetes v1."), (["--version=raw"], 'version.Info{Major:"1"')],
)  # fmt: skip
def test_versions(arguments, start, capsys):
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(start)


def test_a_claimed_version_goes_on(ran):
    assert cli.main(["--version=v1.35.1"]) == 0
    assert ran[0][1].kubernetes_version == "v1.35.1"


def test_the_effective_configuration_is_written_and_reads_again(tmp_path, ran):
    target = tmp_path / "out.yaml"
    target.write_text("x" * 100_000)
    assert cli.main(["--proxy-mode=iptables", "--cluster-cidr=10.0.0.0/8", f"--write-config-to={target}"]) == 0
    assert ran == []
    text = target.read_text()
    assert "mode: iptables\n" in text
    target.write_text(text.replace("mode: iptables", "mode: ipvs"))
    assert cli.main([f"--config={target}"]) == 0
    assert ran[0][1].cluster_cidrs == ("10.0.0.0/8",)


def test_a_server_that_is_not_wanted_cannot_be_written(tmp_path, ran, capsys):
    """kubeadm's file has these fields, empty, and means the default addresses."""
    target = tmp_path / "out.yaml"
    assert cli.main(["--metrics-bind-address=", f"--write-config-to={target}"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    assert str(target) in said
    assert "--metrics-bind-address: no server was asked for" in said
    assert cli.main([f"--config={target}"]) == 0
    assert str(ran[0][1].metrics_bind_address) == "127.0.0.1:10249"


def test_where_it_cannot_be_written(tmp_path, capsys):
    assert cli.main([f"--write-config-to={tmp_path}"]) == 1
    assert "--write-config-to" in capsys.readouterr().err


def test_files_are_checked_again_when_asked(tmp_path, ran, monkeypatch):
    stands_in_the_way = []
    monkeypatch.setattr(host, "obstacles", lambda _: stands_in_the_way)
    path = tmp_path / "config.conf"
    path.write_text(KUBEADM.read_text())
    assert cli.main([f"--config={path}"]) == 0
    recheck = ran[0][2]
    assert recheck() == []
    stands_in_the_way.append("net.ipv4.conf.all.arp_ignore is 0 and cannot be set to 1")
    assert recheck() == stands_in_the_way
    path.write_text(KUBEADM.read_text().replace("mode: ", "mode: userspace #"))
    assert "userspace" in recheck()[0]
    path.write_text("[")
    assert str(path) in recheck()[0]
