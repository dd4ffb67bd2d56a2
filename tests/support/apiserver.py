"""A Kubernetes API server in memory, as much of it as a service proxy uses, with faults on demand.

It speaks list and watch over real HTTP on the loopback: resourceVersions, `limit` and `continue`, the selectors
we use, bookmarks, `timeoutSeconds`, 410 in both forms, Nodes as a table. Events can be made and patched
(`written`). Tests change objects with `put` and `delete`, look at `requests`, and plan misfortunes (`fail`, `cut`,
`garble`, `stall`, `compact`, `restart`).

    with ApiServer() as server:
        server.put(service("web"))
        server.write_kubeconfig(path)
"""

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

PATHS = {
    "/api/v1/services": ("Service", "v1"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("EndpointSlice", "discovery.k8s.io/v1"),
    "/api/v1/nodes": ("Node", "v1"),
    "/api/v1/namespaces": ("Namespace", "v1"),
    "/api/v1/pods": ("Pod", "v1"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("ServiceCIDR", "networking.k8s.io/v1"),  # read by kube-proxy
}
EVENTS = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([^/]+)/events(?:/([^/]+))?")


def key_of(obj):
    meta = obj["metadata"]
    return (meta.get("namespace", ""), meta["name"])


def matches(obj, labels, fields):
    """The forms of selectors that are needed: `!label`, `label=x`, `field=x`, `field!=x`, joined by commas."""
    own = obj["metadata"].get("labels", {})
    for term in filter(None, labels.split(",")):
        name, _, value = term.removeprefix("!").partition("=")
        if term.startswith("!") == (name in own) or (value and own.get(name) != value):
            return False
    for term in filter(None, fields.split(",")):
        path, differs, value = term.partition("!=")
        if not differs:
            path, _, value = term.partition("=")
        found = obj
        for part in path.split("."):
            found = (found or {}).get(part)
        if (str(found or "") == value) == bool(differs):
            return False
    return True


def status(code, reason, message, **details):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }


class ApiRequest:
    """What was asked: kind, whether it is a watch, the query and the headers."""

    def __init__(self, kind, query, headers):
        self.kind, self.query, self.headers = kind, query, headers
        self.watch = query.get("watch") == "true"

    def __repr__(self):
        return f"{'watch' if self.watch else 'list'} {self.kind} {self.query}"


class ApiFault:
    """A misfortune for the next `times` requests that fit."""

    def __init__(self, act, kind, watch, times):
        self.act, self.kind, self.watch, self.times = act, kind, watch, times

    def fits(self, request):
        return self.times > 0 and self.kind in (None, request.kind) and self.watch in (None, request.watch)


class ApiServer:
    def __init__(self, port=0, tls=None, version=100, list_delay=0.0, client_authority=None):
        self.objects = {kind: {} for kind, _ in PATHS.values()}
        self.events = []  # (version, kind, old object, new object, raw bytes)
        self.version = version
        self.compacted = 0
        self.gone_as_status = False
        self.bearer = None
        self.refuse_tables = False
        self.requests = []
        self.written = {}  # Events by (namespace, name)
        self.list_delay = list_delay
        self.open_watches = 0
        self._port = port
        self._tls = tls
        self._client_authority = client_authority  # whose certificates clients must have
        self._faults = []
        self._pages = {}
        self._changed = threading.Condition(threading.RLock())
        self._generation = 0  # counts how often all connections were cut
        self._closing = False
        self._connections = set()
        self._http = None

    # Life

    def start(self):
        self._http = _HttpServer(("127.0.0.1", self._port), _ApiHandler)
        self._http.api = self
        self._closing = False
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            if self._client_authority:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._client_authority)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def stop(self):
        """Go away, cutting every connection."""
        self._http.shutdown()
        self._thread.join()
        with self._changed:
            self._closing = True  # for connections that are only just being taken up
        self.hang_up()
        self._http.server_close()

    def restart(self, version=None):
        """Come back on the same port without history, with other versions if one is given."""
        self.stop()
        with self._changed:
            if version is not None:
                self.version = version
                for objects in self.objects.values():
                    for obj in objects.values():
                        self.version += 1
                        obj["metadata"]["resourceVersion"] = str(self.version)
            self.events.clear()
            self.compacted = self.version if version is not None else self.compacted
        self.start()

    def hang_up(self):
        """Cut every open connection."""
        with self._changed:
            self._generation += 1
            connections, self._connections = self._connections, set()
            self._changed.notify_all()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def connected(self, connection):
        with self._changed:
            self._connections.add(connection)
            if self._closing:
                self.hang_up()

    def disconnected(self, connection):
        with self._changed:
            self._connections.discard(connection)

    __enter__ = start

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def write_kubeconfig(self, path: Path, cluster=None, user=None):
        """Write a kubeconfig (JSON is YAML) for this server."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "proxy"}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url, **(cluster or {})}}],
            "users": [{"name": "proxy", "user": user or {}}],
        }
        path.write_text(json.dumps(config))
        return path

    # Objects

    def put(self, obj):
        """Add or replace an object; its kind decides where."""
        with self._changed:
            self.version += 1
            obj = json.loads(json.dumps(obj))
            obj["metadata"]["resourceVersion"] = str(self.version)
            old = self.objects[obj["kind"]].get(key_of(obj))
            self.objects[obj["kind"]][key_of(obj)] = obj
            self._tell(obj["kind"], old, obj)

    def delete(self, kind, name, namespace="default"):
        with self._changed:
            self.version += 1
            old = self.objects[kind].pop(("" if kind == "Node" else namespace, name))
            last = json.loads(json.dumps(old))
            last["metadata"]["resourceVersion"] = str(self.version)
            self._tell(kind, last, None)

    def bookmark(self, kind):
        """Send a bookmark with a version of its own to all watches of a kind."""
        with self._changed:
            self.version += 1
            body = {"kind": kind, "metadata": {"resourceVersion": str(self.version), "creationTimestamp": None}}
            self.send(kind, json.dumps({"type": "BOOKMARK", "object": body}).encode() + b"\n")

    def send(self, kind, data):
        """Send raw bytes to all watches of a kind that are open now."""
        with self._changed:
            self._tell(kind, None, None, data)

    def _tell(self, kind, old, new, raw=None):
        self.events.append((self.version, kind, old, new, raw))
        self._changed.notify_all()

    def wait_for(self, condition, seconds=60):
        """Wait until `condition()` holds; it is looked at after each request and change."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "the server waited in vain"

    def wait_for_watches(self, count):
        self.wait_for(lambda: self.open_watches == count)

    # Misfortunes

    def fail(self, code, *, reason="", headers=None, body=None, kind=None, watch=None, times=1):
        """Answer the next requests with an error."""

        def act(handler, _):
            data = json.dumps(status(code, reason, f"planned {code}")).encode() if body is None else body
            handler.answer(code, data, headers or {})

        self._faults.append(ApiFault(act, kind, watch, times))

    def cut(self, data, *, kind=None, watch=None, times=1, length=None):
        """Begin an answer with `data`, then cut the connection; `length` promises that many bytes."""

        def act(handler, _):
            handler.begin(200, {"Content-Length": str(length)} if length else {"Transfer-Encoding": "chunked"})
            handler.wfile.write(data if length else b"%x\r\n%s\r\n" % (len(data), data))
            handler.hang_up()

        self._faults.append(ApiFault(act, kind, watch, times))

    def garble(self, data, *, kind=None, watch=None, times=1):
        """Answer 200 with nonsense."""
        self._faults.append(ApiFault(lambda handler, _: handler.answer(200, data, {}), kind, watch, times))

    def stall(self, *, kind=None, watch=None, times=1):
        """Accept requests and never answer."""

        def act(handler, _):
            with self._changed:
                generation = self._generation
                self._changed.wait_for(lambda: self._closing or generation != self._generation)
            handler.close_connection = True

        self._faults.append(ApiFault(act, kind, watch, times))

    def be_well(self):
        """Have no misfortune any more."""
        with self._changed:
            self._faults.clear()

    def compact(self):
        """Forget what happened until now: older versions and continue tokens are gone."""
        with self._changed:
            self.compacted = self.version
            self._pages.clear()
            self.events = [event for event in self.events if event[0] > self.version]

    def fault_for(self, request):
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            for fault in self._faults:
                if fault.fits(request):
                    fault.times -= 1
                    return fault
        return None

    # Answers

    def page(self, kind, api_version, query):
        """Return status and body of a list, or of a part of it."""
        with self._changed:
            token = query.get("continue")
            if token:
                if token not in self._pages:
                    return 410, status(410, "Expired", "The provided continue parameter is too old")
                version, items = self._pages[token]
            else:
                labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
                version = self.version
                found = [obj for _, obj in sorted(self.objects[kind].items()) if matches(obj, labels, fields)]
                items = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in found]
            meta = {"resourceVersion": str(version)}
            limit = int(query.get("limit", 0)) or len(items)
            if len(items) > limit:
                meta["continue"] = f"token-{len(self._pages)}-{version}"
                meta["remainingItemCount"] = len(items) - limit
                self._pages[meta["continue"]] = (version, items[limit:])
            return 200, {
                "kind": f"{kind}List",
                "apiVersion": api_version,
                "metadata": meta,
                "items": items[:limit],
            }

    def table(self):
        """Return status and body of all Nodes as `kubectl get nodes -o wide` asks for them, without objects."""
        columns = ["Name", "Status", "Roles", "Age", "Version", "Internal-IP", "External-IP", "OS-Image"]
        if self.refuse_tables:
            return 403, status(403, "Forbidden", "nodes is forbidden: no permission to list them")
        with self._changed:
            rows = [_cells(obj) for _, obj in sorted(self.objects["Node"].items())]
            return 200, {
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": str(self.version)},
                "columnDefinitions": [{"name": name, "type": "string", "priority": 0} for name in columns],
                "rows": [{"cells": cells, "object": None} for cells in rows],
            }

    def write(self, method, namespace, name, body, content_type):
        """Make or patch an Event; return status and body."""
        with self._changed:
            if method == "POST" and content_type == "application/json":
                if body["metadata"]["namespace"] != namespace:
                    return 400, status(400, "BadRequest", "the namespaces differ")
                name, answered = body["metadata"]["name"], 201
                self.written[namespace, name] = body
            elif method == "PATCH" and content_type == "application/merge-patch+json":
                if (namespace, name) not in self.written:
                    return 404, status(404, "NotFound", f"events {name!r} not found")
                self.written[namespace, name].update(body)
                answered = 200
            else:
                return 415, status(415, "UnsupportedMediaType", f"{method} with {content_type}")
            self._changed.notify_all()
            return answered, self.written[namespace, name]

    def refusal(self, query):
        """Return what is wrong with the version a watch is to start from, if anything."""
        since = int(query.get("resourceVersion") or 0)
        if since > self.version:
            return status(504, "Timeout", f"Too large resource version: {since}, current: {self.version}")
        if since < self.compacted:
            return status(410, "Expired", f"too old resource version: {since} ({self.compacted})")
        return None

    def stream(self, kind, query, generation, raw_from) -> Iterator[bytes]:
        """Yield the lines of a watch until its time is over or the server hangs up (then raise)."""
        since = int(query.get("resourceVersion") or 0)
        until = time.monotonic() + float(query.get("timeoutSeconds", 1800))
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        position = 0
        while True:
            with self._changed:
                while position >= len(self.events) and not self._closing and generation == self._generation:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        return
                if self._closing or generation != self._generation:
                    raise ConnectionAbortedError
                pending = list(enumerate(self.events))[position:]
                position = len(self.events)
            for index, (version, event_kind, old, new, raw) in pending:
                if event_kind != kind:
                    continue
                if raw is not None:
                    if index >= raw_from:
                        yield raw
                    continue
                line = _event(old, new, labels, fields) if version > since else None
                if line:
                    yield line

    @contextmanager
    def counting_watch(self):
        """Count a watch as open, and yield from where on it hears what is sent, and that the server hangs up."""
        with self._changed:
            self.open_watches += 1
            since = self._generation, len(self.events)
            self._changed.notify_all()
        try:
            yield since
        finally:
            with self._changed:
                self.open_watches -= 1
                self._changed.notify_all()


