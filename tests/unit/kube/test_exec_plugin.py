"""Programs that give credentials."""
# ruff: noqa: S105, S106  # what stands here is no password

import base64
import json
import pathlib
import sys
import time
import tracemalloc
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kube import exec_plugin
from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.connection import build
from ipvsproxy.kube.exec_plugin import PluginFailed
from ipvsproxy.kube.kubeconfig import read_kubeconfig
from tests.support.clock import Clock

GROUP = "client.authentication.k8s.io"
V1, V1BETA1 = f"{GROUP}/v1", f"{GROUP}/v1beta1"


def answer(version=V1, **status):
    return json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})


@pytest.fixture(name="config")
def _config(tmp_path):
    """Write a kubeconfig whose plugin prints the file `answer`, and then its own environment to `told`."""

    def write(text, cluster=None, **fields):
        (tmp_path / "answer").write_text(text)
        program = tmp_path / "plugin"
        program.write_text(
            f"#!{sys.executable}\nimport os, pathlib, sys\nhere = pathlib.Path(__file__).parent\n"
            "told = {**os.environ, 'args': sys.argv[1:]}\n"
            "(here / 'told').write_text(__import__('json').dumps(told))\n"
            "with (here / 'calls').open('a') as calls:\n    calls.write('x')\n"
            "print((here / 'answer').read_text())\n"
        )
        program.chmod(0o755)
        plugin = {"apiVersion": V1, "command": "./plugin", **fields}
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1", **(cluster or {})}}],
            "users": [{"name": "u", "user": {"exec": plugin}}],
        }))  # fmt: skip
        return path

    return write


def header(connection):
    return connection.signed({}).get("Authorization")


@pytest.mark.parametrize("version", [V1, V1BETA1])
@pytest.mark.parametrize("mode", [None, "Never", "IfAvailable"])
def test_a_token(config, tmp_path, version, mode):
    path = config(answer(version, token="t"), apiVersion=version, interactiveMode=mode, args=["a", "b"],
                  env=[{"name": "X", "value": None}, {"name": "Y", "value": "z"}])  # fmt: skip
    connection = build(path, "")
    assert header(connection) == "Bearer t"
    told = json.loads((tmp_path / "told").read_text())
    assert (told["args"], told["X"], told["Y"]) == (["a", "b"], "", "z")
    assert json.loads(told["KUBERNETES_EXEC_INFO"]) == {
        "apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False},
    }  # fmt: skip


def test_a_program_that_asks_for_it_gets_the_cluster(config, tmp_path):
    (tmp_path / "ca.crt").write_bytes(b"ca")
    extensions = [{"name": "other"}, {"name": f"{GROUP}/exec", "extension": {"audience": "me"}}]
    cluster = {"certificate-authority": "ca.crt", "tls-server-name": "n", "extensions": extensions}
    path = config(answer(token="t"), cluster, provideClusterInfo=True)
    read_kubeconfig(path).plugin.credential()
    told = json.loads((tmp_path / "told").read_text())
    assert json.loads(told["KUBERNETES_EXEC_INFO"])["spec"]["cluster"] == {
        "server": "https://192.0.2.1", "config": {"audience": "me"}, "tls-server-name": "n",
        "certificate-authority-data": base64.b64encode(b"ca").decode(),
    }  # fmt: skip


