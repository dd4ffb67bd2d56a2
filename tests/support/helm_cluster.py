"""A server that keeps objects as an API server does, as far as Helm needs it to install and delete a release.

Discovery, and GET, list, POST, PATCH (server-side apply) and DELETE of single objects; a Job is done, well or
not, as soon as it is watched. `history` has what was made and deleted, in order.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.support.api_object import ApiObject

# Kind, plural, and whether it lives in a namespace, by group and version.
KINDS = {
    "v1": (("ServiceAccount", "serviceaccounts", True), ("ConfigMap", "configmaps", True), ("Pod", "pods", True)),
    "apps/v1": (("DaemonSet", "daemonsets", True),),
    "batch/v1": (("Job", "jobs", True),),
    "rbac.authorization.k8s.io/v1": (
        ("ClusterRoleBinding", "clusterrolebindings", False),
        ("Role", "roles", True),
        ("RoleBinding", "rolebindings", True),
    ),
}
KIND = {plural: kind for kinds in KINDS.values() for kind, plural, _ in kinds}
GROUP = re.compile(r"/apis?/((?:[a-z0-9.]+/)?v1)")
OBJECTS = re.compile(rf"{GROUP.pattern}(?:/namespaces/[^/]+)?/([a-z]+)(?:/([^/]+))?")
# An empty document in protobuf: nothing is validated.
NO_OPENAPI = ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", b"")


class HelmApiServer:
    """The server, for a `with` statement."""

    def __init__(self, *, well: bool = True) -> None:
        self.well = well
        self.objects: dict[tuple[str, str], ApiObject] = {}
        self.history: list[tuple[str, str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _HelmHandler)
        self._server.daemon_threads = True
        self._server.cluster = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def kubeconfig(self) -> str:
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}],
                "users": [{"name": "a", "user": {"token": "t"}}],
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                "current-context": "a",
            }
        )

    def names(self) -> set[tuple[str, str]]:
        """Return kind and name of each object that is there."""
        return {(KIND[plural], name) for plural, name in self.objects}

    def put(self, plural: str, obj: ApiObject) -> ApiObject:
        name = obj["metadata"]["name"]
        made = (plural, name) not in self.objects
        obj["metadata"] |= {"uid": f"uid-{len(self.history)}", "resourceVersion": "1", "generation": 1}
        self.objects[plural, name] = obj
        self.history.append(("made" if made else "changed", KIND[plural], name))
        return obj

    def delete(self, plural: str, name: str) -> ApiObject | None:
        found = self.objects.pop((plural, name), None)
        if found:
            self.history.append(("deleted", KIND[plural], name))
        return found

    def end_jobs(self) -> list[ApiObject]:
        """End all Jobs and return them."""
        found = [obj for (plural, _), obj in self.objects.items() if plural == "jobs"]
        kind, counted = ("Complete", "succeeded") if self.well else ("Failed", "failed")
        for job in found:
            condition = {"type": kind, "status": "True", "reason": kind, "message": "ended"}
            job["status"] = {"conditions": [condition], "startTime": "2026-01-01T00:00:00Z", counted: 1}
            self.history.append(("ended", "Job", job["metadata"]["name"]))
        return found


class _HelmHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        found = OBJECTS.fullmatch(path)
        if found and "watch" in query:
            self.watch(found[2], query)
        elif found:
            self.one(found[2], found[3]) if found[3] else self.many(*found.groups()[:2], query)
        elif path == "/openapi/v2":
            self.send(200, *NO_OPENAPI)
        else:
            self.discover(path)

    def discover(self, path: str) -> None:
        group = GROUP.fullmatch(path)
        if group and group[1] in KINDS:
            verbs = ["create", "delete", "get", "list", "patch", "watch"]
            kinds = [
                {"name": plural, "singularName": kind.lower(), "namespaced": spaced, "kind": kind, "verbs": verbs}
                for kind, plural, spaced in KINDS[group[1]]
            ]
            self.say(200, {"kind": "APIResourceList", "groupVersion": group[1], "resources": kinds})
        elif path == "/api":
            self.say(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            versions = [{"groupVersion": name, "version": "v1"} for name in KINDS if "/" in name]
            groups = [
                {"name": item["groupVersion"].partition("/")[0], "versions": [item], "preferredVersion": item}
                for item in versions
            ]
            self.say(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        elif path == "/version":
            self.say(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"})
        else:
            self.refuse(404, "NotFound")

    def one(self, plural: str, name: str) -> None:
        found = self.server.cluster.objects.get((plural, name))
        self.say(200, found) if found else self.refuse(404, "NotFound")

    def many(self, version: str, plural: str, query: dict[str, str]) -> None:
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        objects = self.server.cluster.objects.items()
        items = [obj for (kind, own), obj in objects if kind == plural and name in ("", own)]
        kind = {"kind": f"{KIND[plural]}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}}
        self.say(200, kind | {"items": items})

    def watch(self, plural: str, query: dict[str, str]) -> None:
        if "sendInitialEvents" in query:  # as a server without that feature says it; clients then list first
            self.refuse(422, "Invalid")
            return
        ended = self.server.cluster.end_jobs() if plural == "jobs" else []
        events = [{"type": "MODIFIED", "object": job} for job in ended]
        self.send(200, "application/json", "".join(json.dumps(event) + "\n" for event in events).encode())

    def do_POST(self) -> None:
        self.say(201, self.server.cluster.put(self.place()[0], self.body()))

    def do_PATCH(self) -> None:
        self.say(200, self.server.cluster.put(self.place()[0], self.body()))

    def do_DELETE(self) -> None:
        self.body()
        deleted = self.server.cluster.delete(*self.place())
        self.say(200, {"kind": "Status", "status": "Success"}) if deleted else self.refuse(404, "NotFound")

    def place(self) -> tuple[str, str]:
        _, plural, name = OBJECTS.fullmatch(urlsplit(self.path).path).groups()
        return plural, name

    def body(self) -> ApiObject:
        return yaml.safe_load(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def refuse(self, code: int, reason: str) -> None:
        text = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self.say(code, text | {"message": f"{self.command} {self.path}"})

    def say(self, code: int, body: ApiObject) -> None:
        self.send(code, "application/json", json.dumps(body).encode())

    def send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # Helm hangs up on a watch when it has seen enough.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)
