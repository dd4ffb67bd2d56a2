"""Kubeconfig files: all that client-go takes, and one sentence for everything else."""

import base64
import copy
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube import connection
from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.client import ClientLimits, KubeClient
from ipvsproxy.kube.kubeconfig import read_kubeconfig
from ipvsproxy.kube.section import KubeconfigError
from ipvsproxy.kube.urls import proxy_of

FIELD = Path(__file__).parents[2] / "field" / "cases"
SOCKS = FIELD / "05-kubeconfig-socks.yaml"
V1 = "client.authentication.k8s.io/v1"
SECRET = "hush7f3a"  # noqa: S105
CA = base64.b64encode(b"no certificate").decode()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def tree(cluster=None, user=None, **changes):
    """A kubeconfig of one context; `cluster` and `user` add fields."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        **changes,
    }


@pytest.fixture(name="read")
def _read(tmp_path):
    def read(config, master=""):
        path = tmp_path / "kubeconfig"
        if isinstance(config, dict):
            config = json.dumps(config).encode()
        path.write_bytes(config)
        return read_kubeconfig(path, master)

    return read


def refused(read, config, master=""):
    with pytest.raises(KubeconfigError) as caught:
        read(config, master)
    return str(caught.value)


EXTRA = {"preferences": None, "extensions": [{"name": "x", "extension": {"a": 1}}], "unknown": 5}


@pytest.mark.parametrize(
    "config",
    [
        tree(), tree(**EXTRA), tree(preferences={"colors": True}), tree(apiVersion=None, kind=""),
        tree({"disable-compression": True, "extensions": None, "tls-server-name": None, "proxy-url": ""}),
        tree({"certificate-authority": "", "certificate-authority-data": None, "insecure-skip-tls-verify": None}),
        tree(user={"token": None, "tokenFile": "", "client-certificate": None, "exec": None, "auth-provider": None,
                   "as": "", "as-groups": None, "as-user-extra": None, "username": "", "password": None}),
        tree(users=None, contexts=[{"name": "c", "context": {"cluster": "k", "user": ""}}]),
        tree(users=[None, {"name": "u", "user": None}]),
        tree(contexts=[{"name": "d"}, {"name": "c", "context": {"cluster": "k", "namespace": "n"}}]),
    ],
)  # fmt: skip
def test_absent_null_and_empty_are_the_same(read, config):
    assert read(config).server == "https://192.0.2.1:6443"


@pytest.mark.parametrize(
    ("before", "after", "encoding"),
    [("\ufeff", "", "utf-8"), ("", "", "utf-16"), ("---\n", "---\n", "utf-8"),
     ("", "---\nkind: Secret\n", "utf-8"), ("# comment\n---\n", "...\n", "utf-8")],
)  # fmt: skip
def test_the_first_document_in_any_encoding(read, before, after, encoding):
    with capture_logs() as logs:
        text = f"{before}{yaml.safe_dump(tree())}{after}"
        assert read(text.encode(encoding)).server == "https://192.0.2.1:6443"
    assert len(logs) == ("Secret" in after)


@pytest.mark.parametrize(
    ("server", "cluster", "expected"),
    [
        ("192.0.2.1:6443", {}, "http://192.0.2.1:6443"),
        ("h:1", {"insecure-skip-tls-verify": True}, "https://h:1"),
        ("https://h/", {}, "https://h"), ("https://h:1/k8s/clusters/c-1/", {}, "https://h:1/k8s/clusters/c-1"),
        ("https://[2001:db8::1]:6443", {}, "https://[2001:db8::1]:6443"), ("[::1]:1", {}, "http://[::1]:1"),
        (" https://h ", {}, "https://h"), ("HTTPS://H", {}, "https://H"), ("https://h?x=y#z", {}, "https://h"),
        ("https://me:secret@h", {}, "https://me:secret@h"),
    ],
)  # fmt: skip
def test_servers(read, server, cluster, expected):
    assert read(tree({"server": server, **cluster})).server == expected
    assert read(tree({"server": "other", **cluster}), master=server).server == expected


def test_a_server_of_the_command_line_needs_no_context(read):
    assert read({}, master="https://h").server == "https://h"
    assert read(b"", master="https://h").server == "https://h"
    assert read(tree(clusters=None), master="https://h").server == "https://h"


def test_a_user_that_is_missing_is_no_one_with_a_warning(read):
    with capture_logs() as logs:
        assert read(tree(users=[])).token == ""
    assert [(entry["log_level"], entry["user"]) for entry in logs] == [("warning", "u")]


def test_paths_are_relative_to_the_file(read, tmp_path):
    (tmp_path / "ca.crt").touch()
    (tmp_path / "token").write_text("a")
    got = read(tree({"certificate-authority": "ca.crt"}, {"tokenFile": "./token"}))
    assert (got.authority, got.token_file.path) == (tmp_path / "ca.crt", tmp_path / "token")


@pytest.mark.parametrize("there", [True, False])
def test_a_token_file_wins_over_a_token_where_it_can_be_read(read, tmp_path, there):
    if there:
        (tmp_path / "token").write_text("file\n")
    got = read(tree(user={"token": "inline", "tokenFile": "token"}))
    assert got.token_file.token() == ("file" if there else "inline")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("http://p:1", "http://p:1"), ("https://p", "https://p"), ("socks5://p:1080", "socks5h://p:1080"),
     ("socks5h://p", "socks5h://p"), ("SOCKS5://u:p@[::1]:1/", "socks5h://u:p@[::1]:1")],
)  # fmt: skip
def test_proxies(read, given, expected):
    assert read(tree({"proxy-url": given})).proxy == expected


def test_impersonation_is_in_the_headers(read):
    user = {"as": "jörg", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"Acme/Scope": ["x", "z"]}}
    assert read(tree(user=user)).headers == (
        ("Impersonate-User", "jÃ¶rg"), ("Impersonate-Uid", "7"), ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"), ("Impersonate-Extra-acme%2Fscope", "x"),
        ("Impersonate-Extra-acme%2Fscope", "z"),
    )  # fmt: skip


PLUGIN = {"apiVersion": V1, "command": "x", "interactiveMode": "Never"}
CLUSTER, USER = "context 'c': clusters[k].cluster.", "context 'c': users[u].user."
REFUSED = [
    (tree(apiVersion="v2"), "apiVersion 'v2', kind 'Config': not v1, Config"),
    (tree(kind="Secret"), "apiVersion 'v1', kind 'Secret': not v1, Config"),
    (tree(**{"current-context": 5}), "current-context: must be a text; put quotes around it"),
    (tree(**{"current-context": "x"}), "contexts: none is named 'x'"),
    (tree(contexts={"c": {}}), "contexts: must be a list"),
    (tree(contexts=["c"]), "contexts[0]: must be a mapping"),
    (tree(contexts=[{"name": 5}]), "contexts[0].name: must be a text; put quotes around it"),
    (tree(contexts=[{"name": "c", "context": "k"}]), "contexts[0].context: must be a mapping"),
    (tree(contexts=[{"name": "c", "context": {"cluster": 5}}]), "contexts[c].context.cluster: must be"),
    (tree(clusters=[{"name": "k"}, {"name": "k"}]), "clusters: two are named 'k'"),
    (tree(clusters=[{"name": "k", "cluster": None}]), CLUSTER + "server: missing"),
    (tree({"server": 5}), CLUSTER + "server: must be a text"),
    (tree({"server": "ftp://h"}), CLUSTER + "server: the scheme ftp is not supported; use https"),
    (tree({"server": "https://"}), CLUSTER + "server: is not a URL such as https://192.0.2.1:6443"),
    (tree({"server": "https://h:99999"}), CLUSTER + "server: is not a URL"),
    (tree({"server": "https://h:x"}), CLUSTER + "server: is not a URL"),
    (tree({"server": "https://[::1"}), CLUSTER + "server: is not a URL"),
    (tree({"server": "https://a b"}), CLUSTER + "server: has a character that no URL has"),
    (tree({"proxy-url": "p:3128"}), CLUSTER + "proxy-url: has no scheme; use http://, https:// or socks5://"),
    (tree({"proxy-url": "socks4://p"}), CLUSTER + "proxy-url: the scheme socks4 is not supported; use"),
    (tree({"insecure-skip-tls-verify": "true"}), CLUSTER + "insecure-skip-tls-verify: must be true or false"),
    (tree({"disable-compression": 1}), CLUSTER + "disable-compression: must be true or false"),
    (tree({"insecure-skip-tls-verify": True, "certificate-authority-data": CA}),
     CLUSTER + "insecure-skip-tls-verify: cannot be combined with a certificate-authority"),
    (tree({"certificate-authority-data": 5}), CLUSTER + "certificate-authority-data: must be a text"),
    (tree({"certificate-authority": "a\0b"}), CLUSTER + "certificate-authority: has a control character"),
    (tree(user={"token": 12345}), USER + "token: must be a text; put quotes around it"),
    (tree(user={"token": "a b"}), USER + "token: has characters that no token has"),
    (tree(user={"token": "a\nb"}), USER + "token: has a control character"),
    (tree(user={"token": "a", "username": "b"}), USER + "token: cannot be combined with username and password"),
    (tree(user={"client-certificate-data": CA}), USER + "client-key: missing: a client certificate needs its key"),
    (tree(user={"auth-provider": {"name": "gcp"}}), USER + "auth-provider: gcp is not part of Kubernetes"),
    (tree(user={"auth-provider": "oidc"}), USER + "auth-provider: must be a mapping"),
    (tree(user={"as-groups": ["a"]}), USER + "as: missing: as-uid, as-groups and as-user-extra need it"),
    (tree(user={"as": "a", "as-groups": "b"}), USER + "as-groups: must be a list"),
    (tree(user={"as": "a", "as-user-extra": {"x": "y"}}), USER + "as-user-extra.x: must be a list"),
    (tree(user={"exec": {**PLUGIN, "command": None}}), USER + "exec.command: missing"),
    (tree(user={"exec": {**PLUGIN, "apiVersion": None}}), USER + "exec.apiVersion: missing or of another"),
    (tree(user={"exec": {**PLUGIN, "apiVersion": f"{V1}alpha1"}}), f"exec.apiVersion: {V1}alpha1 is not"),
    (tree(user={"exec": {**PLUGIN, "interactiveMode": "Always"}}), USER + "exec.interactiveMode: Always needs a"),
    (tree(user={"exec": {**PLUGIN, "interactiveMode": "no"}}), USER + "exec.interactiveMode: unknown; use Never"),
    (tree(user={"exec": {**PLUGIN, "args": "a"}}), USER + "exec.args: must be a list"),
    (tree(user={"exec": {**PLUGIN, "args": [5]}}), USER + "exec.args: must be a text"),
    (tree(user={"exec": {**PLUGIN, "env": [{"value": "x"}]}}), USER + "exec.env[0].name: missing"),
    (b"a: @b", "line 1, column 4: found character that cannot start any token, at '@'"),
    (b"a: !!int x", "a value has a tag that it does not fit"), (b"? [a]\n: b\n? {b: c}\n: d", "line"),
    (b"- a", "not a mapping"), (b"a: &a [*a]", "nested more deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=[words[-40:] for _, words in REFUSED])
def test_what_can_never_work_is_one_sentence_with_file_context_and_field(read, tmp_path, config, words):
    said = refused(read, config)
    assert said.startswith(f"kubeconfig {tmp_path / 'kubeconfig'}: ")
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("server", "environment", "expected"),
    [
        ("https://api.example:6443", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://api.example:6443", {"https_proxy": "p:1"}, "http://p:1"),
        ("https://api.example:6443", {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"}, "http://a:1"),
        ("https://api.example:6443", {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}, ""),
        ("http://api.example", {"HTTP_PROXY": "socks5://p:1"}, "socks5h://p:1"),
        ("https://127.0.0.1:6443", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("https://[::1]:6443", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("https://localhost:6443", {"HTTPS_PROXY": "http://p:1"}, ""),
        *(("https://api.example:6443", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": entry}, expected)
          for entry, expected in {
              "*": "", "example": "", ".example": "", "*.example": "", "api.example": "", "API.EXAMPLE": "",
              "api.example:6443": "", "api.example:443": "http://p:1", "ample": "http://p:1",
              ".api.example": "http://p:1", " other , .example ": "", "": "http://p:1", "10.0.0.0/8": "http://p:1",
          }.items()),
        *(("https://10.96.0.1", {"HTTPS_PROXY": "http://p:1", "no_proxy": entry}, expected)
          for entry, expected in {
              "10.0.0.0/8": "", "10.96.0.1": "", "10.96.0.1:443": "", "10.96.0.1:80": "http://p:1",
              "11.0.0.0/8": "http://p:1", "10.0.0.0/x": "http://p:1", "0.2": "http://p:1", "0.1": "",
          }.items()),
        ("https://[fd00::1]", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "[fd00::1]:443"}, ""),
        ("https://[fd00::1]", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "fd00:0::1"}, ""),
    ],
)  # fmt: skip
def test_proxies_of_the_environment_are_those_of_go(server, environment, expected):
    assert proxy_of(server, environment) == expected


def test_a_proxy_of_the_environment_that_is_none_is_named():
    with pytest.raises(KubeconfigError, match="HTTPS_PROXY: the scheme ftp is not supported"):
        proxy_of("https://h", {"HTTPS_PROXY": "ftp://p"})


@contextmanager
def socks(port, asked):
    """A SOCKS5 proxy on loopback (RFC 1928, no authentication) that leads one client to one server."""

    def serve():
        client, _ = listening.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            client.recv(262)
            client.sendall(b"\5\0")
            request = client.recv(262)
            asked.append(request[5 : 5 + request[4]].decode() if request[3] == 3 else request[3])
            client.sendall(b"\5\0\0\1" + bytes(6))
            server.sendall(client.recv(65536))
            while data := server.recv(65536):
                client.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


@contextmanager
def recorder(requests):
    """A server that takes down one request, as it came, and has no objects."""

    def serve():
        client, _ = listening.accept()
        with client:
            requests.append(client.recv(65536).decode("latin-1"))
            client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def list_nodes(path):
    client = KubeClient(path, "", "node1", ClientLimits(connect=10))
    client.connect()
    reply = client.list(Kind.NODE, 1, "", "")
    body = reply.read()
    reply.close()
    client.close()
    return body


def write(path, cluster, user):
    path.write_text(yaml.safe_dump(tree(cluster, user)))
    return path


def test_an_api_server_behind_a_socks5_proxy_that_resolves_its_name(tmp_path):
    requests, asked = [], []
    with recorder(requests) as port, socks(port, asked) as proxy:
        cluster = {"server": "http://api.invalid:6443", "proxy-url": f"socks5://127.0.0.1:{proxy}"}
        assert list_nodes(write(tmp_path / "k", cluster, {"token": "abc"})) == b"{}"
    assert asked == ["api.invalid"]
    assert "Authorization: Bearer abc\r\n" in requests[0]


def test_a_path_with_a_line_break_leaves_one_sentence():
    assert str(KubeconfigError("kubeconfig a\nb\x1b[1m: missing")) == "kubeconfig a?b?[1m: missing"


def test_a_socks_proxy_that_is_away_is_one_sentence(capsys, tmp_path):
    """As in the wild: nothing listens at the proxy's port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        path = tmp_path / "k"
        path.write_text(SOCKS.read_text().replace(":1080", f":{taken.getsockname()[1]}"))
        client = KubeClient(path, "", "node1", ClientLimits(connect=5))
        client.connect()
        with pytest.raises(RequestFailed, match="Connection refused"):
            client.list(Kind.NODE, 1, "", "")
        client.close()