def test_a_credential_is_kept_until_it_expires(config, tmp_path):
    until = datetime(2030, 1, 1, tzinfo=UTC)
    plugin = read_kubeconfig(config(answer(token="a", expirationTimestamp="2030-01-01T00:00:00Z"))).plugin
    assert plugin.credential(lambda: 0).expires == until.timestamp()
    (tmp_path / "answer").write_text(answer(token="b"))
    assert plugin.credential(lambda: until.timestamp() - 1).token == "a"
    assert plugin.credential(until.timestamp).token == "b"
    assert plugin.credential(until.timestamp).token == "b"
    assert (tmp_path / "calls").read_text() == "xx"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "answered with something that is no JSON"),
        ("[" * 100_000, "answered with something that is no JSON"),
        ("5", "that is no ExecCredential of client.authentication.k8s.io/v1"),
        (answer(V1BETA1, token="t"), "that is no ExecCredential of client.authentication.k8s.io/v1"),
        (
            json.dumps({"apiVersion": V1, "kind": "ExecCredential"}),
            "answered with neither a token nor a certificate",
        ),
        (answer(token=5), "answered with a token that is no text"),
        (answer(token="a b"), "answered with a token that has characters no token has"),
        (answer(clientCertificateData="x"), "answered with only one of certificate and key"),
        (answer(token="t", expirationTimestamp="soon"), "answered with an expirationTimestamp that is no date"),
    ],
)
def test_an_unusable_answer_is_one_sentence(config, text, words):
    with pytest.raises(PluginFailed) as caught:
        read_kubeconfig(config(text)).plugin.credential()
    assert "context 'c': users[u].user.exec: " in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [(["./away"], "/away: not found; brew install it"), (["false"], "false: ended with status 1"),
     (["sh", "-c", "echo no; echo why >&2; exit 3"], "sh: ended with status 3: why"),
     (["/"], "/: Permission denied"), (["sleep", "60"], "sleep: no answer within 0.2 s")],
)  # fmt: skip
def test_a_program_that_fails_is_asked_again_with_the_next_request(config, tmp_path, monkeypatch, command, words):
    monkeypatch.setattr(exec_plugin, "LONGEST_SECONDS", 0.2 if "sleep" in command else 60)
    path = config("", command=command[0], args=command[1:], installHint="brew\ninstall it")
    with capture_logs() as logs:
        connection = build(path, "")
    assert words in logs[0]["err"]
    with pytest.raises(RequestFailed, match=words.partition(":")[0]):
        header(connection)


def test_what_a_program_reports_is_bounded_and_without_secrets(config):
    secret = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    words = f"Bearer abc.def; token: s3cr3t; {secret}; it cannot be"
    plugin = read_kubeconfig(config("", command="sh", args=["-c", f"echo '{words}' >&2; exit 1"])).plugin
    with pytest.raises(PluginFailed, match="it cannot be") as caught:
        plugin.credential()
    assert not any(part in str(caught.value) for part in ("abc.def", "s3cr3t", secret))
    endless = config("", command="sh", args=["-c", "yes >&2 & sleep 0.2; kill $!; exit 1"])
    with pytest.raises(PluginFailed) as caught:
        read_kubeconfig(endless).plugin.credential()
    assert len(str(caught.value)) < 500


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_never_ends_takes_no_memory_and_what_it_has_started_ends_too(config, tmp_path, monkeypatch):
    """Its time begins when it has started the other one, however long that has taken."""
    child, clock = tmp_path / "child", Clock(0.0)

    def now():
        clock.now += 0.01 if child.exists() and child.read_text().endswith("\n") else 0
        return clock.now

    monkeypatch.setattr(exec_plugin, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(exec_plugin, "LONGEST_SECONDS", 0.5)
    script = f"sleep 300 & echo $! > {child}; yes"
    tracemalloc.start()
    try:
        with pytest.raises(PluginFailed, match=r"no answer within 0\.5 s"):
            read_kubeconfig(config("", command="sh", args=["-c", script])).plugin.credential()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    deadline = time.monotonic() + 60
    while is_running(child.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_that_comes_to_itself_is_enough(config, tmp_path):
    path = config("")
    connection = build(path, "")
    (tmp_path / "answer").write_text(answer(token="t"))
    assert header(connection) == "Bearer t"


def test_another_credential_wins_over_a_program(config):
    path = config(answer(token="t"))
    tree = json.loads(path.read_text())
    tree["users"][0]["user"]["token"] = "mine"
    path.write_text(json.dumps(tree))
    assert header(build(path, "")) == "Bearer mine"


def test_an_unusable_certificate_is_a_request_error(config):
    connection = build(config(answer(clientCertificateData="x", clientKeyData="y")), "")
    with pytest.raises(RequestFailed, match="client-certificate, client-key: no certificate or key in PEM"):
        header(connection)
