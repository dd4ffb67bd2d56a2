"""Settings of the proxy that runs, taken over by commands that were given none."""

import http.server
import json
import os
import socket
import threading

import pytest

from ipvsproxy.commands import proxy_pages, running
from ipvsproxy.commands.invocation import Invocation
from ipvsproxy.commands.running import adopted, at_its_address, find, values_of
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.commandline import parse
from ipvsproxy.config.document import ConfigFileError
from ipvsproxy.config.settle import settle
from ipvsproxy.kernel.instance_lock import Holder
from ipvsproxy.serve import pages
from ipvsproxy.serve.http import Request

FLAGS = [
    "--hostname-override=node7", "--cluster-cidr=10.244.0.0/16", "--ipvs-sync-period=7s", "--vip-mode=route",
    "--denied-ip-ranges=192.0.2.0/24", "--master=https://192.0.2.9:6443", "--healthz-bind-address=", "--v=4",
]  # fmt: skip


def settled(*words, **variables):
    return settle(parse(words).values, variables)


def given(*words, **variables):
    settings = settled(*words, **variables)
    return Invocation((), {}, assembled(settings, "thishost"), settings)


def said(*words):
    """The pages of a proxy that was started with these flags."""
    config = assembled(settled(*words), "thishost")
    request = Request("GET", "/", {}, {})
    configz = pages.configz(config.document, config.own_document)(request).body
    return {"/configz": configz, "/flagz": pages.flagz(config.flags)(request).body}


@pytest.fixture
def served():
    """A proxy's metrics server with the pages in the dictionary; yields that and its address."""
    found = {}

    class RunningPages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in found else 404)
            self.end_headers()
            self.wfile.write(found.get(self.path, b""))

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), RunningPages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found, f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Lock:
    """The lock of a network namespace, and which process holds it."""

    pid = 0

    def look(self):
        return Holder(self.pid, 0, "ipvsproxy") if self.pid else None


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(running, "InstanceLock", Lock)
    monkeypatch.setattr(Lock, "pid", 0)
    monkeypatch.delenv("NODE_NAME", raising=False)
    monkeypatch.setattr(running.socket, "gethostname", lambda: "thishost")


def test_the_settings_of_the_running_proxy_are_taken_over(served):
    found, address = served
    found.update(said(*FLAGS, f"--metrics-bind-address={address}"))
    taken = adopted(given(f"--metrics-bind-address={address}"))
    config = taken.config
    assert taken.origin == f"those of the running proxy, from http://{address}/configz"
    assert (config.node_name, config.cluster_cidrs, config.sync_period) == ("node7", ("10.244.0.0/16",), 7.0)
    assert (config.vip_mode.value, config.denied_ip_ranges) == ("route", ("192.0.2.0/24",))
    assert (config.master, config.healthz_bind_address) == ("https://192.0.2.9:6443", None)
    assert str(config.metrics_bind_address) == address


@pytest.mark.parametrize("flag", ["--cluster-cidr=10.0.0.0/8", "--manifests=/x", "--vip-mode=route"])
def test_one_setting_that_was_given_means_that_all_are_meant(served, flag):
    found, address = served
    found.update(said(*FLAGS))
    taken = adopted(given(flag, f"--metrics-bind-address={address}"))
    assert taken.origin == "those that this command was given"
    assert taken.config.node_name == "thishost"


def test_who_or_where_the_proxy_is_does_not_count_as_a_setting(served):
    found, address = served
    found.update(said(*FLAGS))
    taken = adopted(given("--hostname-override=other", "--v=2", f"--metrics-bind-address={address}"))
    assert (taken.config.node_name, taken.config.sync_period) == ("other", 7.0)


def test_variables_of_the_pod_are_those_of_the_proxy(served):
    """Our manifests set one, and whatever else a DaemonSet sets, a command in its pod gets as well."""
    found, address = served
    found.update(said(*FLAGS))
    variables = {"IPVSPROXY_REPLACE_PROXY_MODE": "true", "IPVSPROXY_VIP_MODE": "address"}
    taken = adopted(given(f"--metrics-bind-address={address}", **variables))
    assert taken.origin == f"those of the running proxy, from http://{address}/configz"
    assert (taken.config.sync_period, taken.config.vip_mode.value) == (7.0, "address")


@pytest.mark.parametrize("words", [[], ["--cluster-cidr=10.0.0.0/8"]])
def test_a_name_that_no_one_gave_is_that_of_the_environment(monkeypatch, nobody, words):
    monkeypatch.setenv("NODE_NAME", "Node3")
    taken = adopted(given(nobody, *words))
    assert taken.config.node_name == "node3"
    assert taken.origin.endswith("; the node's name is from the environment (NODE_NAME)")


def test_a_running_proxy_that_was_given_no_name_has_the_name_of_the_host(served, monkeypatch):
    monkeypatch.setenv("NODE_NAME", "node3")
    found, address = served
    found.update(said())
    assert adopted(given(f"--metrics-bind-address={address}")).config.node_name == "thishost"