def _cells(obj):
    """One row: the first address of each type, as the server prints it."""
    found = {}
    for address in obj.get("status", {}).get("addresses", []):
        found.setdefault(address["type"], address["address"])
    addresses = [found.get(name, "<none>") for name in ("InternalIP", "ExternalIP")]
    return [obj["metadata"]["name"], "Ready", "<none>", "5d", "v1.36.2", *addresses, "Debian GNU/Linux 13"]


def _event(old, new, labels, fields):
    """A change as one watch sees it: an object that no longer fits the selectors is deleted for it."""
    was = old is not None and matches(old, labels, fields)
    is_ = new is not None and matches(new, labels, fields)
    if not was and not is_:
        return None
    type_ = "MODIFIED" if was and is_ else "ADDED" if is_ else "DELETED"
    obj = new if is_ else {**old, "metadata": {**old["metadata"]}}
    if new is not None:
        obj["metadata"]["resourceVersion"] = new["metadata"]["resourceVersion"]
    return json.dumps({"type": type_, "object": obj}, separators=(",", ":")).encode() + b"\n"


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    allow_reuse_address = True

    def handle_error(self, request, client_address):
        pass  # connections that break are what this server is for


class _ApiHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.api.connected(self.connection)

    def finish(self):
        self.server.api.disconnected(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def do_GET(self):
        api = self.server.api
        url = urlsplit(self.path)
        kind, api_version = PATHS.get(url.path, ("", ""))
        request = ApiRequest(kind, dict(parse_qsl(url.query)), dict(self.headers))
        fault = api.fault_for(request)
        if fault:
            fault.act(self, request)
        elif not kind:
            self.answer_json(404, status(404, "NotFound", "the server could not find the requested resource"))
        elif api.bearer and self.headers.get("Authorization") != f"Bearer {api.bearer}":
            self.answer_json(401, status(401, "Unauthorized", "Unauthorized"))
        elif "sendInitialEvents" in request.query:
            # As a server without that feature says it; clients then list first.
            self.answer_json(422, status(422, "Invalid", "sendInitialEvents is forbidden for watch"))
        elif request.watch:
            self.watch(kind, request.query)
        elif kind == "Node" and "as=Table" in self.headers.get("Accept", ""):
            self.answer_json(*api.table())
        else:
            time.sleep(api.list_delay)
            self.answer_json(*api.page(kind, api_version, request.query))

    def do_POST(self):
        api = self.server.api
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = EVENTS.fullmatch(self.path)
        request = ApiRequest("Event", {}, dict(self.headers))
        fault = api.fault_for(request)
        if fault:
            fault.act(self, request)
        elif not found:
            self.answer_json(403, status(403, "Forbidden", f"not allowed to write {self.path}"))
        else:
            self.answer_json(*api.write(self.command, *found.groups(), body, self.headers["Content-Type"]))

    def do_PATCH(self):
        self.do_POST()

    def watch(self, kind, query):
        api = self.server.api
        refusal = api.refusal(query)
        if refusal and (api.gone_as_status or refusal["code"] != 410):
            self.answer_json(refusal["code"], refusal)
            return
        self.begin(200, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
        if refusal:
            self.chunk(json.dumps({"type": "ERROR", "object": refusal}).encode() + b"\n")
        else:
            with api.counting_watch() as since:
                for line in api.stream(kind, query, *since):
                    self.chunk(line)
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def answer_json(self, code, body):
        self.answer(code, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def answer(self, code, data, headers):
        self.begin(code, {**headers, "Content-Length": str(len(data))})
        self.wfile.write(data)

    def begin(self, code, headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


# Objects to put


def service(name="web", namespace="default", *, labels=None, **spec):
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **({"labels": labels} if labels else {}),
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.10",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
            **spec,
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(name="web-abc", service_name="web", addresses=("10.244.1.5",), *, labels=None, **fields):
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service_name, **(labels or {})},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "nodeName": "node1"} for address in addresses],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        **fields,
    }


def node(name="node1", address="192.0.2.1"):
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def named(kind, name, namespace=None, labels=None, **parts):
    """Make an object of the group "" with a name, and further parts by their names."""
    metadata = {"name": name, "labels": labels or {}} | ({"namespace": namespace} if namespace else {})
    return {"kind": kind, "apiVersion": "v1", "metadata": metadata, **parts}
