"""Nothing secret is said: a whole process with a token, from its start to its end, at the most talkative level."""

import subprocess
import sys

import pytest

from tests.support.apiserver import ApiServer

TOKEN = "hush-" + "7f3a" * 8


@pytest.fixture
def server():
    with ApiServer() as server:
        yield server


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_token_is_in_no_log_line(server, tmp_path, form):
    flags = [
        f"--kubeconfig={server.write_kubeconfig(tmp_path / 'k', user={'token': TOKEN})}",
        "--hostname-override=node1", "--oom-score-adj=0", f"--logging-format={form}", "-v=9",
        "--bind-address-hard-fail", f"--healthz-bind-address={server.url.removeprefix('http://')}",
        "--metrics-bind-address=",
    ]  # fmt: skip
    argv = [sys.executable, "-m", "ipvsproxy", "run", *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    # It asked with the token: the event of its end was taken.
    assert [event["reason"] for event in server.written.values()] == ["FailedToStartProxierHealthcheck"]
    assert all(f"Bearer {TOKEN}" in request.headers.values() for request in server.requests)
    assert TOKEN not in done.stdout + done.stderr
    assert "--kubeconfig" in done.stderr