def test_who_acts_for_whom_is_in_the_request(tmp_path):
    requests = []
    user = {"username": "me", "password": "pass", "as": "you", "as-groups": ["a", "b"]}
    with recorder(requests) as port:
        list_nodes(write(tmp_path / "k", {"server": f"http://127.0.0.1:{port}"}, user))
    for line in ("Impersonate-User: you", "Impersonate-Group: a", "Impersonate-Group: b",
                 "Authorization: Basic bWU6cGFzcw=="):  # fmt: skip
        assert f"{line}\r\n" in requests[0]


# Whatever stands in a file: a connection, or one sentence.

FULL = tree(
    {"tls-server-name": "n", "proxy-url": "http://p:1", "insecure-skip-tls-verify": True,
     "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"a": 1}}]},
    {"token": SECRET, "as": "me", "as-groups": ["g"], "as-user-extra": {"a": ["b"]},
     "exec": {"apiVersion": V1, "command": "/none/x", "args": ["a"], "env": [{"name": "A", "value": SECRET}],
              "provideClusterInfo": True, "interactiveMode": "Never"}},
)  # fmt: skip
ODD = st.sampled_from([
    None, "", " ", 5, -1, 1.5, float("nan"), True, False, [], {}, [None], {"a": None}, [[]], "x", "\x00", "a\nb",
    "ü", "\ud800", "https://[", "https://h:0", "://", "https://\u2100.example", "//h", "h:1:2", "/dev/null",
    "/none", ".", "%", "YQ==", b"\xff", "http://u:p@h", "socks5://", "x" * 300, "[::1]", "https://h%zz",
    10**30, ["a", 5], {"name": "u"}, "https://h:\uff16",
]) | st.text(max_size=8)  # fmt: skip
NAMES = ["server", "token", "tokenFile", "exec", "certificate-authority", "certificate-authority-data", "username",
         "client-certificate", "client-certificate-data", "client-key", "client-key-data", "proxy-url",
         "auth-provider", "name", "as", "as-uid", "current-context", "apiVersion", "kind"]  # fmt: skip


def places(value, path=()):
    """Yield the path of every value inside of a tree."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


PLACES = list(places(FULL))


@st.composite
def mutations(draw):
    config = copy.deepcopy(FULL)
    if draw(st.booleans()):
        del config["users"][0]["user"]["token"]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        target = config
        for key in path[:-1]:
            target = target[key] if isinstance(target, dict | list) and _has(target, key) else None
        if isinstance(target, dict):
            how = draw(st.sampled_from(["change", "remove", "add"]))
            if how == "remove":
                target.pop(path[-1], None)
            else:
                target[path[-1] if how == "change" else draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(ODD))
        elif isinstance(target, list) and _has(target, path[-1]):
            target[path[-1]] = copy.deepcopy(draw(ODD))
    return config


def _has(target, key):
    return key in target if isinstance(target, dict) else isinstance(key, int) and key < len(target)


def nobody(*_, **__):
    raise OSError("nobody there")


@pytest.fixture(name="alone", scope="module")
def _alone():
    """No connection can be made to anybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib3.util.connection.create_connection", nobody)
        patch.setattr("socks.create_connection", nobody)
        yield


def opens_or_says_why(path, master=""):
    """Make a connection of a file and use it, or get one sentence without the name of an exception or a secret."""
    client = KubeClient(path, master, "node1")
    with capture_logs() as logs:
        try:
            client.connect()
        except KubeconfigError as error:
            said = str(error)
            assert said.startswith((f"kubeconfig {path}: ", "--master: ")), said
            assert "\n" not in said
            for word in ("Error", "Exception", "Traceback", "object at 0x", SECRET):
                assert word not in said, said
        else:
            with pytest.raises(RequestFailed):
                client.list(Kind.NODE, 1, "", "")
            client.close()
    assert SECRET not in str(logs)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=mutations(), master=st.sampled_from(["", "", "https://h", "h:1", "https://[", "x y"]))
