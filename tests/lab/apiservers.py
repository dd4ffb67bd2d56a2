"""API servers for tests: the suite's own, or a real kube-apiserver when its binary is given.

Both run inside a node's namespace on its loopback, so the proxy of that node reaches them and nothing else
does. `KUBE_APISERVER=PATH ETCD=PATH` choose the real one. The two classes have the same few methods.

The real one gives a proxy the rights of kube-proxy (`system:node-proxier`) and nothing more, and writes down what
was asked with them.
"""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import socket
import ssl
import subprocess
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

from tests.lab import netns
from tests.support.apiserver import ApiServer

COLLECTIONS = {
    "Service": "/api/v1/namespaces/{namespace}/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
    "Node": "/api/v1/nodes",
    "Namespace": "/api/v1/namespaces",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
ADMIN_TOKEN, PROXY_TOKEN = "lab-admin", "lab-proxy"
PROXY_USER = "system:kube-proxy"  # bound to the role system:node-proxier in every cluster
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [PROXY_USER]}, {"level": "None"}],
}
START_SECONDS = 400  # a kube-apiserver under emulation takes its time


class ServerRefused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class Call(NamedTuple):
    """A request of the proxy as the server saw it: verb, resource with its API group, status."""

    verb: str
    resource: str
    status: int


class LabApiServer(Protocol):
    """What tests need of an API server."""

    kubeconfig: pathlib.Path

    def put(self, item: dict[str, Any]) -> None: ...
    def delete(self, kind: str, name: str) -> None: ...
    def go_away(self) -> None: ...
    def come_back(self) -> None: ...
    def calls(self) -> set[Call]: ...
    def close(self) -> None: ...


def open_server(namespace: str, folder: pathlib.Path) -> LabApiServer:
    """Start the server that the environment asks for."""
    binary, etcd = os.environ.get("KUBE_APISERVER"), os.environ.get("ETCD")
    if binary and etcd:
        return RealServer(namespace, folder, binary, etcd)
    return OwnServer(namespace, folder)


class OwnServer:
    """The suite's own server, in this process."""

    def __init__(self, namespace: str, folder: pathlib.Path) -> None:
        self._namespace = namespace
        self._server = ApiServer()
        with netns.inside(namespace):
            self._server.start()
        self.kubeconfig = self._server.write_kubeconfig(folder / "kubeconfig")
        self.put, self.delete = self._server.put, self._server.delete
        self.go_away = self.close = self._server.stop

    def come_back(self) -> None:
        with netns.inside(self._namespace):
            self._server.start()

    def calls(self) -> set[Call]:
        """None: this server lets everybody do everything."""
        return set()


def inside(namespace: str | None) -> AbstractContextManager[None]:
    return netns.inside(namespace) if namespace else nullcontext()


