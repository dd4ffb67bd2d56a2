"""Queries to a name server from sockets in the network namespaces of a pod and of a client."""

from __future__ import annotations

from functools import partial

import pytest

from ipvsproxy.kernel.read.netns import socket_in
from ipvsproxy.probe.dns import resolve
from tests.lab.lab import Lab
from tests.lab.name_server import NameServer

NAME, ALIAS = "kubernetes.default.svc.cluster.local", "else.default.svc.cluster.local"


@pytest.mark.parametrize("only_tcp", [False, True], ids=["UDP", "TCP after a truncated response"])
def test_a_query_leaves_from_the_namespace_of_its_socket(lab: Lab, only_tcp: bool) -> None:
    server, *others = lab.pods
    names = NameServer({NAME: "10.96.0.1"}, {ALIAS: "elsewhere.example.com"})
    with names.serving(server, only_tcp=only_tcp):
        for asker in (lab.client, others[-1]):
            ask = partial(resolve, server.ipv4, make=partial(socket_in, asker.netns))
            found = ask(NAME, "A")
            assert (found.addresses, found.error) == (("10.96.0.1",), "")
            assert found.asked_from.rpartition(":")[0] == asker.ipv4
            assert ask(ALIAS, "CNAME").canonical == "elsewhere.example.com"
            assert ask("nobody.example", "A").error == "NXDOMAIN"


def test_a_pod_without_a_name_server_refuses(lab: Lab) -> None:
    ask = partial(resolve, lab.pods[0].ipv4, make=partial(socket_in, lab.pods[-1].netns))
    assert ask(NAME, "A").error == "Connection refused"
