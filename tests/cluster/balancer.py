"""A stand-in for a load balancer controller: addresses in the status of Services, and routes to nodes for them.

    python -m tests.cluster.balancer KUBECONFIG     (in the cluster's namespace)

A Service of type LoadBalancer without a class gets an address. The namespace then has a route to it over all
nodes, by source, destination and ports; with the Local policy, over those whose health check port says so; with
affinity, over one of them, so that a client keeps to it.
"""

from __future__ import annotations

import http.client
import ipaddress
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3
from kubernetes import client

from tests.cluster import following
from tests.cluster.place import BALANCER_CIDR, OUTSIDE_IP

FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
PERIOD_SECONDS = 0.5
HEALTH_SECONDS = 1.0
MOST_SILENCES = 3
HTTP_OK = 200

Object = dict[str, Any]


def wants(service: Object) -> bool:
    """Whether the controller is to serve it."""
    spec, meta = service["spec"], service["metadata"]
    return (
        spec.get("type") == "LoadBalancer"
        and not spec.get("loadBalancerClass")
        and "deletionTimestamp" not in meta
    )


def ingress(service: Object) -> str:
    """The address that a Service has; empty if none."""
    entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return entries[0].get("ip", "") if entries else ""


def free_address(taken: Iterable[str]) -> str:
    """The first address that nobody has; StopIteration when all are taken."""
    used = set(taken)
    return next(str(ip) for ip in ipaddress.ip_network(BALANCER_CIDR).hosts() if str(ip) not in used)


def internal_ip(node: Object) -> str:
    addresses = (node.get("status") or {}).get("addresses") or []
    return next((each["address"] for each in addresses if each["type"] == "InternalIP"), "")


def next_hops(service: Object, nodes: list[Object], is_healthy: Callable[[str, int], bool]) -> list[str]:
    """The addresses of the nodes that get its traffic."""
    ips = sorted(filter(None, map(internal_ip, nodes)))
    spec = service["spec"]
    port = spec.get("healthCheckNodePort")
    if spec.get("externalTrafficPolicy") == "Local" and port:
        ips = [ip for ip in ips if is_healthy(ip, port)]
    return ips[:1] if spec.get("sessionAffinity") == "ClientIP" else ips


def route(ip: str, hops: list[str]) -> list[str]:
    """The words after `ip` that make a route; without a hop, packets are dropped."""
    if not hops:
        return ["route", "replace", "blackhole", ip]
    words = ["route", "replace", ip, "src", OUTSIDE_IP]
    return words + [word for hop in hops for word in ("nexthop", "via", hop)]


class Balancer:
    """Makes what is so what should be, twice a second."""

    def __init__(self, kubeconfig: str) -> None:
        api = following.connect(kubeconfig)
        self._core = client.CoreV1Api(api)
        self._services = following.Follower(self._core.list_service_for_all_namespaces)
        self._nodes = following.Follower(self._core.list_node)
        self._routes: dict[str, list[str]] = {}
        self._pool = ThreadPoolExecutor(8)
        self._is_healthy = Health(ask_health)

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
        hops = self._pool.map(lambda service: next_hops(service, nodes, self._is_healthy), wanted)
        self._set_routes(dict(zip(map(ingress, wanted), hops, strict=True)))

    def _serve(self, service: Object, services: list[Object]) -> None:
        finalizers = service["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            self._patch(service, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
        if not ingress(service):
            address = {"ip": free_address(filter(None, map(ingress, services))), "ipMode": "VIP"}
            service["status"] = {"loadBalancer": {"ingress": [address]}}
            self._patch(service, {"status": service["status"]}, status=True)

    def _release(self, service: Object) -> None:
        if ingress(service):
            self._patch(service, {"status": {"loadBalancer": None}}, status=True)
        others = [each for each in service["metadata"]["finalizers"] if each != FINALIZER]
        self._patch(service, {"metadata": {"finalizers": others or None}})

    def _patch(self, service: Object, patch: Object, *, status: bool = False) -> None:
        meta = service["metadata"]
        method = self._core.patch_namespaced_service_status if status else self._core.patch_namespaced_service
        try:
            method(meta["name"], meta["namespace"], patch)
        except client.ApiException as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def _set_routes(self, wanted: dict[str, list[str]]) -> None:
        for ip in set(self._routes) - set(wanted):
            _ip("route", "flush", ip)
            del self._routes[ip]
        for ip, hops in wanted.items():
            if self._routes.get(ip) != hops:
                _ip("route", "flush", ip)
                _ip(*route(ip, hops))
                self._routes[ip] = hops
                print(ip, *hops, flush=True)


class Health:
    """What health check ports have said. An answer counts at once, silence when it comes three times in a row."""

    def __init__(self, ask: Callable[[str, int], bool | None]) -> None:
        self._ask = ask
        self._healthy: dict[tuple[str, int], bool] = {}
        self._silences: dict[tuple[str, int], int] = {}

    def __call__(self, ip: str, port: int) -> bool:
        key = (ip, port)
        answer = self._ask(ip, port)
        self._silences[key] = 0 if answer is not None else self._silences.get(key, 0) + 1
        if answer is not None or self._silences[key] >= MOST_SILENCES:
            self._healthy[key] = bool(answer)
        return self._healthy.get(key, False)


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


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        print("ip", *words, done.stderr.strip(), flush=True)


if __name__ == "__main__":
    Balancer(sys.argv[1]).run()
