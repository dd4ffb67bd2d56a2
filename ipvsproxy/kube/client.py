"""Requests to the Kubernetes API, over the connection that `kube.connection` makes.

Out: answers to list and watch for `kube.reflector`, and a way out for `kube.events`.

Credentials that change: token files are read again every minute; an answer of 401 makes `refresh` read the
whole configuration again, exec plugins included; certificates are read at each new connection.
"""

import http.client
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.api import Observe, RequestFailed, Response, TooLarge
from ipvsproxy.kube.ceilings import ANSWER_BYTES
from ipvsproxy.kube.compression import decoded
from ipvsproxy.kube.connection import ApiConnection, build, check
from ipvsproxy.kube.kubeconfig import KubeconfigError

CHUNK = 1 << 16
NEVER = float("inf")
URLLIB3 = re.compile(r"^\w*Connection\(host='([^']*)', port=(\d+)\): ")
"""How urllib3 begins a sentence: the connection as Python writes it."""
MIN_REFRESH_SECONDS = 10.0

log = structlog.get_logger()


class ClientLimits(msgspec.Struct, frozen=True):
    """Seconds to wait for a connection, for the next part of a list, and for a watch after its time is over.

    `whole` is how long all parts of one answer may take, of any but a watch.
    """

    connect: float = 10.0
    read: float = 60.0
    whole: float = 300.0
    slack: float = 15.0


class Selection(NamedTuple):
    """Where a kind is found and which of its objects are ours (contract 2); `{node}` is our node's name."""

    path: str
    labels: str = ""
    fields: str = ""


NODES = "/api/v1/nodes"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
SELECTIONS = {
    Kind.SERVICE: Selection(
        "/api/v1/services", "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"
    ),
    Kind.ENDPOINT_SLICE: Selection("/apis/discovery.k8s.io/v1/endpointslices", "!service.kubernetes.io/headless"),
    Kind.NODE: Selection(NODES, fields="metadata.name={node}"),
    Kind.NAMESPACE: Selection("/api/v1/namespaces"),
    Kind.POD: Selection("/api/v1/pods", fields="spec.nodeName={node}"),
}
ALL_PODS = Selection("/api/v1/pods", fields="status.phase!=Succeeded,status.phase!=Failed")
PACKED = {"Accept-Encoding": "gzip"}
"""For lists: a seventeenth of the bytes, for a tenth more of the server's time (docs/performance.md).

kube-apiserver compresses answers from 128 KiB on, and no watch.
"""
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"


