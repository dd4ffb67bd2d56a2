"""A stand-in for CoreDNS, where no binary of it is given: UDP and TCP on the addresses of the cluster's bridge.

python -m tests.cluster.dns KUBECONFIG
"""

from __future__ import annotations

import socketserver
import struct
import sys
import threading

from kubernetes import client

from tests.cluster import dns_answers, following
from tests.cluster.dns_zone import Zone
from tests.cluster.place import API_IP, DNS_PORT


class ZoneNames:
    """The zone, made from what the API server has said so far."""

    def __init__(self, kubeconfig: str) -> None:
        api = following.connect(kubeconfig)
        self._services = following.Follower(client.CoreV1Api(api).list_service_for_all_namespaces)
        self._slices = following.Follower(client.DiscoveryV1Api(api).list_endpoint_slice_for_all_namespaces)
        self._services.start()
        self._slices.start()

    def answer(self, message: bytes, *, is_udp: bool) -> bytes:
        """Raises DNSException for what is no question."""
        zone = Zone(self._services.objects(), self._slices.objects())
        return dns_answers.answer(message, zone, is_udp=is_udp)


class Datagram(socketserver.BaseRequestHandler):
    """One question by UDP."""

    def handle(self) -> None:
        message, sock = self.request
        sock.sendto(self.server.names.answer(message, is_udp=True), self.client_address)


class TcpHandler(socketserver.StreamRequestHandler):
    """Questions by TCP, each after its length."""

    def handle(self) -> None:
        while length := self.rfile.read(2):
            message = self.rfile.read(struct.unpack(">H", length)[0])
            said = self.server.names.answer(message, is_udp=False)
            self.wfile.write(struct.pack(">H", len(said)) + said)


class Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True
    max_packet_size = 4096


class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main(kubeconfig: str) -> None:
    names = ZoneNames(kubeconfig)
    servers = [Udp((API_IP, DNS_PORT), Datagram), Tcp((API_IP, DNS_PORT), TcpHandler)]
    for server in servers:
        server.names = names
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1])