class Administrator:
    """Asks a kube-apiserver, with all rights, over one connection that is kept."""

    def __init__(self, namespace: str | None, port: int) -> None:
        self._namespace = namespace
        tls = ssl._create_unverified_context()  # noqa: S323 - it signs its own certificate
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=tls)
        self.close = self._connection.close

    def __call__(self, verb: str, path: str, item: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask; a server that went away costs one more question. Raises Refused, OSError."""
        try:
            return self._ask(verb, path, item)
        except (http.client.HTTPException, OSError):
            self._connection.close()
            return self._ask(verb, path, item)

    def _ask(self, verb: str, path: str, item: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
        with inside(self._namespace):
            self._connection.request(verb, path, json.dumps(item) if item else None, headers)
            answer = self._connection.getresponse()
            body = answer.read()
        if answer.status >= 300:
            raise ServerRefused(answer.status, body.decode(errors="replace"))
        return json.loads(body) if body.startswith(b"{") else {}


class RealServer:
    """etcd and kube-apiserver, as processes in a namespace, or in this process's own if it is None."""

    def __init__(self, namespace: str | None, folder: pathlib.Path, binary: str, etcd: str) -> None:
        self._namespace, self._folder = namespace, folder
        self._port, store, peers = self._free_ports(3)
        self._call = self.administrator()
        key = folder / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (folder / "tokens").write_text(
            f"{ADMIN_TOKEN},admin,admin,system:masters\n{PROXY_TOKEN},{PROXY_USER},proxy\n"
        )
        (folder / "policy").write_text(json.dumps(AUDIT_POLICY))
        self.kubeconfig = self._write_kubeconfig()
        urls = f"http://127.0.0.1:{store}"
        self._etcd = self._spawn([etcd, f"--data-dir={folder}/etcd", f"--listen-client-urls={urls}",
            f"--advertise-client-urls={urls}", f"--listen-peer-urls=http://127.0.0.1:{peers}"])  # fmt: skip
        self._argv = [binary, f"--etcd-servers={urls}", f"--cert-dir={folder}/certificates",
            "--bind-address=127.0.0.1", f"--secure-port={self._port}", f"--token-auth-file={folder}/tokens",
            "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
            "--service-account-issuer=https://lab", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none", f"--audit-policy-file={folder}/policy",
            f"--audit-log-path={folder}/audit.log"]  # fmt: skip
        self.come_back()

    def calls(self) -> set[Call]:
        """What was asked with the proxy's token and is answered; a watch is, when it has ended."""
        found = set()
        for line in (self._folder / "audit.log").read_text().splitlines():
            entry = json.loads(line)
            asked = entry.get("objectRef", {})
            resource = "/".join(filter(None, (asked.get("apiGroup"), asked.get("resource"))))
            found.add(Call(entry["verb"], resource or entry["requestURI"], entry["responseStatus"]["code"]))
        return found

    def put(self, item: dict[str, Any]) -> None:
        metadata = {"namespace": "default", **item["metadata"]}
        path = COLLECTIONS[item["kind"]].format(**metadata)
        try:
            self._call("POST", path, item)
        except ServerRefused as error:
            # A Service that is there already is refused for its ClusterIP, not for its name.
            if error.status not in (409, 422):
                raise
            # Replaced, the object keeps the identity that the server gave it.
            there = self._call("GET", f"{path}/{metadata['name']}")["metadata"]
            metadata |= {"resourceVersion": there["resourceVersion"], "uid": there["uid"]}
            self._call("PUT", f"{path}/{metadata['name']}", item | {"metadata": metadata})

    def put_status(self, item: dict[str, Any]) -> None:
        """Set the status of an object that is there; `put` leaves it out, as the server does."""
        path = f"{COLLECTIONS[item['kind']].format(**item['metadata'])}/{item['metadata']['name']}/status"
        self._call("PUT", path, item)

    def delete(self, kind: str, name: str) -> None:
        self._call("DELETE", f"{COLLECTIONS[kind].format(namespace='default')}/{name}")

    def get(self, path: str) -> dict[str, Any]:
        """Read something, as an administrator."""
        return self._call("GET", path)

    def administrator(self) -> Administrator:
        """One more connection with all rights; for one thread."""
        return Administrator(self._namespace, self._port)

    def go_away(self) -> None:
        self._api.kill()
        self._api.wait()

    def come_back(self) -> None:
        self._api = self._spawn(self._argv)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._call("GET", "/readyz")
            except (OSError, http.client.HTTPException, ServerRefused):
                assert time.monotonic() < deadline, "kube-apiserver did not come up"
                time.sleep(1)
            else:
                return

    def close(self) -> None:
        self._call.close()
        self.go_away()
        self._etcd.kill()
        self._etcd.wait()

    def _free_ports(self, count: int) -> list[int]:
        with inside(self._namespace):
            sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [made.getsockname()[1] for made in sockets]
        for made in sockets:
            made.close()
        return ports

    def _spawn(self, argv: list[str]) -> subprocess.Popen[bytes]:
        log = self._folder / f"{pathlib.Path(argv[0]).name}.log"
        with inside(self._namespace), log.open("ab") as out:
            return subprocess.Popen(argv, stdout=out, stderr=out)

    def _write_kubeconfig(self) -> pathlib.Path:
        cluster = {"server": f"https://127.0.0.1:{self._port}", "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "proxy"}}],
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "proxy", "user": {"token": PROXY_TOKEN}}],
        }
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return path
