"""Whole processes, as far as they come without IPVS and without root."""

import resource
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.apiserver import ApiServer


@pytest.fixture
def server():
    with ApiServer() as server:
        yield server


@pytest.mark.parametrize(
    ("which", "reason"),
    [("healthz", "FailedToStartProxierHealthcheck"), ("metrics", "FailedToStartMetricServer")],
)
def test_a_busy_port_ends_the_process_with_an_event(server, tmp_path, which, reason):
    other = {"healthz": "metrics", "metrics": "healthz"}[which]
    with socket.create_server(("127.0.0.1", 0)) as held:
        busy = f"127.0.0.1:{held.getsockname()[1]}"
        flags = [
            f"--kubeconfig={server.write_kubeconfig(tmp_path / 'k')}", "--hostname-override=node1",
            "--bind-address-hard-fail", f"--{which}-bind-address={busy}", f"--{other}-bind-address=",
        ]  # fmt: skip
        argv = [sys.executable, "-m", "ipvsproxy", "run", "--oom-score-adj=0", *flags]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(f"Error: cannot listen: {which}: {busy}: Address already in use\n")
    (event,) = server.written.values()
    assert (event["reason"], event["regarding"]["name"]) == (reason, "node1")
    assert {request.kind for request in server.requests} == {"Event"}


def test_a_start_that_waits_for_others_ends_at_once_and_has_room_for_sockets(server, tmp_path):
    """It waits for an API server that takes an event and says nothing."""
    server.stall(kind="Event")
    with socket.create_server(("127.0.0.1", 0)) as held:
        flags = [
            f"--kubeconfig={server.write_kubeconfig(tmp_path / 'k')}", "--hostname-override=node1",
            "--bind-address-hard-fail", f"--healthz-bind-address=127.0.0.1:{held.getsockname()[1]}",
            "--metrics-bind-address=", "--oom-score-adj=0",
        ]  # fmt: skip
        little = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh"]
        with subprocess.Popen([*little, sys.executable, "-m", "ipvsproxy", "run", *flags]) as process:
            try:
                server.wait_for(lambda: server.requests, 240)
                soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
                assert soft == (1 << 20 if hard == resource.RLIM_INFINITY else min(hard, 1 << 20))
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 128 + signal.SIGTERM
            finally:
                process.kill()
