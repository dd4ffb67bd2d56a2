"""Queries to a name server on loopback, over UDP and TCP."""

import contextlib
import socket
import struct
import threading

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from ipvsproxy.probe import dns as probe

NAME = "a.example"


def response(query, *records, code=dns.rcode.NOERROR, truncated=False):
    """The wire form of an answer to a query."""
    made = dns.message.make_response(query)
    made.set_rcode(code)
    made.flags |= dns.flags.TC if truncated else 0
    for record in records:
        name, *rest = record.split()
        made.answer.append(dns.rrset.from_text(name, *rest))
    return made.to_wire()


def sockets_on_one_port(family, address):
    """A UDP socket and a TCP listener on one port; the kernel finds only ports that are free for one of them."""
    for _ in range(100):
        listener = socket.create_server((address, 0), family=family)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            datagrams.bind(listener.getsockname()[:2])
        except OSError:
            listener.close()
            datagrams.close()
        else:
            return datagrams, listener
    raise OSError("no port is free for both protocols")


class NameServerStandIn:
    """Answers each UDP query with the next of `replies` (functions from a query to datagrams), or not at all."""

    def __init__(self, family):
        address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self.udp, self.tcp = sockets_on_one_port(family, address)
        self.address, self.port = self.udp.getsockname()[:2]
        self.replies, self.over_tcp, self.asked = [], lambda _: b"", []
        self.threads = [threading.Thread(target=part, daemon=True) for part in (self._udp, self._tcp)]
        for thread in self.threads:
            thread.start()

    def _udp(self):
        while (data := self.udp.recvfrom(4096))[0]:
            self.asked.append(("udp", data[1][1]))
            for reply in self.replies.pop(0)(dns.message.from_wire(data[0])) if self.replies else ():
                self.udp.sendto(reply, data[1])

    def _tcp(self):
        while True:
            with contextlib.closing(self.tcp.accept()[0]) as connection:
                size = int.from_bytes(connection.recv(2), "big")
                if not size:
                    return
                self.asked.append(("tcp", 0))
                reply = self.over_tcp(dns.message.from_wire(connection.recv(size)))
                connection.sendall(len(reply).to_bytes(2, "big") + reply if reply else b"")

    def stop(self):
        with socket.socket(self.udp.family, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", (self.address, self.port))
        socket.create_connection((self.address, self.port)).close()
        for thread in self.threads:
            thread.join()
        self.udp.close()
        self.tcp.close()


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def server(request, monkeypatch):
    made = NameServerStandIn(request.param)
    monkeypatch.setattr(probe, "DNS_PORT", made.port)
    monkeypatch.setattr(probe, "SECONDS", 30)  # a busy machine is no reason for a failure
    yield made
    made.stop()


@pytest.fixture
def impatient(server, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.5)


def test_addresses_and_the_canonical_name_are_read(server):
    records = (f"{NAME}. 5 IN CNAME b.example.", "b.example. 5 IN A 192.0.2.1", "b.example. 5 IN AAAA ::1")
    server.replies = [lambda query: [response(query, *records)]]
    found = probe.resolve(server.address, NAME, "A")
    assert (found.canonical, found.addresses, found.error) == ("b.example", ("192.0.2.1", "::1"), "")
    assert found.asked_from.endswith(f":{server.asked[0][1]}")


@pytest.mark.parametrize(("code", "word"), [(3, "NXDOMAIN"), (2, "SERVFAIL"), (5, "REFUSED")])
def test_errors_of_the_server_have_their_names(server, code, word):
    server.replies = [lambda query: [response(query, code=code)]]
    assert probe.resolve(server.address, NAME, "A").error == word


def test_responses_to_other_queries_and_malformed_ones_are_ignored(server):
    def replies(query):
        other = dns.message.make_query(NAME, "A", id=query.id ^ 1)
        elsewhere = dns.message.make_query("b.example", "A", id=query.id)
        wrong = [response(made, f"{NAME}. 5 IN A 192.0.2.9") for made in (other, elsewhere)]
        yield from (*wrong, b"\0", response(query, f"{NAME}. 5 IN A 192.0.2.1"))

    server.replies = [replies]
    assert probe.resolve(server.address, NAME, "A").addresses == ("192.0.2.1",)


@pytest.mark.usefixtures("impatient")
def test_a_name_that_points_to_itself_is_no_answer(server):
    def looping(query):
        wire = bytearray(response(query))
        wire[6:8] = struct.pack(">H", 1)  # answers
        itself = 0xC000 | len(wire) + 12
        return [bytes(wire) + struct.pack(">HHHIHH", 0xC00C, dns.rdatatype.CNAME, dns.rdataclass.IN, 5, 2, itself)]

    server.replies = [looping, looping]
    assert probe.resolve(server.address, NAME, "A").error == "no answer within 1 s"


def test_a_lost_query_is_sent_again_from_the_same_socket(server, monkeypatch):
    """Only the first answer is not waited for long: the second may be late on a busy machine."""
    ask, patience = dns.query.udp, iter((0.2, 30))

    def udp(request, where, _, *rest, **named):
        return ask(request, where, next(patience), *rest, **named)

    monkeypatch.setattr(dns.query, "udp", udp)
    server.replies = [lambda _: [], lambda query: [response(query, f"{NAME}. 5 IN A 192.0.2.1")]]
    assert probe.resolve(server.address, NAME, "A").addresses == ("192.0.2.1",)
    assert len(server.asked) == 2
    assert len(set(server.asked)) == 1


@pytest.mark.usefixtures("impatient")
def test_silence_and_a_closed_port_are_errors(server, monkeypatch):
    assert probe.resolve(server.address, NAME, "A").error == "no answer within 1 s"
    with socket.socket(server.udp.family, socket.SOCK_DGRAM) as unused:
        unused.bind((server.address, 0))
        monkeypatch.setattr(probe, "DNS_PORT", unused.getsockname()[1])
    assert probe.resolve(server.address, NAME, "A").error == "Connection refused"


def test_what_a_rule_of_this_node_refuses_is_named_so():
    class Refused(socket.socket):
        def connect(self, _):
            raise PermissionError(1, "Operation not permitted")

    found = probe.resolve("127.0.0.1", NAME, "A", Refused)
    assert (found.error, found.asked_from) == ("refused by this node, as without endpoints", "")


def test_a_truncated_response_is_asked_for_again_over_tcp(server):
    many = [f"{NAME}. 5 IN A 192.0.2.{n}" for n in range(1, 90)]
    server.replies = [lambda query: [response(query, truncated=True)]]
    server.over_tcp = lambda query: response(query, *many)
    kinds = []

    def make(family, kind):
        kinds.append((family, kind))
        return socket.socket(family, kind)

    found = probe.resolve(server.address, NAME, "A", make)
    assert len(found.addresses) == 89
    assert [kind for _, kind in kinds] == [socket.SOCK_DGRAM, socket.SOCK_STREAM]
    assert {family for family, _ in kinds} == {server.udp.family}
    # IPVS is asked about the UDP query.
    assert found.asked_from.endswith(f":{server.asked[0][1]}")


def test_a_server_that_hangs_up_over_tcp_is_an_error(server):
    server.replies = [lambda query: [response(query, truncated=True)]]
    found = probe.resolve(server.address, NAME, "A")
    assert ("tcp", 0) in server.asked
    assert found.error
    assert not found.addresses


@pytest.mark.parametrize("name", ["a..b", "x" * 64, "a." * 200])
def test_what_is_no_name_is_an_error_and_no_query(name):
    assert probe.resolve("127.0.0.1", name, "A").error


def test_a_query_is_what_rfc_1035_specifies():
    head, rest = probe.query("a.example")[:2], probe.query("a.example")[2:]
    assert len(head) == 2
    assert rest == bytes.fromhex("010000010000000000000161076578616d706c650000010001")