@pytest.fixture
def nobody():
    """The flag for a metrics address at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"--metrics-bind-address=127.0.0.1:{bound.getsockname()[1]}"


def test_where_no_one_answers_the_defaults_count_and_that_is_reported(nobody):
    taken = adopted(given(nobody))
    assert taken.origin.startswith("the defaults of this command: http://127.0.0.1:")
    assert taken.origin.endswith("/configz: Connection refused")


def test_an_answer_of_another_user_does_not_count(served, monkeypatch):
    found, address = served
    found.update(said(*FLAGS))
    monkeypatch.setattr(proxy_pages, "listening_users", lambda _: {0, 4711})
    monkeypatch.setattr(running, "get", lambda *_: pytest.fail("asked"))
    assert "user 4711 listens there" in find(settled(f"--metrics-bind-address={address}")).origin


WELL = json.loads(said(*FLAGS)["/configz"])


def broken(part, **changes):
    return json.dumps({**WELL, part: {**WELL[part], **changes}}).encode()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"<html>", "is no /configz"),
        (b"[]", "is no /configz"),
        (b'{"kubeproxy.config.k8s.io": 7}', "is no /configz"),
        (b'{"kubeproxy.config.k8s.io": {}}', "is not that of an ipvsproxy"),  # kube-proxy's own
        (broken("kubeproxy.config.k8s.io", clusterCIDR=7), "clusterCIDR"),
        (broken("kubeproxy.config.k8s.io", clusterCIDR="nonsense"), "nonsense"),
        (broken("ipvsproxy.io", vipMode="nonsense"), "nonsense"),
        (broken("ipvsproxy.io", kind="Other"), "Other"),
        (b"x" * ((1 << 20) + 1), "bytes"),
    ],
    ids=range(9),
)
def test_what_cannot_be_run_with_is_not_taken_over(served, page, words):
    found, address = served
    found["/configz"] = page
    result = find(settled(f"--metrics-bind-address={address}"))
    assert (result.values, words in result.origin) == ({}, True), result.origin


def test_fields_of_a_newer_proxy_are_passed_over():
    page = broken("ipvsproxy.io", fromTheFuture=1).decode()
    assert values_of(page)["vipMode"] == "route"
    with pytest.raises(ConfigFileError):
        values_of("{}")


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A proxy that holds the lock, and whose command line is to be seen."""

    def make(*words):
        folder = tmp_path / "proc/4711"
        folder.mkdir(parents=True)
        (folder / "cmdline").write_bytes("\0".join(["python3", "/usr/local/bin/kube-proxy", *words]).encode())
        monkeypatch.setattr(running, "PROC", tmp_path / "proc")
        monkeypatch.setattr(running, "environment", lambda _: {"IPVSPROXY_VIP_MODE": "route"})
        monkeypatch.setattr(running, "path_from_here", lambda pid, path: f"/proc/{pid}/root{path}")
        monkeypatch.setattr(Lock, "pid", 4711)

    return make


def test_the_command_line_of_the_process_reports_where_it_answers(served, process):
    found, address = served
    flags = [*FLAGS, f"--metrics-bind-address={address}"]
    found.update(said(*flags))
    process(*flags)
    assert adopted(given()).origin == f"those of the running proxy, from http://{address}/configz"
    assert str(at_its_address(given()).config.metrics_bind_address) == address
    assert (
        str(at_its_address(given("--metrics-bind-address=192.0.2.1:1")).config.metrics_bind_address)
        == "192.0.2.1:1"
    )


@pytest.mark.parametrize(("flag", "field"), [("--kubeconfig=/k", "kubeconfig"), ("--manifests=/k", "manifests")])
def test_where_it_does_not_answer_its_command_line_counts_with_its_files_as_seen_from_here(process, flag, field):
    process("run", "--metrics-bind-address=", flag, "--hostname-override=node7")
    taken = adopted(given())
    assert taken.origin == "those of the running proxy, from the command line of process 4711"
    assert str(getattr(taken.config, field)) == "/proc/4711/root/k"
    assert (taken.config.node_name, taken.config.vip_mode.value) == ("node7", "route")


@pytest.mark.parametrize(
    "words", [["cleanup"], ["--nonsense"], ["--cluster-cidr=nonsense"], ["--config=/nowhere"]]
)
def test_a_command_line_without_settings_is_no_source(process, nobody, words):
    process(*words)
    assert adopted(given(nobody)).origin.startswith("the defaults of this command")


def test_a_process_that_has_ended_is_no_source(process, nobody, monkeypatch):
    process("--cluster-cidr=10.0.0.0/8")
    monkeypatch.setattr(Lock, "pid", 4712)
    assert find(settled(nobody)).values == {}
    assert os.environ.get("NODE_NAME") is None