class Reply:
    """An answer of urllib3, with its exceptions turned into `RequestFailed`."""

    def __init__(self, answer: Any, seconds: float = NEVER) -> None:
        """Take an answer; its body is read within so many seconds."""
        self._answer = answer
        self._seconds, self._until = seconds, time.monotonic() + seconds
        self.status: int = answer.status
        self.headers: Mapping[str, str] = answer.headers

    def read(self, most: int = ANSWER_BYTES) -> bytes:
        """Return the whole body. Raises TooLarge, and RequestFailed as well when it takes too long."""
        body = bytearray()
        # Piece by piece: what is compressed is decompressed no further than it is read.
        for piece in self.chunks():
            body += piece
            if len(body) > most:
                raise TooLarge(most)
            if time.monotonic() > self._until:
                raise RequestFailed(f"the answer was not complete within {self._seconds:g} s")
        return bytes(body)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, with empty pieces where nothing is in what has arrived."""
        return decoded(self._pieces(), self.headers.get("Content-Encoding", ""), CHUNK)

    def _pieces(self) -> Iterator[bytes]:
        while True:
            with _as_request_failed():
                # Not stream(): without chunked encoding, as some proxies have it, that waits for a full CHUNK.
                data = self._answer.read1(CHUNK, decode_content=False)
            if not data:
                return
            yield data

    def interrupt(self) -> None:
        """Make a read that is blocked in another thread return."""
        try:
            self._answer.shutdown()
        except (OSError, ValueError, RuntimeError) as error:
            log.debug("Found no response to interrupt", err=str(error))

    def close(self) -> None:
        """Close the connection, unless the body was read to its end and it is back in its pool already."""
        self._answer.close()
        self._answer.release_conn()  # keeps the pool's count right, also with a closed connection


@contextmanager
def _as_request_failed() -> Iterator[None]:
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:  # made from a TLS failure; its text would have the headers of the answer
        raise RequestFailed(" ".join(str(error.reason).split())) from None
    except (HTTPError, http.client.HTTPException, OSError) as error:
        raise RequestFailed(_words(error)) from None


def _words(error: BaseException) -> str:
    """Return the text of an exception; urllib3 puts what it caught behind its own words.

    The name of its class becomes the address. The library for SOCKS names the proxy, urllib3 then leaves it out.
    """
    origin = error.__cause__ or error.__context__
    if type(origin).__module__ == "socks":
        return str(origin)
    words = next((text for text in error.args if isinstance(text, str)), str(error))
    words = URLLIB3.sub(lambda found: f"{_bracketed(found[1])}:{found[2]}: ", words)
    inner = (argument for argument in error.args if isinstance(argument, BaseException))
    cause = getattr(error, "original_error", None) or next(inner, None)
    return f"{words.rstrip('.')}: {_words(cause)}" if cause is not None else words or type(error).__name__


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class KubeClient:
    """A `Transport` and an `EventClient` on top of the kubernetes package; may be used by several threads."""

    def __init__(
        self,
        kubeconfig: Path | None,
        master: str,
        node_name: str,
        limits: ClientLimits | None = None,
        observe: Observe = lambda *_: None,
        *,
        all_pods: bool = False,
    ) -> None:
        self._selections = {**SELECTIONS, Kind.POD: ALL_PODS} if all_pods else SELECTIONS
        self._kubeconfig = kubeconfig
        self._master = master
        self._node_name = node_name
        self._limits = limits or ClientLimits()
        self._observe = observe
        self._connection: ApiConnection | None = None
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._built_at = 0.0

    def check(self) -> None:
        """Read the files of the configuration, without the libraries. Raises KubeconfigError."""
        check(self._kubeconfig, self._master)

    def connect(self) -> None:
        """Read the configuration; no server is asked yet. Raises KubeconfigError."""
        self._built_at = time.monotonic()
        self._connection = build(self._kubeconfig, self._master)
        self._ready.set()

    def url(self) -> str:
        """Return the URL of the API server."""
        return self._connection.url if self._connection else ""

    def list(self, kind: Kind, limit: int, continue_: str, resource_version: str) -> Response:
        """Ask for a page of all objects of a kind. Raises RequestFailed."""
        query = {"limit": str(limit), "continue": continue_, "resourceVersion": resource_version}
        return self._get(kind, query, self._limits.read, PACKED)

    def watch(self, kind: Kind, resource_version: str, timeout_seconds: int) -> Response:
        """Ask for what changes after a version. Raises RequestFailed."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        return self._get(kind, query, timeout_seconds + self._limits.slack)

    def node_table(self) -> Response:
        """Ask for the table of all Nodes, without objects, from the server's cache. Raises RequestFailed."""
        query = {"resourceVersion": "0", "includeObject": "None"}
        return self._send("GET", NODES, query, {"Accept": TABLE, **PACKED}, self._limits.read)

    def nodes(self) -> Response:
        """Ask for the objects of all Nodes, from the server's cache. Raises RequestFailed."""
        return self._send("GET", NODES, {"resourceVersion": "0"}, PACKED, self._limits.read)

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> Response:
        """Make an event. Raises RequestFailed."""
        headers = {"Content-Type": "application/json"}
        return self._send("POST", EVENTS.format(quote(namespace)), {}, headers, self._limits.read, body)

    def patch_event(self, namespace: str, name: str, body: Mapping[str, Any]) -> Response:
        """Change an event by a JSON merge patch. Raises RequestFailed."""
        headers = {"Content-Type": "application/merge-patch+json"}
        path = f"{EVENTS.format(quote(namespace))}/{quote(name)}"
        return self._send("PATCH", path, {}, headers, self._limits.read, body)

    def refresh(self) -> None:
        """Read the configuration again, at most every MIN_REFRESH_SECONDS; keep the old one if it is bad now."""
        with self._lock:
            if time.monotonic() - self._built_at < MIN_REFRESH_SECONDS:
                return
            old = self._connection
            try:
                self.connect()
            except KubeconfigError as error:
                log.warning(messages.CREDENTIALS_KEPT, err=str(error))
                return
            if old is not None:
                old.api.close()
            log.info(messages.CREDENTIALS_RELOADED)

    def close(self) -> None:
        """Close idle connections."""
        if self._connection is not None:
            self._connection.api.close()

    def _get(
        self, kind: Kind, query: dict[str, str], read_timeout: float, headers: Mapping[str, str] | None = None
    ) -> Response:
        selection = self._selections[kind]
        query["labelSelector"] = selection.labels
        query["fieldSelector"] = selection.fields.format(node=self._node_name)
        return self._send("GET", selection.path, query, headers or {}, read_timeout)

    def _send(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        read_timeout: float,
        body: Mapping[str, Any] | None = None,
    ) -> Response:
        connection = self._connection if self._ready.wait(self._limits.connect) else None
        if connection is None:
            raise RequestFailed("not connected yet")
        api = connection.api
        if not connection.compress:
            headers = {name: value for name, value in headers.items() if name not in PACKED}
        began, code = time.monotonic(), "<error>"
        try:
            with _as_request_failed():
                _, url, sent, content, _ = api.param_serialize(
                    verb,
                    path,
                    query_params=[(name, value) for name, value in query.items() if value],
                    header_params={"Accept": "application/json", **headers},
                    body=body,
                )
                signed = connection.signed(sent)
                timeout = (self._limits.connect, read_timeout)
                answer = api.call_api(verb, url, signed, content, _request_timeout=timeout).response
                reply = Reply(answer, self._limits.whole)
                code = str(reply.status)
                return reply
        finally:
            # Not what may stand before an @: it is a secret, and this ends up in metrics.
            host = urlsplit(connection.url).netloc.rpartition("@")[2]
            self._observe(verb, host, code, time.monotonic() - began)
