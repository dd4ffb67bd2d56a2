"""The two small programs in the chart: what waits for the nodes after an uninstall, and what `helm test` runs."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.config import load_kube_config

from tests.support.api_object import ApiObject
from tests.support.deploy_tools import CHART


class ChartApiHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = self.server.answers[urlsplit(self.path).path]
        code, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A server that gives, for each path, its answers one after the other, and the last one again and again."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ChartApiHandler) as found:
        found.answers = {}
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CHART / f"files/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cleaned(server: ThreadingHTTPServer, tmp_path, monkeypatch) -> ModuleType:
    kubeconfig = tmp_path / "kubeconfig.conf"
    cluster = {"name": "a", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "a", "context": {"cluster": "a", "user": "a"}}
    user = {"name": "a", "user": {"token": "t"}}
    kubeconfig.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "a"})
    )
    load_kube_config(str(kubeconfig))
    module = program("cleaned")
    monkeypatch.setattr(module, "PAUSE", 0)
    return module


SET = "/apis/apps/v1/namespaces/kube-system/daemonsets/ipvsproxy-cleanup"
PODS = "/api/v1/namespaces/kube-system/pods"


def daemon_set(ready: int, wanted: int, observed: int | None = 1) -> tuple[int, ApiObject]:
    status = {"numberReady": ready, "desiredNumberScheduled": wanted, "currentNumberScheduled": wanted}
    status |= {"numberMisscheduled": 0} | ({} if observed is None else {"observedGeneration": observed})
    labels = {"a": "b"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a"}]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return 200, {"kind": "DaemonSet", "metadata": {"generation": 1}, "spec": spec, "status": status}


def pod(node: str, ready: str) -> ApiObject:
    conditions = [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}]
    spec = {"nodeName": node, "containers": [{"name": "a"}]}
    return {"metadata": {"name": node}, "spec": spec, "status": {"conditions": conditions}}


def test_the_wait_ends_when_every_node_is_clean(cleaned, server, capsys) -> None:
    unseen, away = daemon_set(0, 0, observed=None), (503, {"message": "away"})
    server.answers[SET] = [unseen, daemon_set(0, 2), away, daemon_set(1, 2), daemon_set(2, 2)]
    assert cleaned.wait("kube-system", 60) == 0
    assert len(server.answers[SET]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 nodes are clean" in said
    assert said.count("The API server did not answer") == 1


def test_no_node_at_all_is_clean(cleaned, server) -> None:
    server.answers[SET] = [daemon_set(0, 0)]
    assert cleaned.wait("kube-system", 0) == 0


def test_nodes_that_are_not_clean_in_time_are_named_with_what_to_do(cleaned, server, capsys) -> None:
    server.answers[SET] = [daemon_set(1, 3)]
    server.answers[PODS] = [(200, {"items": [pod("c", "False"), pod("a", "True"), pod("b", "Unknown")]})]
    assert cleaned.wait("kube-system", 0) == 1
    said = capsys.readouterr().out
    assert "Not clean: b, c." in said
    assert "Run `ipvsproxy cleanup` on these nodes" in said


def test_an_api_server_that_is_away_ends_the_wait_in_time(cleaned, server, capsys) -> None:
    server.answers[SET] = [(503, {})]
    assert cleaned.wait("kube-system", 0) == 1
    assert "did not answer" in capsys.readouterr().out


@pytest.mark.parametrize(("service", "health", "status"), [(403, 200, 0), (200, 503, 1), (502, 200, 1)])
def test_the_test_pod_asks_a_service_and_its_node(server, monkeypatch, capsys, service, health, status) -> None:
    answers = program("answers")
    server.answers |= {"/version": [(service, {})], "/healthz": [(health, {})]}
    # Without certificates here: only how the API server is reached differs.
    monkeypatch.setattr(answers.ssl, "create_default_context", lambda **_: None)
    ask = answers.ask
    monkeypatch.setattr(answers, "ask", lambda url, context: ask(url.replace("https:", "http:"), context))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    assert answers.main("ca.crt", "127.0.0.1", str(server.server_port)) == status
    said = capsys.readouterr().out
    assert f"/version answered {service}" in said
    assert f"/healthz answered {health}" in said


def test_the_test_fails_when_nothing_answers(server, monkeypatch, capsys) -> None:
    answers = program("answers")
    server.answers["/healthz"] = [(200, {})]
    monkeypatch.setattr(answers.ssl, "create_default_context", lambda **_: None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    assert answers.main("ca.crt", "127.0.0.1", str(server.server_port)) == 1
    assert "https://[::1]:1/version did not answer" in capsys.readouterr().out
