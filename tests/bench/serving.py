"""What serves a synthetic cluster to a proxy: the suite's API server, or a real one."""

import concurrent.futures
import contextlib
import http.client
import itertools
import sys
import threading
import time

from tests.bench import cluster
from tests.lab.apiservers import RealServer, ServerRefused
from tests.support.apiserver import ApiServer

WRITERS = 8
POLL_SECONDS = 0.05
NODE = {
    "kind": "Node", "apiVersion": "v1", "metadata": {"name": "node0"}, "spec": {},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}  # fmt: skip

PATHS = {
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "Service": "/api/v1/namespaces/bench/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/bench/endpointslices",
}


@contextlib.contextmanager
def serving(services, endpoints, folder, programs=None):
    """A server with so many Services; `programs` are the paths of a kube-apiserver and an etcd."""
    if programs is None:
        with ApiServer() as server:
            served = SuiteServer(server, folder)
            fill(served.put, services, endpoints)
            yield served
        return
    served = Real(RealServer(None, folder, *map(str, programs)))
    try:
        began = time.perf_counter()
        fill(served.put, services, endpoints)
        print(f"{services} Services created in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        yield served
    finally:
        served.close()


def fill(put, services, endpoints):
    """Create all objects, some at a time."""
    put({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "bench"}})
    put(NODE)
    made = (
        f(n) for n in range(services) for f in (cluster.service, lambda n: cluster.endpoint_slice(n, endpoints))
    )
    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        while some := list(itertools.islice(made, 1000)):
            list(pool.map(put, some))


class SuiteServer:
    """The suite's own server."""

    def __init__(self, server, folder):
        self._server = server
        self.kubeconfig = server.write_kubeconfig(folder / "kubeconfig")

    def put(self, item):
        if item["kind"] != "Namespace":
            item["metadata"].setdefault("uid", item["metadata"]["name"])
            self._server.put(item)

    def wait_for_list(self, alive, seconds):
        """Return once the proxy has asked for Services. Raises TimeoutError."""
        self._server.wait_for(lambda: alive() and any(r.kind == "Service" for r in self._server.requests), seconds)


class Real:
    """A kube-apiserver with its etcd."""

    def __init__(self, server):
        self._server = server
        self._writers = threading.local()
        self.kubeconfig = server.kubeconfig

    def put(self, item):
        """Create it, or replace it if it is there."""
        path = PATHS[item["kind"]]
        metadata = {
            k: v for k, v in item["metadata"].items() if k not in ("uid", "resourceVersion", "managedFields")
        }
        try:
            self._writer()("POST", path, item | {"metadata": metadata})
        except ServerRefused as error:
            if error.status != http.client.CONFLICT:
                raise
            self._writer()("PUT", f"{path}/{metadata['name']}", item | {"metadata": metadata})

    def _writer(self):
        """What asks the server over a connection of this thread's own."""
        if not hasattr(self._writers, "ask"):
            self._writers.ask = self._server.administrator()
        return self._writers.ask

    def wait_for_list(self, alive, seconds):
        """Return once the proxy has been given the first page of Services. Raises TimeoutError."""
        deadline = time.perf_counter() + seconds
        while not any((call.verb, call.resource) == ("list", "services") for call in self._server.calls()):
            alive()
            if time.perf_counter() > deadline:
                raise TimeoutError(f"Services were not listed in {seconds} s")
            time.sleep(POLL_SECONDS)

    def close(self):
        self._server.close()
