"""A stand-in for a load balancer controller: addresses in the status of Services, and routes to nodes for them.

    python -m tests.cluster.balancer KUBECONFIG     (in the cluster's namespace)

A Service of type LoadBalancer without a class gets an address, that of its loadBalancerIP if it has one.
Connections to it are then spread over all nodes (spreading.py); with the Local policy, over those whose health
check port says so, or where none says anything over those that are silent, as clouds do; with affinity, over one
of them, so that a client keeps to it.
"""

from __future__ import annotations

import http.client
import ipaddress
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import urllib3
from kubernetes import client

from tests.cluster import following, spreading
from tests.cluster.place import BALANCER_CIDR
from tests.support.api_object import ApiObject

FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
PERIOD_SECONDS = 0.5
HEALTH_SECONDS = 5.0
MOST_SILENCES = 3
HTTP_OK = 200


def wants(service: ApiObject) -> bool:
    """Whether the controller is to serve it."""
    spec, meta = service["spec"], service["metadata"]
    return (
        spec.get("type") == "LoadBalancer"
        and not spec.get("loadBalancerClass")
        and "deletionTimestamp" not in meta
    )


def ingress(service: ApiObject) -> str:
    """The address that a Service has; empty if none."""
    entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return entries[0].get("ip", "") if entries else ""


def free_address(taken: Iterable[str]) -> str:
    """The first address that nobody has; StopIteration when all are taken."""
    used = set(taken)
    return next(str(ip) for ip in ipaddress.ip_network(BALANCER_CIDR).hosts() if str(ip) not in used)


def address_for(service: ApiObject, services: Iterable[ApiObject]) -> str:
    """The address that a Service asks for, or else a free one."""
    return service["spec"].get("loadBalancerIP") or free_address(filter(None, map(ingress, services)))


def internal_ip(node: ApiObject) -> str:
    addresses = (node.get("status") or {}).get("addresses") or []
    return next((each["address"] for each in addresses if each["type"] == "InternalIP"), "")


def next_hops(service: ApiObject, nodes: list[ApiObject], health: Callable[[str, int], bool | None]) -> list[str]:
    """The addresses of the nodes that get its traffic. `health` says None of a node that is silent."""
    ips = sorted(filter(None, map(internal_ip, nodes)))
    spec = service["spec"]
    port = spec.get("healthCheckNodePort")
    if spec.get("externalTrafficPolicy") == "Local" and port:
        states = {ip: health(ip, port) for ip in ips}
        ips = [ip for ip in ips if states[ip]] or [ip for ip in ips if states[ip] is None]
    return ips[:1] if spec.get("sessionAffinity") == "ClientIP" else ips


class Balancer:
    """Makes what is so what should be, twice a second."""

    def __init__(self, kubeconfig: str) -> None:
        api = following.connect(kubeconfig)
        self._core = client.CoreV1Api(api)
        self._services = following.Follower(self._core.list_service_for_all_namespaces)
        self._nodes = following.Follower(self._core.list_node)
        self._hops: dict[str, list[str]] = {}
        self._routed: set[str] = set()
        self._pool = ThreadPoolExecutor(8)
        self._health = HealthProbes(ask_health)

    def run(self) -> None:
        self._services.start()
        self._nodes.start()
        while True:
            try:
                self.sync()
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                print(error, flush=True)
            time.sleep(PERIOD_SECONDS)

    def sync(self) -> None:
        services = self._services.objects()
        for service in services:
            if wants(service):
                self._serve(service, services)
            elif FINALIZER in (service["metadata"].get("finalizers") or []):
                self._release(service)
        wanted = [service for service in services if wants(service) and ingress(service)]
        nodes = self._nodes.objects()
        hops = self._pool.map(lambda service: next_hops(service, nodes, self._health), wanted)
        self._spread(dict(zip(map(ingress, wanted), hops, strict=True)))

    def _serve(self, service: ApiObject, services: list[ApiObject]) -> None:
        finalizers = service["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            self._patch(service, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
        if not ingress(service):
            address = {"ip": address_for(service, services), "ipMode": "VIP"}
            service["status"] = {"loadBalancer": {"ingress": [address]}}
            self._patch(service, {"status": service["status"]}, status=True)

    def _release(self, service: ApiObject) -> None:
        if ingress(service):
            self._patch(service, {"status": {"loadBalancer": None}}, status=True)
        others = [each for each in service["metadata"]["finalizers"] if each != FINALIZER]
        self._patch(service, {"metadata": {"finalizers": others or None}})

    def _patch(self, service: ApiObject, patch: ApiObject, *, status: bool = False) -> None:
        meta = service["metadata"]
        method = self._core.patch_namespaced_service_status if status else self._core.patch_namespaced_service
        try:
            method(meta["name"], meta["namespace"], patch)
        except client.ApiException as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def _spread(self, hops: dict[str, list[str]]) -> None:
        if hops == self._hops:
            return
        for node in {node for nodes in hops.values() for node in nodes} - self._routed:
            for words in spreading.routes(node):
                _run("ip", *words)
            self._routed.add(node)
        _run("nft", "-f", "-", text=spreading.ruleset(hops))
        for ip in sorted(hops.keys() | self._hops.keys()):
            if hops.get(ip) != self._hops.get(ip):
                print(time.strftime("%T"), ip, *hops.get(ip, ["gone"]), flush=True)
        self._hops = hops


class HealthProbes:
    """What health check ports have said. An answer counts at once, silence when it comes three times in a row."""

    def __init__(self, ask: Callable[[str, int], bool | None]) -> None:
        self._ask = ask
        self._healthy: dict[tuple[str, int], bool | None] = {}
        self._silences: dict[tuple[str, int], int] = {}

    def __call__(self, ip: str, port: int) -> bool | None:
        """None of a port that is silent, or has said nothing so far."""
        key = (ip, port)
        answer = self._ask(ip, port)
        self._silences[key] = 0 if answer is not None else self._silences.get(key, 0) + 1
        if answer is not None or self._silences[key] >= MOST_SILENCES:
            self._healthy[key] = answer
        return self._healthy.get(key)


def ask_health(ip: str, port: int) -> bool | None:
    """What a health check port says; None where nothing comes."""
    connection = http.client.HTTPConnection(ip, port, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == HTTP_OK
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _run(*words: str, text: str | None = None) -> None:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        print(*words, done.stderr.strip(), flush=True)


if __name__ == "__main__":
    Balancer(sys.argv[1]).run()
