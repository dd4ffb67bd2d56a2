"""Answers to DNS messages from the names of a cluster."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.cluster.dns_zone import ZONE, Record, Zone

TTL = 5
UDP_SIZE = 512
# For how long there is nothing: RFC 2308.
AUTHORITY = f"ns.dns.{ZONE}. hostmaster.{ZONE}. 1 7200 1800 86400 {TTL}"


def answer(message: bytes, zone: Zone, *, is_udp: bool) -> bytes:
    """The answer to a message. By UDP it is cut, and says so, where the client takes less.

    Raises dns.exception.DNSException for what is no question.
    """
    query = dns.message.from_wire(message)
    if len(query.question) != 1:
        raise dns.exception.FormError
    question = query.question[0]
    response = dns.message.make_response(query, recursion_available=True)
    response.flags |= dns.flags.AA
    name = question.name.to_text(omit_final_dot=True).lower()
    records = zone.records(name, dns.rdatatype.to_text(question.rdtype))
    if records is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    if not records:
        response.authority.append(dns.rrset.from_text(f"{ZONE}.", TTL, "IN", "SOA", AUTHORITY))
    for record in records or ():
        response.answer.append(dns.rrset.from_text(f"{record.name}.", TTL, "IN", record.kind, _text(record)))
    return _cut(response, max(UDP_SIZE, query.payload)) if is_udp else response.to_wire()


def _cut(response: dns.message.Message, size: int) -> bytes:
    try:
        return response.to_wire(max_size=size)
    except dns.exception.TooBig:
        response.answer, response.authority = [], []
        response.flags |= dns.flags.TC
        return response.to_wire()


def _text(record: Record) -> str:
    """Its data as a zone file has it."""
    match record.kind:
        case "A" | "AAAA":
            return record.value
        case "TXT":
            return f'"{record.value}"'
        case "SRV":
            return f"0 100 {record.port} {record.value}."
        case _:
            return f"{record.value.rstrip('.')}."