def test_no_kubeconfig_gives_anything_but_a_connection_or_a_sentence(alone, tmp_path, config, master):
    path = tmp_path / "kubeconfig"
    path.write_bytes(json.dumps(config, default=lambda data: data.hex()).encode())
    opens_or_says_why(path, master)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=100), cut=st.integers(0, 600), flip=st.binary(max_size=3))
def test_no_bytes_give_anything_but_a_connection_or_a_sentence(alone, tmp_path, data, cut, flip):
    path = tmp_path / "kubeconfig"
    whole = yaml.safe_dump(FULL).encode()
    for content in (data, whole[:cut] + flip + whole[cut + len(flip) :], whole[:cut]):
        path.write_bytes(content)
        opens_or_says_why(path)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"{" * 100_000, b"- " * 100_000, b"a: &a [*a]", b"\0" * 9, b"\xff\xfe"]
)
def test_hostile_bytes_are_one_sentence(tmp_path, data):
    path = tmp_path / "kubeconfig"
    path.write_bytes(data)
    with pytest.raises(KubeconfigError):
        connection.build(path, "")


def test_a_folder_is_one_sentence(tmp_path):
    with pytest.raises(KubeconfigError, match=f"kubeconfig {tmp_path}: Is a directory"):
        connection.build(tmp_path, "")


def test_a_command_reports_it_in_one_line(tmp_path):
    path = write(tmp_path / "k", {"proxy-url": "socks4://127.0.0.1:1"}, {})
    argv = [sys.executable, "-m", "ipvsproxy", "diff", f"--kubeconfig={path}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "clusters[k].cluster.proxy-url: the scheme socks4 is not supported" in said
