"""One query to one name server: what `getaddrinfo` cannot do is to ask a certain server.

The node's own resolver does not know cluster names, so the DNS Service is asked by its VIP: over UDP, then over
TCP if the response was truncated (RFC 7766 section 5). dnspython encodes and decodes; the sockets are ours, so
that the query can come from the network namespace of a pod, and IPVS can be asked about its source port.
"""

import socket
from collections.abc import Callable

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import tenacity
from msgspec.structs import replace

from ipvsproxy.base.errors import plain
from ipvsproxy.base.names import DNS_PORT
from ipvsproxy.diagnosis.facts import DnsAnswer, join
from ipvsproxy.probe.live import source

TRIES, SECONDS = 2, 2.0
REFUSED_HERE = "refused by this node, as without endpoints"
"""A process gets EPERM for what a rule of its own node refuses."""
ADDRESSES = (dns.rdatatype.A, dns.rdatatype.AAAA)

MakeDnsSocket = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]


def resolve(server: str, name: str, kind: str, make: MakeDnsSocket = socket.socket) -> DnsAnswer:
    """Ask a server for records of a type, A, AAAA or CNAME. Never raises: what failed is in the answer.

    `make` makes the sockets. `asked_from` of the answer is the source of the UDP query, also if TCP had to follow.
    """
    unanswered = DnsAnswer(server, name)
    try:
        request = dns.message.make_query(name, kind)
        with _connected(server, socket.SOCK_DGRAM, make) as sock:
            unanswered = replace(unanswered, asked_from=join(*source(sock)))
            try:
                response = _over_udp(sock, server, request)
            except dns.message.Truncated:
                response = _over_tcp(server, request, make)
        return _read(response, unanswered)
    except dns.exception.Timeout:
        return DnsAnswer(server, name, error=f"no answer within {TRIES * SECONDS:g} s")
    except PermissionError:
        return DnsAnswer(server, name, error=REFUSED_HERE)
    except (OSError, EOFError, dns.exception.DNSException) as error:
        return DnsAnswer(server, name, error=plain(error))


def query(name: str) -> bytes:
    """Return a query for the address of a name, as it goes into a datagram."""
    return dns.message.make_query(name, dns.rdatatype.A).to_wire()


def _connected(server: str, kind: socket.SocketKind, make: MakeDnsSocket) -> socket.socket:
    sock = make(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)
    try:
        sock.settimeout(SECONDS)
        sock.connect((server, DNS_PORT))
        sock.setblocking(False)  # as dnspython wants it
    except TimeoutError:
        sock.close()
        raise dns.exception.Timeout from None
    except OSError:
        sock.close()
        raise
    return sock


def _over_udp(sock: socket.socket, server: str, request: dns.message.Message) -> dns.message.Message:
    """Ask TRIES times. Responses to other queries are ignored. Raises Truncated, Timeout, OSError."""
    again = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        retry=tenacity.retry_if_exception_type(dns.exception.Timeout),
        reraise=True,
    )
    return again(
        dns.query.udp, request, server, SECONDS, DNS_PORT, sock=sock, raise_on_truncation=True, ignore_errors=True
    )


def _over_tcp(server: str, request: dns.message.Message, make: MakeDnsSocket) -> dns.message.Message:
    with _connected(server, socket.SOCK_STREAM, make) as sock:
        return dns.query.tcp(request, server, SECONDS, DNS_PORT, sock=sock)


def _read(response: dns.message.Message, unanswered: DnsAnswer) -> DnsAnswer:
    """Return what the answer section holds: addresses, and the first canonical name without its last dot."""
    if response.rcode() != dns.rcode.NOERROR:
        return replace(unanswered, error=dns.rcode.to_text(response.rcode()))
    addresses, canonical = [], ""
    for records in response.answer:
        if records.rdtype in ADDRESSES:
            addresses += [record.address for record in records]
        elif records.rdtype == dns.rdatatype.CNAME:
            canonical = canonical or records[0].target.to_text(omit_final_dot=True)
    return replace(unanswered, addresses=tuple(addresses), canonical=canonical)
